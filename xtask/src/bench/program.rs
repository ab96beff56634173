//! `unasnap-bench`: built after setup, since it holds the TC programs, and run in a process namespace of its own, with
//! which whatever it left behind ends.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::figures::Figures;
use crate::build;
use crate::layout::Layout;
use crate::process::Group;

/// The longest that one part may take.
const PATIENCE: Duration = Duration::from_secs(1800);

/// The built program.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
}

impl Program {
    /// Builds it; quick when nothing has changed.
    ///
    /// # Errors
    /// It does not compile.
    pub fn build(layout: &Layout) -> Result<Self> {
        Ok(Self { path: build::measuring_program(layout)? })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs one of its commands and takes its figures.
    ///
    /// # Errors
    /// It failed, hung, or printed something else than figures.
    pub fn run(
        &self,
        command: &str,
        rounds: u32,
        arguments: &[OsString],
        figures: &mut Figures,
    ) -> Result<()> {
        let mut isolated = Command::new("unshare");
        isolated.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]);
        // The shell is the namespace's first process and buries what nobody else waits for.
        isolated.args(["\"$@\"; exit $?", "sh"]).arg(&self.path).arg(command);
        isolated.args(["--rounds", &rounds.to_string()]).args(arguments).stdout(Stdio::piped());
        let name = format!("unasnap-bench {command}");
        let mut group = Group::spawn(&name, &mut isolated)?;
        let pipe = group.child().stdout.take().context("piped")?;
        let reader = std::thread::spawn(move || BufReader::new(pipe).lines().collect::<Result<Vec<_>, _>>());
        let status = group.wait(PATIENCE)?;
        drop(group);
        let lines = reader.join().map_err(|_| anyhow::anyhow!("reading from {name} panicked"))?;
        for line in lines.with_context(|| format!("reading from {name}"))? {
            let record = serde_json::from_str(&line);
            figures.take(record.with_context(|| format!("{name} printed something unexpected: {line}"))?);
        }
        if !status.success() {
            bail!("{name} failed: {status}; see above");
        }
        Ok(())
    }
}

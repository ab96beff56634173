//! Running other programs: never with a standard input, never without a time limit, and never leaving one behind.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::interrupt::{self, OnInterrupt};

/// How often a running program is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// A program in a process group of its own; the whole group ends with this value.
#[derive(Debug)]
pub struct Group {
    child: Child,
    name: String,
    _on_interrupt: OnInterrupt,
}

impl Group {
    /// Starts `command`; `name` is what errors call it.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(name: &str, command: &mut Command) -> Result<Self> {
        command.process_group(0).stdin(Stdio::null());
        let beginning = interrupt::begin();
        let child = command.spawn().with_context(|| format!("starting {name} ({command:?})"))?;
        let group = Pid::from_raw(i32::try_from(child.id()).context("process id")?);
        // An error only says that the group is gone.
        let on_interrupt = beginning.register(move || {
            let _ = killpg(group, Signal::SIGKILL);
        });
        Ok(Self { child, name: name.into(), _on_interrupt: on_interrupt })
    }

    /// The program's pipes, if it was given any.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// What errors call the program.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("looking at {}", self.name))
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// The program is still running after `limit`; its group is then killed.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) =
                self.child.try_wait().with_context(|| format!("waiting for {}", self.name))?
            {
                return Ok(status);
            }
            if start.elapsed() >= limit {
                self.kill();
                bail!("{} hung: killed after {} s", self.name, limit.as_secs());
            }
            std::thread::sleep(LOOK);
        }
    }

    fn kill(&mut self) {
        if let Ok(group) = i32::try_from(self.child.id()) {
            // An error only says that the group is gone.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
        }
    }
}

/// Runs a program to its end, its output on our standard error (standard output is for data).
///
/// # Errors
/// It could not be started, failed, or took longer than `limit`.
pub fn run(name: &str, command: &mut Command, limit: Duration) -> Result<()> {
    command.stdout(std::io::stderr());
    let status = Group::spawn(name, command)?.wait(limit)?;
    if !status.success() {
        bail!("{name} failed: {status} ({command:?})");
    }
    Ok(())
}

/// Runs a program to its end and returns what it wrote, whether it succeeded or not.
///
/// # Errors
/// It could not be started or took longer than `limit`.
pub fn output(name: &str, command: &mut Command, limit: Duration) -> Result<Output> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut group = Group::spawn(name, command)?;
    let mut stdout = group.child().stdout.take().context("piped")?;
    let mut stderr = group.child().stderr.take().context("piped")?;
    // Both pipes must be emptied while the program runs, or a talkative one blocks.
    let errors = std::thread::spawn(move || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).map(|_| bytes)
    });
    let data = std::thread::spawn(move || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).map(|_| bytes)
    });
    let status = group.wait(limit)?;
    let join = |thread: std::thread::JoinHandle<std::io::Result<Vec<u8>>>| -> Result<Vec<u8>> {
        let bytes = thread.join().map_err(|_| anyhow::anyhow!("reading the output of {name} panicked"))?;
        bytes.with_context(|| format!("reading the output of {name}"))
    };
    Ok(Output { status, stdout: join(data)?, stderr: join(errors)? })
}

/// The standard output of a program that succeeds; an error tells what it wrote on standard error.
///
/// # Errors
/// As [`output`], and when it fails or does not write UTF-8.
pub fn text(name: &str, command: &mut Command, limit: Duration) -> Result<String> {
    let output = output(name, command, limit)?;
    if !output.status.success() {
        // Workloads say on their output what went wrong: in a guest that is the console.
        let said = [&output.stderr[..], &output.stdout].into_iter().find(|bytes| !bytes.is_empty());
        let said = String::from_utf8_lossy(said.unwrap_or_default());
        bail!("{name} failed: {}: {}", output.status, said.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("the output of {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_killed_with_its_children_and_named() {
        let start = Instant::now();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 60 & echo $!; wait"]);
        let error = output("a sleeper", &mut command, Duration::from_millis(200)).unwrap_err();
        assert!(error.to_string().contains("a sleeper hung"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn what_a_failing_program_says_is_in_the_error() {
        for said in ["echo reason >&2; exit 3", "echo reason; exit 3"] {
            let error =
                text("it", Command::new("sh").args(["-c", said]), Duration::from_secs(10)).unwrap_err();
            assert!(error.to_string().contains("reason"), "{error}");
        }
    }
}

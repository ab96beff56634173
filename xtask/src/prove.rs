//! `cargo xtask prove`: explores and simulates the state machines that ship, by `unasnap-proof`, which needs neither the eBPF
//! toolchain nor a VM.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::build;
use crate::layout::Layout;
use crate::process::Group;

/// A million simulated runs take minutes.
const PATIENCE: Duration = Duration::from_secs(7200);

/// Handed to `unasnap-proof` as they are.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct Options {
    /// `explore [NAME]`, `simulate --seed N --runs M [--mistake NAME]`, or both if nothing is said; `--json`; `--help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs it.
///
/// # Errors
/// It does not compile, the honest system breaks an invariant, or a mistake is not found.
pub fn run(layout: &Layout, options: &Options) -> Result<()> {
    let program = build::proving_program(layout)?;
    let mut command = Command::new(program);
    command.args(&options.arguments);
    let status = Group::spawn("unasnap-proof", &mut command)?.wait(PATIENCE)?;
    if !status.success() {
        bail!("not as it should be: {status}; see above");
    }
    Ok(())
}

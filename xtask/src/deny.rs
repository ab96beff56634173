//! `cargo xtask deny`: licences, sources and known defects of all dependencies, by cargo-deny.
//!
//! For a nightly job: it takes minutes to build cargo-deny the first time, and the list of known defects comes from the
//! network. What needs neither is tried at every run (`tests/tests/dependencies.rs`).

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::layout::Layout;
use crate::process::{output, run as run_program};

/// The version that was tried.
const VERSION: &str = "0.20.2";
const QUICK: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(1800);

/// Which checks.
#[derive(Debug, Args)]
pub struct Options {
    /// Only these checks [default: all]
    #[arg(value_parser = ["advisories", "bans", "licenses", "sources"])]
    checks: Vec<String>,
}

/// Installs cargo-deny below `target/tools` if it is not there, and runs it.
///
/// # Errors
/// It cannot be installed, or found something; what that is stands above.
pub fn run(layout: &Layout, options: &Options) -> Result<()> {
    let program = layout.tools.join("bin/cargo-deny");
    let version = output("cargo-deny", Command::new(&program).arg("--version"), QUICK);
    if !version.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains(VERSION)) {
        let mut install = Command::new("cargo");
        // The environment that `cargo xtask` runs in must not reach this build.
        install.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS").current_dir(&layout.root);
        install.args(["install", "-q", "cargo-deny", "--locked", "--force", "--version", VERSION, "--root"]);
        run_program("cargo install cargo-deny", install.arg(&layout.tools), PATIENCE)?;
    }
    let mut deny = Command::new(program);
    deny.args(["--config", ".ci/deny.toml", "check", "--hide-inclusion-graph"]).args(&options.checks);
    run_program("cargo deny", deny.current_dir(&layout.root), PATIENCE)
}

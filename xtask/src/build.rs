//! `cargo xtask build`: release programs, static guest programs, and the initramfs with them inside.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::guest_image;
use crate::layout::{GUEST_TARGET, Layout};
use crate::process::run;
use crate::setup;

/// A cold build on two slow cores.
const PATIENCE: Duration = Duration::from_secs(2400);

/// Packages and programs that run on hosts.
const HOST: [(&str, &str); 2] = [("unasnap", "unasnap"), ("unasnap-host", "unasnap-host")];

/// Packages and programs that run in guests: static, because an initramfs has no libraries.
const GUEST: [(&str, &str); 2] = [("unasnap-guest", "unasnap-guest"), ("unasnap-tests", "unasnap-ring")];

/// What measures; built for the benchmark only.
const MEASURING: [(&str, &str); 1] = [("unasnap-bench", "unasnap-bench")];

/// What explores and simulates.
const PROVING: [(&str, &str); 1] = [("unasnap-proof", "unasnap-proof")];

/// What VM tests and the demo need.
#[derive(Debug, Clone)]
pub struct Artifacts {
    /// The guests' kernel.
    pub kernel: PathBuf,
    /// The guests' initramfs.
    pub initramfs: PathBuf,
    /// Directory with all four programs.
    pub programs: PathBuf,
}

/// Builds everything; quick when nothing has changed.
///
/// # Errors
/// Something is missing on this machine (the error says which command to run), or does not compile.
pub fn build(layout: &Layout) -> Result<Artifacts> {
    setup::check(layout)?;
    compile(layout, &HOST, None)?;
    compile(layout, &GUEST, Some(GUEST_TARGET))?;
    let artifacts = Artifacts {
        kernel: layout.kernel().join("vmlinux"),
        initramfs: layout.initramfs(),
        programs: layout.programs(),
    };
    std::fs::create_dir_all(&artifacts.programs).context("making the programs' directory")?;
    let cargo_output = [(&HOST, layout.target.join("release")), (&GUEST, guest_output(layout))];
    for (set, from) in cargo_output {
        for (_, program) in set {
            replace(&from.join(program), &artifacts.programs.join(program))?;
        }
    }
    guest_image::write(layout, &artifacts)?;
    Ok(artifacts)
}

/// Builds the guest agent alone, static, and returns its path.
///
/// # Errors
/// As [`build`].
pub fn guest_agent(layout: &Layout) -> Result<PathBuf> {
    setup::check(layout)?;
    compile(layout, &GUEST[..1], Some(GUEST_TARGET))?;
    Ok(guest_output(layout).join(GUEST[0].1))
}

/// Builds the program that measures what needs no cluster, and returns its path.
///
/// # Errors
/// As [`build`].
pub fn measuring_program(layout: &Layout) -> Result<PathBuf> {
    setup::check(layout)?;
    compile(layout, &MEASURING, None)?;
    Ok(layout.target.join("release").join(MEASURING[0].1))
}

/// Builds the program that explores and simulates, and returns its path. It needs nothing that setup installs.
///
/// # Errors
/// It does not compile.
pub fn proving_program(layout: &Layout) -> Result<PathBuf> {
    compile(layout, &PROVING, None)?;
    Ok(layout.target.join("release").join(PROVING[0].1))
}

fn guest_output(layout: &Layout) -> PathBuf {
    layout.target.join(GUEST_TARGET).join("release")
}

fn compile(layout: &Layout, set: &[(&str, &str)], target: Option<&str>) -> Result<()> {
    let mut command = Command::new("cargo");
    command.current_dir(&layout.root).env("CARGO_TARGET_DIR", &layout.target);
    command.args(["build", "--quiet", "--release"]);
    for (package, program) in set {
        command.args(["-p", package, "--bin", program]);
    }
    if let Some(target) = target {
        command.args(["--target", target]).env("RUSTFLAGS", "-C target-feature=+crt-static");
    }
    let names: Vec<_> = set.iter().map(|(_, program)| *program).collect();
    eprintln!("build: {}", names.join(", "));
    run("cargo build", &mut command, PATIENCE)
}

/// Copies to a new name first: a running program's file cannot be written.
fn replace(from: &PathBuf, to: &PathBuf) -> Result<()> {
    let new = to.with_extension("new");
    std::fs::copy(from, &new).with_context(|| format!("copying {}", from.display()))?;
    std::fs::rename(&new, to).with_context(|| format!("writing {}", to.display()))
}

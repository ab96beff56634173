//! `unasnap-bench`: measures, and prints what it measured.
//!
//! It is run by `cargo xtask bench`, which draws the conclusions. Each line on standard output is one figure of one round:
//! `{"key": "colour.switch_ns.map_update", "value": 359.2}`. What cannot be measured on this machine is said as
//! `{"key": "...", "missing": "why"}`. Everything happens in namespaces that end with the process.
//!
//! | module | what is in it |
//! |---|---|
//! | `namespace` | network namespaces, and commands in them |
//! | `colour` | the colour switch and the cost per packet, against rule-based alternatives |
//! | `published` | a host of the published method, the baseline of what is measured with a cluster |
//! | `vm` | pause and restore of single VMs |

mod colour;
mod namespace;
mod published;
mod vm;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::runtime::{Builder, Runtime};

/// Measures what unasnap costs.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Colour switch and cost per packet
    Colour {
        /// Rounds; in each one every candidate is measured once
        #[arg(long)]
        rounds: u32,
    },
    /// How long a cut stops a VM
    Pause(vm::Options),
    /// How soon a restored VM runs
    Restore(vm::Options),
    /// Be a host of the published method, in the namespace that we are in
    Published(published::Options),
}

fn main() -> ExitCode {
    match execute(&Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("unasnap-bench: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: &Command) -> Result<()> {
    if !matches!(command, Command::Published(_)) {
        isolate()?;
    }
    match command {
        Command::Colour { rounds } => colour::run(*rounds),
        Command::Pause(options) => tokio()?.block_on(vm::pause::run(options)),
        Command::Restore(options) => tokio()?.block_on(vm::restore::run(options)),
        Command::Published(options) => published::run(options, &tokio()?),
    }
}

/// What drives hypervisors.
fn tokio() -> Result<Runtime> {
    Builder::new_multi_thread().enable_all().build().context("starting tokio")
}

/// Devices, rules, mounts and pins are nobody else's. Must come before the first thread.
fn isolate() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).context("namespaces: run this as root")?;
    let nothing = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(nothing, "/", nothing, private, nothing).context("making mounts private")?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), nothing)
        .context("mounting a BPF file system")
}

//! `cargo xtask`: everything a developer or a new user runs.
//!
//! ```text
//! setup   install what is missing on this machine (says first what that is)
//! build   release programs, static guest programs, the guests' initramfs
//! package the guest agent as a Debian package
//! demo    snapshot a running ring on real VMs, kill everything, restore, finish
//! control show what cuts do to a TCP stream without colouring, and with it
//! bank    prove that restored snapshots are consistent, and that the proof finds the published mistakes
//! chaos   kill, cut, fill and hang everything at every step, and prove that nothing is broken
//! prove   explore and simulate the protocol's state machines, and see that every known mistake is found
//! bench   what it costs, against every alternative
//! fuzz    every decoder against made-up inputs
//! deny    licences, sources and known defects of all dependencies
//! test    every check there is
//! ```

mod bank;
mod bench;
mod build;
mod chaos;
mod demo;
mod deny;
mod fuzz;
mod guest_image;
mod interrupt;
mod lab;
mod layout;
mod package;
mod process;
mod prove;
mod setup;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::layout::Layout;

/// Everything a developer or a new user runs
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing on this machine
    Setup {
        /// Only say what is missing
        #[arg(long)]
        dry_run: bool,
    },
    /// Build the release programs and the guests' initramfs
    Build,
    /// Build the guest agent's Debian package
    Package,
    /// Snapshot a running ring on real VMs, kill everything, restore, finish
    Demo(demo::Options),
    /// Show that a stream restored from cuts apart hangs without colouring and goes on with it
    Control(demo::control::Options),
    /// Prove that restored snapshots are consistent, and that the proof finds the published mistakes
    Bank(bank::Options),
    /// Kill, cut, fill and hang everything at every step, and prove that nothing is broken
    Chaos(chaos::Options),
    /// Explore every interleaving of small systems and simulate large ones, on the code that ships
    Prove(prove::Options),
    /// Measure what unasnap costs, against every alternative, side by side
    Bench(bench::Options),
    /// Try made-up inputs on every decoder
    Fuzz(fuzz::Options),
    /// Check licences, sources and known defects of all dependencies
    Deny(deny::Options),
    /// Run every check there is
    Test {
        /// Only the tests of the VirtualBox driver, with the real VirtualBox
        #[arg(long)]
        virtualbox: bool,
    },
}

fn main() -> ExitCode {
    match interrupt::install().and_then(|()| execute(Arguments::parse().command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<()> {
    let layout = Layout::find()?;
    match command {
        Command::Setup { dry_run } => setup::run(&layout, dry_run),
        Command::Demo(options) => demo::run(&layout, &options),
        Command::Control(options) => demo::control::run(&layout, &options),
        Command::Bank(options) => bank::run(&layout, &options),
        Command::Chaos(options) => chaos::run(&layout, &options),
        Command::Prove(options) => prove::run(&layout, &options),
        Command::Bench(options) => bench::run(&layout, &options),
        Command::Fuzz(options) => fuzz::run(&layout, &options),
        Command::Deny(options) => deny::run(&layout, &options),
        Command::Test { virtualbox: true } => test::run_virtualbox(&layout),
        Command::Test { virtualbox: false } => test::run(&layout),
        Command::Build => build::build(&layout).map(|_| ()),
        Command::Package => package::run(&layout),
    }
}

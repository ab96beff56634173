//! `unasnap-host`: the agent that runs on every host.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use unasnap_host::colouring::host::KernelTaps;
use unasnap_host::config::Config;

/// Snapshots and restores the VMs of this host for unasnap's coordinator.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run until told to stop. VMs outlive the agent and are adopted again at its next start.
    Run {
        /// The host's configuration.
        #[arg(long, default_value = "/etc/unasnap/host.toml")]
        config: PathBuf,
    },
    /// Take the programs off the taps of this agent's VMs and forget their state. For when the agent does not run.
    Detach {
        /// The host's configuration.
        #[arg(long, default_value = "/etc/unasnap/host.toml")]
        config: PathBuf,
    },
}

// More threads than small machines have processors: members whose files wait for a busy disk must not hold up the words to the
// coordinator, which takes five seconds of silence for death.
#[tokio::main(worker_threads = 8)]
async fn main() -> Result<()> {
    // Snapshots hold the guests' memory: nothing that this program or QEMU writes is for other users.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match Arguments::parse().command {
        Command::Run { config } => unasnap_host::run::run(Config::load(&config)?).await,
        Command::Detach { config } => KernelTaps::new(&Config::load(&config)?.state_dir).forget_all(),
    }
}

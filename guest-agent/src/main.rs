//! `unasnap-guest`: the guest agent's command line.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use aya_log::EbpfLogger;
use clap::{Parser, Subcommand};
use log::{info, warn};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use unasnap_guest::{agent::Agent, interfaces::Choice, log as lines, serve};
use unasnap_loader::{Installation, Pins, Side, Site, attach, maps::Maps};

/// Colours and filters this guest's packets for consistent global snapshots.
#[derive(Parser)]
#[command(name = "unasnap-guest", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Attach the programs and serve the host agent until killed; the programs stay attached.
    Run {
        /// Attach to this interface (may be given several times); without it, to every network card.
        #[arg(long = "interface", value_name = "NAME")]
        interfaces: Vec<String>,
        /// Serve this device or unix socket instead of the virtio-serial port org.unasnap.guest.0.
        #[arg(long, value_name = "PATH")]
        port: Option<PathBuf>,
        /// Write what the programs in the kernel log (every drop) to stderr.
        #[arg(long)]
        ebpf_log: bool,
    },
    /// Take the programs off every interface and forget their state.
    Detach,
    /// Print the programs' counters, one `name value` a line.
    Counters,
}

fn main() -> ExitCode {
    lines::to_stderr();
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("unasnap-guest: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Run { interfaces, port, ebpf_log } => {
            let mut agent = start(interfaces, ebpf_log)?;
            serve::serve(&mut agent, port.as_deref())
        }
        Command::Detach => attach::detach_guest(),
        Command::Counters => print_counters(),
    }
}

fn start(named: Vec<String>, ebpf_log: bool) -> Result<Agent> {
    let choice = Choice::new(named);
    let site = Site::new(Side::Guest, Pins::of_guest());
    let mut installation = Installation::install(&site, &choice.interfaces()?, ebpf_log)?;
    if ebpf_log {
        let log = installation.log(lines::StderrLog)?;
        std::thread::spawn(move || follow(log));
    }
    give_back_memory();
    take_precedence();
    info!("the state word is {:?}", installation.maps().word.load());
    Ok(Agent::new(installation, choice))
}

fn print_counters() -> Result<()> {
    for (counter, value) in Maps::open(&Pins::of_guest())?.counters()? {
        println!("{} {value}", counter.name());
    }
    Ok(())
}

fn follow(mut log: EbpfLogger<lines::StderrLog>) {
    use std::os::fd::AsFd as _;
    loop {
        let mut polled = [PollFd::new(log.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => log.flush(),
            Err(error) => return warn!("the programs' log cannot be read any more: {error}"),
        }
    }
}

/// Loading parses the kernel's type information, several megabytes that are not needed again.
fn give_back_memory() {
    // SAFETY: no preconditions.
    unsafe { libc::malloc_trim(0) };
}

/// A flip should not wait behind the application: real-time priority, where the guest allows it.
fn take_precedence() {
    let lowest_realtime = libc::sched_param { sched_priority: 1 };
    // SAFETY: 0 is this thread, and the parameter lives through the call.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const lowest_realtime) } != 0 {
        info!("no real-time priority: {}", std::io::Error::last_os_error());
    }
}

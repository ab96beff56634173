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
use unasnap_guest::{access::Access, agent::Agent, interfaces::Choice, log as lines, relay, serve};
use unasnap_loader::{Installation, Pins, Side, Site, attach, maps::Maps};
use unasnap_protocol::access::Right;

/// Colours and filters this guest's packets for consistent global snapshots.
#[derive(Parser)]
// `unasnap image check` finds the release in the file, without running it, by these words.
#[command(name = "unasnap-guest", version, after_help = concat!("Release: unasnap-guest/", env!("CARGO_PKG_VERSION"), ";"))]
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
        /// Let the host's operators do this here, as root: `exec` runs commands, `files` reads and writes files.
        #[arg(long, value_name = "exec,files", value_delimiter = ',')]
        allow: Vec<Right>,
    },
    /// Hand one request of the host to the agent that runs here, and print its answer: for a host without a port to this guest.
    Relay {
        /// The request, a word that the host agent makes.
        #[arg(required_unless_present = "file")]
        request: Option<String>,
        /// Take the request from this file, and delete it.
        #[arg(long, value_name = "PATH", conflicts_with = "request")]
        file: Option<PathBuf>,
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
        Command::Run { interfaces, port, ebpf_log, allow } => {
            let mut agent = start(interfaces, ebpf_log, allow)?;
            serve::serve(&mut agent, port.as_deref())
        }
        Command::Relay { request, file } => {
            let request = match file {
                Some(file) => relay::taken(&file)?,
                None => request.unwrap_or_default(),
            };
            println!("{}", relay::hand_over(&request)?);
            Ok(())
        }
        Command::Detach => attach::detach_guest(),
        Command::Counters => print_counters(),
    }
}

fn start(named: Vec<String>, ebpf_log: bool, allow: Vec<Right>) -> Result<Agent> {
    let choice = Choice::new(named);
    let site = Site::new(Side::Guest, Pins::of_guest());
    let mut cards = choice.interfaces()?;
    let mut installation = loop {
        match Installation::install(&site, &cards, ebpf_log) {
            Ok(installation) => break installation,
            // While the programs are loaded at boot, udev gives cards their names.
            Err(error) => {
                let now = choice.interfaces()?;
                if now == cards {
                    return Err(error);
                }
                cards = now;
            }
        }
    };
    if ebpf_log {
        let log = installation.log(lines::StderrLog)?;
        std::thread::spawn(move || follow(log));
    }
    give_back_memory();
    take_precedence();
    info!("the state word is {:?}", installation.maps().word.load());
    Ok(Agent::new(installation, choice, Access::new(allow)))
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

/// A flip should not wait behind the application: real-time priority, where the guest allows it. For this thread only, and not
/// for what it starts.
fn take_precedence() {
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    let lowest_realtime = libc::sched_param { sched_priority: 1 };
    // SAFETY: 0 is this thread, and the parameter lives through the call.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const lowest_realtime) } != 0 {
        info!("no real-time priority: {}", std::io::Error::last_os_error());
    }
}

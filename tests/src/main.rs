//! `unasnap-ring`: the workloads that run inside member VMs.

use std::fs::File;
use std::io::BufReader;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use serde_json::json;
use unasnap_tests::bank::book::State;
use unasnap_tests::bank::check::check;
use unasnap_tests::bank::control::{self, Request};
use unasnap_tests::bank::member;
use unasnap_tests::meter::announce;
use unasnap_tests::ring::{manager, node};
use unasnap_tests::{disk, gauge, stream};

/// Longest time for a guest to answer one question.
const ANSWER: Duration = Duration::from_secs(60);

/// Workloads whose outcome tells whether a restore lost or doubled anything.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Manage a ring: wait for its nodes, start them, print the result
    Manager {
        /// Address to listen on
        #[arg(long)]
        listen: SocketAddr,
        /// Nodes to wait for
        #[arg(long)]
        nodes: u64,
        /// Number of the last token
        #[arg(long)]
        tokens: u64,
        /// What the run is called in its result
        #[arg(long, default_value = "")]
        label: String,
        /// Append tokens, seconds, label and date to this file
        #[arg(long)]
        csv: Option<PathBuf>,
        /// Steps of floating-point work per token
        #[arg(long, default_value_t = 100)]
        work: u32,
    },
    /// Be a node of a ring
    Node {
        /// The manager's address
        #[arg(long)]
        manager: SocketAddr,
        /// Address to listen on for the predecessor
        #[arg(long)]
        listen: SocketAddr,
        /// Unique name; the ring's order is the order of the names
        #[arg(long)]
        name: String,
        /// Observer who is shown each token
        #[arg(long)]
        show: Option<SocketAddr>,
    },
    /// One busy TCP stream with every byte checked
    #[command(subcommand)]
    Stream(Stream),
    /// Every member pays every other
    #[command(subcommand)]
    Bank(Bank),
    /// Prove from the banks' states that a restored snapshot was consistent, or say where it was not
    Check {
        /// Files as `bank ask ADDRESS state` prints them, one of each member
        #[arg(required = true)]
        states: Vec<PathBuf>,
    },
    /// What the benchmark does and asks inside a guest
    #[command(subcommand)]
    Gauge(Gauge),
    /// Count on a disk and check that it holds what was written
    Disk {
        /// File or whole disk; its first 4096 bytes are overwritten
        #[arg(long)]
        path: PathBuf,
    },
}

#[derive(Subcommand)]
enum Stream {
    /// Answer blocks
    Serve {
        /// Address to listen on
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Send blocks for ever
    Run {
        /// The server's address
        #[arg(long)]
        connect: SocketAddr,
        /// Bytes per block
        #[arg(long, default_value_t = 16384)]
        block: u32,
        /// Observer who is shown each answer
        #[arg(long)]
        show: Option<SocketAddr>,
    },
}

#[derive(Subcommand)]
enum Gauge {
    /// Answer questions
    Serve {
        /// Address to listen on
        #[arg(long)]
        listen: SocketAddr,
        /// Observer who is shown the load's events
        #[arg(long)]
        show: Option<SocketAddr>,
        /// Observe at this address what others show
        #[arg(long)]
        observe: Option<SocketAddr>,
    },
    /// Ask one question and print the answer, both as JSON
    Ask {
        /// Where the gauge answers
        gauge: SocketAddr,
        /// The question
        question: String,
    },
}

#[derive(Subcommand)]
enum Bank {
    /// Send and receive for ever
    Run {
        /// This member's number, from 1
        #[arg(long)]
        member: u32,
        /// Where all members listen, in the order of their numbers
        #[arg(long, value_delimiter = ',', required = true)]
        members: Vec<SocketAddr>,
        /// Address to answer requests at
        #[arg(long)]
        control: SocketAddr,
        /// Between two transfers on a connection, and between two rounds of datagrams, in microseconds
        #[arg(long, default_value_t = 4000)]
        pause_us: u64,
        /// Observer who is shown each arrival
        #[arg(long)]
        show: Option<SocketAddr>,
    },
    /// Ask a member and print its state as JSON
    Ask {
        /// Where the member answers requests
        member: SocketAddr,
        /// What it is to do
        request: Request,
    },
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let (tag, who) = match &command {
        Command::Manager { .. } => ("RING-FAILED", "manager".to_owned()),
        Command::Node { name, .. } => ("RING-FAILED", name.clone()),
        Command::Stream(Stream::Serve { .. }) => ("STREAM-FAILED", "serve".to_owned()),
        Command::Stream(Stream::Run { .. }) => ("STREAM-FAILED", "run".to_owned()),
        Command::Gauge(_) => ("GAUGE-FAILED", "gauge".to_owned()),
        Command::Disk { path } => ("DISK-FAILED", path.display().to_string()),
        Command::Bank(Bank::Run { member, .. }) => ("BANK-FAILED", member.to_string()),
        Command::Bank(Bank::Ask { member, .. }) => ("BANK-FAILED", member.to_string()),
        Command::Check { .. } => ("CHECK-FAILED", "check".to_owned()),
    };
    match execute(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            announce(tag, &json!({"name": who, "reason": format!("{error:#}")}));
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<()> {
    match command {
        Command::Manager { listen, nodes, tokens, label, csv, work } => {
            let config = manager::RunConfig { nodes, tokens, work, label, csv };
            let result = manager::run(&bind(listen)?, &config)?;
            announce("RING-RESULT", &serde_json::to_value(result).context("encoding the result")?);
        }
        Command::Node { manager, listen, name, show } => {
            node::run(&node::NodeConfig { manager, listen, name, observer: show })?;
        }
        Command::Stream(Stream::Serve { listen }) => stream::serve(&bind(listen)?)?,
        Command::Gauge(Gauge::Serve { listen, show, observe }) => {
            gauge::server::serve(&bind(listen)?, show, observe)?;
        }
        Command::Gauge(Gauge::Ask { gauge, question }) => {
            let question = serde_json::from_str(&question).context("the question")?;
            let (answer, _) = gauge::Gauge::connect(gauge, ANSWER)?.ask(&question)?;
            println!("{}", serde_json::to_string(&answer).context("the answer")?);
        }
        Command::Disk { path } => disk::count(&disk::open(&path)?)?,
        Command::Stream(Stream::Run { connect, block, show }) => stream::run(connect, block, show)?,
        Command::Bank(Bank::Run { member, members, control, pause_us, show }) => {
            let pause = Duration::from_micros(pause_us);
            member::run(&member::MemberConfig { member, members, control, pause, show })?;
        }
        Command::Bank(Bank::Ask { member, request }) => {
            let state = control::ask(member, request)?;
            println!("{}", serde_json::to_string(&state).context("encoding the state")?);
        }
        Command::Check { states } => check_files(&states)?,
    }
    Ok(())
}

/// Prints what the check found; a violation is a failure.
fn check_files(files: &[PathBuf]) -> Result<()> {
    let read = |path: &PathBuf| -> Result<State> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        serde_json::from_reader(BufReader::new(file)).with_context(|| format!("reading {}", path.display()))
    };
    let states = files.iter().map(read).collect::<Result<Vec<_>>>()?;
    let verdict = check(&states)?;
    println!("{}", serde_json::to_string(&verdict).context("encoding the verdict")?);
    let found: Vec<_> = verdict.violations.iter().map(ToString::to_string).collect();
    ensure!(found.is_empty(), "{}", found.join("; "));
    Ok(())
}

fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("listening on {address}"))
}

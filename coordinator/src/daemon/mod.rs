//! The coordinator. One task owns all state and is the only one that decides; connections are small
//! tasks that feed it.
//!
//! ```text
//!  host agents  ---- hello, inventory, answers ---->  connections --- Input --> owner --- journal (fsync)
//!               <--- orders -----------------------   outboxes <--------------'  |
//!  operators    ---- one request ----------------->   connections --- Input ---->|
//!               <--- progress, answer -------------   replies <------------------'
//! ```
//!
//! | module | what is in it |
//! |---|---|
//! | `admission` | how many may be connected, before and after they are known |
//! | `outbox` | what waits for a host |
//! | `connections` | frames to inputs and back; who may speak |
//! | `owner` | the state, the one `select!`, the clock |
//! | `hosts` | hosts come, report and go |
//! | `clocks` | how far the hosts' clocks are apart, and what follows for a snapshot |
//! | `requests` | what operators ask |
//! | `planning` | who takes part in a snapshot, and whether it may begin |
//! | `taking` | carries out the snapshot's state machine |
//! | `placing` | where the members of a restore run, and whence their files come |
//! | `homes` | where VMs live that were restored elsewhere |
//! | `replicating` | copies of snapshots on other hosts |
//! | `standing` | members that end their pauses together |
//! | `restoring` | carries out the restore's state machine |
//! | `verifying` | compares files of snapshots with their digests |
//! | `controlling` | starts, stops, pauses, resumes and resets VMs |
//! | `chores` | what hosts are asked that is no member's affair |
//! | `coming` | what has to be so before VMs come or go |
//! | `cloning` | VMs with the disks of one that lives on another host |
//! | `catalogue` | which images there are, and which hosts have them |
//! | `access_link`, `accessing` | hands on what operators do in guests |
//! | `pausing` | saves a whole deployment and powers it off, and brings it back |
//! | `deleting` | removes files of snapshots |
//! | `journal` | what outlives the coordinator |
//! | `registry` | who is connected |

mod access_link;
mod accessing;
mod admission;
mod catalogue;
mod chores;
mod clocks;
mod cloning;
mod coming;
mod connections;
mod controlling;
mod deleting;
mod homes;
mod hosts;
mod journal;
mod outbox;
mod owner;
mod pausing;
mod placing;
mod planning;
mod preloading;
mod registry;
mod replicating;
mod requests;
mod restoring;
mod standing;
mod taking;
mod verifying;
mod yielding;

use std::fs;
use std::io::IsTerminal;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing_subscriber::EnvFilter;
use unasnap_channel::Listener;
use unasnap_protocol::fault::Fault;

use crate::config::CoordinatorConfig;
use crate::failure::{CliError, Result};
use journal::Journal;
use owner::Owner;

/// Inputs that may wait for the owner before connections are slowed down.
const INPUTS: usize = 1024;

/// Runs until SIGTERM or SIGINT.
pub async fn run(config: &CoordinatorConfig) -> Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
    let trust = config.trust()?;
    let folder = config.state_dir.display();
    fs::create_dir_all(&config.state_dir).map_err(|error| {
        CliError::usage(format!("cannot make state_dir {folder}: {error}; check its permissions"))
    })?;
    let journal = Journal::open(&config.state_dir.join("journal.redb"))
        .map_err(|error| CliError::internal(error.to_string()))?;
    let listener = Listener::bind(config.listen, trust.clone()).map_err(|error| {
        CliError::usage(format!(
            "cannot listen on {}: {error}; choose another `listen`, or stop the coordinator that runs already",
            config.listen
        ))
    })?;
    tracing::info!(term = journal.term(), "listening on {}", config.listen);
    let (inputs, incoming) = mpsc::channel(INPUTS);
    let accepting = tokio::spawn(admission::accept(listener, trust, inputs));
    let stop = async {
        let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
        let (Ok(mut terminate), Ok(mut interrupt)) = signals else { return std::future::pending().await };
        tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
    };
    let ended = Owner::new(journal, config.replicas(), fault()?).run(incoming, stop).await;
    accepting.abort();
    ended.map_err(|error| CliError::internal(error.to_string()))
}

/// The mistake that a test wants, said loudly.
fn fault() -> Result<Fault> {
    let Ok(label) = std::env::var(Fault::SWITCH) else { return Ok(Fault::None) };
    let fault = Fault::from_label(&label);
    let fault =
        fault.ok_or_else(|| CliError::usage(format!("{}: there is no fault {label:?}", Fault::SWITCH)))?;
    tracing::error!("{}={label}: snapshots are wrong on purpose", Fault::SWITCH);
    Ok(fault)
}

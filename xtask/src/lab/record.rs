//! What `unasnap --json` prints, as far as it is used here. Times are unix nanoseconds.

use serde::{Deserialize, Serialize};

/// `snapshot take`.
#[derive(Debug, Clone, Deserialize)]
pub struct Taken {
    /// The snapshot.
    pub snapshot: Snapshot,
}

/// One global snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name.
    pub id: String,
    /// Epoch before the cut.
    pub epoch: u64,
    /// How RAM was taken.
    pub ram_way: String,
    /// Last cut instant minus first.
    pub skew_ms: f64,
    /// How far that may be off; `None` when the hosts' clocks were not compared.
    pub skew_bound_ms: Option<f64>,
    /// The slowest local snapshot.
    pub save_ms: f64,
    /// From TAKE to COMMIT.
    pub global_ms: f64,
    /// One per VM.
    pub members: Vec<Member>,
    /// The coordinator's steps.
    pub phases: Phases,
}

impl Snapshot {
    /// For a reader: skew and what it may be off, ms.
    pub fn skew(&self) -> String {
        match self.skew_bound_ms {
            Some(bound) => format!("{:.1} ± {bound:.1}", self.skew_ms),
            None => format!("{:.1} ± ?", self.skew_ms),
        }
    }
}

/// One VM's part.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Member {
    /// The VM.
    pub vm: String,
    /// Its host.
    pub host: String,
    /// How its packets were coloured.
    pub colouring: String,
    /// How long its vCPUs stood still.
    pub pause_ms: f64,
    /// The snapshot instant, counted from the first VM's.
    pub after_first_ms: f64,
    /// The straddle begins.
    pub send_flipped_ns: u64,
    /// vCPUs stopped.
    pub stopped_ns: u64,
    /// vCPUs run again.
    pub resumed_ns: u64,
    /// The straddle ends.
    pub receive_flipped_ns: u64,
    /// Durable.
    pub saved_ns: u64,
}

/// When the coordinator took each step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Phases {
    /// PREPARE sent.
    pub prepare_ns: u64,
    /// ARM sent.
    pub arm_ns: u64,
    /// TAKE sent.
    pub take_ns: u64,
    /// The instant for which the cuts were ordered, if they were.
    pub cut_at_ns: Option<u64>,
    /// CLEAR sent.
    pub clear_ns: u64,
    /// COMMIT journaled.
    pub commit_ns: u64,
}

/// `restore`.
#[derive(Debug, Clone, Deserialize)]
pub struct Restored {
    /// What was done.
    pub restore: Restore,
}

/// A restore.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Restore {
    /// What was restored.
    pub snapshot: String,
    /// From the request until every VM ran.
    pub restore_ms: f64,
    /// Of that, moving files to the hosts on which their VMs were to run.
    pub fetch_ms: f64,
    /// Of that, verifying the files.
    pub poll_ms: f64,
    /// Of that, loading the VMs.
    pub load_ms: f64,
    /// Of that, starting them and waking their guests.
    pub start_ms: f64,
    /// VMs whose files were moved.
    pub fetched: Vec<Fetched>,
}

/// A VM that was restored on another host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fetched {
    /// The VM.
    pub vm: String,
    /// Whence its files came.
    pub from: String,
    /// Where it runs.
    pub to: String,
    /// Bytes that were moved.
    pub sent: u64,
    /// Bytes that it consists of.
    pub total: u64,
}

/// `status`.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// Hosts known.
    pub hosts: Vec<Host>,
    /// VMs known.
    pub vms: Vec<Vm>,
    /// Snapshots and restores under way.
    #[serde(default)]
    pub courses: Vec<Course>,
}

/// A snapshot or restore under way.
#[derive(Debug, Clone, Deserialize)]
pub struct Course {
    /// What is taken or restored.
    pub snapshot: String,
    /// The step.
    pub phase: String,
}

/// `snapshot list`.
#[derive(Debug, Clone, Deserialize)]
pub struct Listed {
    /// Usable snapshots, the oldest first.
    pub snapshots: Vec<Entry>,
}

/// One of them.
#[derive(Debug, Clone, Deserialize)]
pub struct Entry {
    /// Its name.
    pub id: String,
    /// `committed`, or with `--all` where it stands otherwise.
    pub state: String,
}

/// One host.
#[derive(Debug, Clone, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Is its agent connected?
    pub connected: bool,
}

/// One VM.
#[derive(Debug, Clone, Deserialize)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// Where it lives.
    pub host: String,
    /// What the hypervisor says.
    pub state: Option<String>,
    /// Does its guest agent answer?
    pub guest_agent: Option<bool>,
}

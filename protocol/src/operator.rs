//! Operator's command <-> coordinator. One request per connection; progress may come first, then the
//! answer.
//!
//! ```text
//! operator's command               coordinator
//!   Request ----------------------->
//!        <----- Progress (at least once a second while something is under way)
//!        <----- Record ... End | Restored | Deleted | Status | Failed
//! ```
//!
//! The structs are also what `--json` prints, so their fields are named for programs: `_ns` are unix
//! nanoseconds, `_ms` are milliseconds.

use serde::{Deserialize, Serialize};

use crate::access::{AccessReply, AccessRequest, ConsoleReport, ConsoleRequest};
use crate::control::{Colouring, CutReport, Failure, Phase, SavedReport, VmState};
use crate::elsewhere::{Copies, FetchProgress, FetchedMember, RestoreRequest};
use crate::guest::Epoch;
use crate::household::{HouseholdReport, HouseholdRequest};
use crate::image::{ImageRecord, ImageRequest};
use crate::name::Name;
use crate::power::{ControlReport, ControlRequest, GivingWay, PauseReport, PausedDeployment};

/// Longest time between two replies to one request, seconds.
pub const MAX_SILENCE_S: u64 = 15;
/// First message number of this channel's messages.
pub const FIRST_NUMBER: u16 = 160;

messages! {
    /// What an operator asks for.
    pub enum Request with () {
        /// Answered by `Status`.
        160 => Status(()),
        /// Take a snapshot of this deployment, or of the only one. `Progress`, then one `Record`, `End`.
        161 => Take(Option<Name>),
        /// Usable snapshots, or with `true` all that are known: one `Record` each, `End`.
        162 => List(bool),
        /// One snapshot: `Record`, `End`.
        163 => Show(Name),
        /// Answered by `Deleted`.
        164 => Delete(Name),
        /// Restore this snapshot, or the newest usable one. `Progress`, then `Restored`.
        165 => Restore(Option<Name>),
        /// Compare every byte of this snapshot with its digests. `Progress`, then `Verified`.
        166 => Verify(Name),
        /// Start, stop, pause, resume or reset VMs. `Progress`, then `Controlled`.
        167 => Control(ControlRequest),
        /// Take a snapshot of this deployment, then power it off. `Progress`, then `Paused`.
        168 => Pause(Name),
        /// Restore the snapshot in which this deployment was paused. `Progress`, then `Restored`, or `Runs`.
        169 => Resume(Name),
        /// The bases of this host, or of all that are connected. Answered by `Household`.
        170 => Bases(Option<Name>),
        /// Make or delete a VM, or register a base. `Progress`, then `Household`.
        171 => Household(HouseholdRequest),
        /// Restore with some VMs on hosts that are named. `Progress` and `Fetching`, then `Restored`.
        172 => RestoreAt(RestoreRequest),
        /// The image catalogue. Answered by `Image`, `End`, or both.
        173 => Image(ImageRequest),
        /// Use guests: the only request that others follow on the same connection. `Access`.
        174 => Access(AccessRequest),
        /// Answered by `Console`.
        175 => Console(ConsoleRequest),
        /// Let a deployment give way to the users of its hosts, or not any more. `GivesWay`.
        240 => GiveWay(GivingWay),
    }
}

messages! {
    /// What the coordinator replies.
    pub enum Reply with () {
        /// How far a snapshot or restore is.
        176 => Progress(Progress),
        /// One snapshot.
        177 => Record(Box<SnapshotRecord>),
        /// No more records.
        178 => End(()),
        /// Every member runs again.
        179 => Restored(RestoreReport),
        /// The snapshot is gone, or will be.
        180 => Deleted(DeleteReport),
        /// The whole state.
        181 => Status(Box<StatusReport>),
        /// Every host has looked.
        182 => Verified(VerifyReport),
        /// What became of it at each VM.
        183 => Controlled(ControlReport),
        /// The deployment is saved, and this became of powering it off.
        184 => Paused(PauseReport),
        /// All of this deployment runs: there is nothing to resume.
        185 => Runs(Name),
        /// What became of it on each host.
        186 => Household(HouseholdReport),
        /// How far files of a restore are on their way.
        187 => Fetching(FetchProgress),
        /// One version of an image.
        188 => Image(Box<ImageRecord>),
        /// What comes of using guests.
        189 => Access(AccessReply),
        /// The end of a VM's console.
        190 => Console(ConsoleReport),
        /// That is so from now on.
        241 => GivesWay(GivingWay),
        /// The request was not carried out.
        191 => Failed(RequestError),
        /// After a `Record` of a usable snapshot that was asked for: where its files lie.
        195 => Copies(Copies),
    }
}

/// How far a snapshot or restore is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is taken or restored.
    pub snapshot: Name,
    /// The step that is under way.
    pub phase: Phase,
    /// All members.
    pub members: Vec<Name>,
    /// Members whose answer this step still misses.
    pub waiting: Vec<Name>,
}

/// Kind of a failed request: stable over releases; the command's exit code follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RequestErrorKind {
    /// The connection's role may not ask this.
    NotAllowed,
    /// No such snapshot, deployment, host or VM.
    NotFound,
    /// It cannot be done now.
    Refused,
    /// It was begun and undone.
    Aborted,
    /// A wait ran out.
    TimedOut,
    /// A defect or an error of the coordinator's machine.
    Internal,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct RequestError {
    /// Stable code.
    pub kind: RequestErrorKind,
    /// What failed, why, what to do.
    pub text: String,
}

impl RequestError {
    /// An error with its words.
    pub fn new(kind: RequestErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

/// Where a global snapshot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotState {
    /// Being taken.
    Open,
    /// Usable.
    Committed,
    /// Undone; kept as a record only.
    Aborted,
    /// Its files are being removed.
    Deleting,
}

/// One global snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Its name.
    pub id: Name,
    /// Whose it is.
    pub deployment: Name,
    /// Epoch before the cut.
    pub epoch: Epoch,
    /// Where it stands.
    pub state: SnapshotState,
    /// Why it was aborted.
    pub failure: Option<Failure>,
    /// Were all members coloured? If not, the restored system may hang or lose data.
    pub consistent: bool,
    /// How RAM was taken; several ways are joined by commas.
    pub ram_way: String,
    /// When PREPARE was sent, RFC 3339, UTC.
    pub created: String,
    /// Every member, in the order of their names.
    pub members: Vec<MemberRecord>,
    /// When the coordinator took each step.
    pub phases: PhaseTimes,
    /// Last cut instant minus first, by the coordinator's clock.
    pub skew_ms: Option<f64>,
    /// The true skew is at most this far from `skew_ms`; `None` when it is not known how far the hosts' clocks are apart.
    pub skew_bound_ms: Option<f64>,
    /// The slowest local snapshot, from the start of its cut until it was durable.
    pub save_ms: Option<f64>,
    /// From TAKE sent to COMMIT journaled.
    pub global_ms: Option<f64>,
}

/// When the coordinator took each step, unix nanoseconds of its clock. It goes on evenly from the wall clock at the
/// coordinator's start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTimes {
    /// PREPARE sent.
    pub prepare_ns: Option<u64>,
    /// ARM sent.
    pub arm_ns: Option<u64>,
    /// TAKE sent.
    pub take_ns: Option<u64>,
    /// The instant at which all members were to cut; `None` when TAKE meant "at once".
    pub cut_at_ns: Option<u64>,
    /// CLEAR sent.
    pub clear_ns: Option<u64>,
    /// COMMIT journaled.
    pub commit_ns: Option<u64>,
}

/// One member's part of a global snapshot. What it never reached is `None`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// The VM.
    pub vm: Name,
    /// Where its files lie.
    pub host: Name,
    /// How its packets were coloured.
    pub colouring: Colouring,
    /// How its RAM was taken.
    pub ram_way: String,
    /// How long its vCPUs stood still.
    pub pause_ms: Option<f64>,
    /// How far the translation of the following times into the coordinator's clock may be off; `None` when the host's
    /// clock was never compared, and then they are the host's own.
    pub clock_bound_ms: Option<f64>,
    /// The straddle begins, unix nanoseconds of the coordinator's clock, like the next four.
    pub send_flipped_ns: Option<u64>,
    /// vCPUs stopped.
    pub stopped_ns: Option<u64>,
    /// The snapshot instant.
    pub instant_ns: Option<u64>,
    /// vCPUs run again.
    pub resumed_ns: Option<u64>,
    /// The straddle ends.
    pub receive_flipped_ns: Option<u64>,
    /// The local snapshot was durable.
    pub saved_ns: Option<u64>,
    /// The snapshot instant, counted from the first member's.
    pub after_first_ms: Option<f64>,
    /// From the start of the cut until it was durable.
    pub local_ms: Option<f64>,
    /// blake3 of its manifest, hexadecimal.
    pub digest: Option<String>,
    /// Bytes on disk.
    pub bytes: Option<u64>,
    /// Where the pause went.
    pub parts: Vec<PartRecord>,
    /// Connections to the outside, which do not survive a restore; `None` when the guest cannot tell.
    pub outside_connections: Option<u32>,
}

/// One part of a pause.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartRecord {
    /// What was done.
    pub name: String,
    /// How long it took.
    pub ms: f64,
}

impl MemberRecord {
    /// A member of which nothing is known yet but where it is.
    #[must_use]
    pub fn new(vm: Name, host: Name, colouring: Colouring, ram_way: String) -> Self {
        Self {
            vm,
            host,
            colouring,
            ram_way,
            pause_ms: None,
            clock_bound_ms: None,
            send_flipped_ns: None,
            stopped_ns: None,
            instant_ns: None,
            resumed_ns: None,
            receive_flipped_ns: None,
            saved_ns: None,
            after_first_ms: None,
            local_ms: None,
            digest: None,
            bytes: None,
            parts: Vec::new(),
            outside_connections: None,
        }
    }

    /// Enters what its CUT said, in times of the coordinator's clock but for this many nanoseconds at most.
    pub fn set_cut(&mut self, cut: &CutReport, clock_bound_ns: Option<u64>) {
        self.colouring = cut.colouring;
        self.pause_ms = Some(ms(cut.pause_ns()));
        self.clock_bound_ms = clock_bound_ns.map(ms);
        self.send_flipped_ns = Some(cut.send_flipped_ns);
        self.stopped_ns = Some(cut.stopped_ns);
        self.instant_ns = Some(cut.instant_ns);
        self.resumed_ns = Some(cut.resumed_ns);
        self.receive_flipped_ns = Some(cut.receive_flipped_ns);
        let part = |(name, ns): &(String, u64)| PartRecord { name: name.clone(), ms: ms(*ns) };
        self.parts = cut.parts.iter().map(part).collect();
        self.outside_connections = cut.outside_connections;
    }

    /// Enters what its SAVED said.
    pub fn set_saved(&mut self, saved: &SavedReport) {
        self.saved_ns = Some(saved.saved_ns);
        self.digest = Some(saved.digest.iter().map(|byte| format!("{byte:02x}")).collect());
        self.bytes = Some(saved.bytes);
        // A straddle begins before the stop, an atomic flip comes after it.
        let start = self.send_flipped_ns.min(self.stopped_ns);
        self.local_ms = start.map(|start| ms(saved.saved_ns.saturating_sub(start)));
    }
}

/// Nanoseconds as milliseconds.
#[must_use]
pub fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// What a restore has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// What was restored.
    pub snapshot: Name,
    /// The incarnation that runs now.
    pub incarnation: u64,
    /// From the request until every member ran.
    pub restore_ms: f64,
    /// Of that, until all files were where their VMs were to run.
    pub fetch_ms: f64,
    /// Of that, until every host had verified its files.
    pub poll_ms: f64,
    /// Of that, until the old instances were dead and the new ones loaded.
    pub load_ms: f64,
    /// Of that, until every guest was awake and knew its members and the time.
    pub start_ms: f64,
    /// Who runs where.
    pub members: Vec<Place>,
    /// Members whose files came from another host.
    pub fetched: Vec<FetchedMember>,
    /// What was not done, in words.
    pub warnings: Vec<String>,
}

/// A VM and its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The VM.
    pub vm: Name,
    /// Its host.
    pub host: Name,
}

/// What a deletion has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteReport {
    /// What is deleted; it can no longer be restored.
    pub snapshot: Name,
    /// Members whose files are still there: their hosts remove them when they are connected again.
    pub waiting: Vec<Place>,
}

/// What a verification has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// What was verified.
    pub snapshot: Name,
    /// Every member, in the order of their names.
    pub members: Vec<VerifiedMember>,
}

/// One member's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedMember {
    /// The VM.
    pub vm: Name,
    /// Where its files lie.
    pub host: Name,
    /// What is wrong, in words; `None` when every byte is as it was saved.
    pub problem: Option<String>,
}

/// The whole state of the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The daemon.
    pub coordinator: CoordinatorStatus,
    /// Every host known.
    pub hosts: Vec<HostStatus>,
    /// Every VM known.
    pub vms: Vec<VmStatus>,
    /// What is under way.
    pub courses: Vec<CourseStatus>,
    /// The newest usable snapshot.
    pub last_snapshot: Option<LastSnapshot>,
    /// Deployments that wait for `resume`.
    pub paused: Vec<PausedDeployment>,
    /// Deployments that give way to the users of their hosts.
    pub giving_way: Vec<Name>,
}

/// The daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorStatus {
    /// Of its package.
    pub version: String,
    /// Counts its starts.
    pub term: u64,
    /// Since its start, seconds.
    pub uptime_s: u64,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its name.
    pub name: Name,
    /// Is its agent connected?
    pub connected: bool,
    /// Since when it is connected or lost, RFC 3339, UTC; `None` if it was not seen in this term.
    pub since: Option<String>,
    /// Version of its agent, as last seen.
    pub agent_version: String,
    /// Free bytes for snapshots, as last seen.
    pub free_bytes: Option<u64>,
    /// Processors that it has, used or not.
    pub cores: Option<u32>,
    /// RAM that it has, used or not, MiB.
    pub memory_mb: Option<u64>,
}

/// One VM. What its host says is `None` while that is not connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Its name.
    pub name: Name,
    /// Whose member it is.
    pub deployment: Name,
    /// Where it is.
    pub host: Name,
    /// What the hypervisor says.
    pub state: Option<VmState>,
    /// How its packets are coloured.
    pub colouring: Option<Colouring>,
    /// Why that is not what its definition would rather have.
    pub colouring_note: Option<String>,
    /// How its RAM is taken.
    pub ram_way: Option<String>,
    /// What emulates its processor.
    pub accelerator: Option<String>,
    /// Does its guest agent answer?
    pub guest_agent: Option<bool>,
    /// Of the running instance.
    pub incarnation: Option<u64>,
    /// RAM, MiB.
    pub memory_mb: Option<u32>,
    /// Virtual CPUs.
    pub cpus: Option<u32>,
}

/// A snapshot or restore under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CourseStatus {
    /// Of which deployment.
    pub deployment: Name,
    /// What is taken or restored.
    pub snapshot: Name,
    /// The step.
    pub phase: Phase,
    /// Members whose answer it still misses.
    pub waiting: Vec<Name>,
}

/// The newest usable snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastSnapshot {
    /// Its name.
    pub id: Name,
    /// Whose it is.
    pub deployment: Name,
    /// RFC 3339, UTC.
    pub created: String,
}

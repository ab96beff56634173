//! Coordinator <-> host agent. The host connects; both say hello first; then orders to members go
//! down and replies come up, each under an [`Envelope`].
//!
//! ```text
//! host agent                       coordinator
//!   Hello {versions, vms, kept} ----->
//!        <----- Welcome {version, term} | Goodbye {why}
//!   Inventory (every second) -------->
//!        <----- StillHere {coordinator's clock} (every second)
//!   ClockReading {both clocks} ------>
//!        <----- Order under an Envelope, to one member
//!   Answer under the same Envelope -->
//! ```
//!
//! Numbers below 16 belong to the session, from 16 on to members.

use serde::{Deserialize, Serialize};

use crate::DecodeError;
use crate::frame::Frame;
use crate::guest::{Epoch, Prefix};
use crate::household::{HostOrder, HostWord};
use crate::name::Name;
use crate::power::{Controlled, Verb};

/// First message number that is addressed to (or comes from) a member.
const FIRST_MEMBER_NUMBER: u16 = 16;
/// Most VMs that one host may report.
pub const MAX_VMS_PER_HOST: usize = 1024;

/// How far ahead the instant of a TAKE may lie, nanoseconds: well below the members' future lease of 2 s.
pub const MAX_AHEAD_NS: u64 = 1_000_000_000;

/// To whom an order goes and in which course of events; the reply repeats it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Envelope {
    /// The member.
    pub vm: Name,
    /// Its deployment.
    pub deployment: Name,
    /// The global snapshot that is taken, restored or deleted; with CONTROL the course's own name.
    pub snapshot: Name,
    /// Epoch before the cut; in a restore, the epoch at which the members start.
    pub epoch: Epoch,
    /// Counts up with every start of the coordinator; agents refuse lower ones.
    pub term: u64,
    /// Counts up with every restore of the deployment; agents refuse lower ones.
    pub incarnation: u64,
}

impl Envelope {
    /// The same snapshot or restore of the same member, whichever coordinator speaks.
    #[must_use]
    pub fn same_course(&self, other: &Self) -> bool {
        self.vm == other.vm && self.snapshot == other.snapshot && self.incarnation == other.incarnation
    }
}

/// Step of the protocol, for reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Phase {
    /// Verification; epochs set; colouring on.
    Prepare,
    /// Strict.
    Arm,
    /// The straddling cut.
    Take,
    /// RAM and disks become durable behind the running VM.
    Save,
    /// Colouring off.
    Clear,
    /// The snapshot is usable.
    Commit,
    /// Everything is undone.
    Abort,
    /// Restore: files complete?
    Poll,
    /// Restore: old instance dead, new one loaded and paused.
    Restore,
    /// Restore: resumed.
    Start,
    /// A snapshot's files are removed.
    Delete,
    /// A snapshot's files, and the images below them, are compared with their digests.
    Verify,
    /// A single VM is started, stopped, paused, resumed or reset.
    Control,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(match self {
            Self::Prepare => "PREPARE",
            Self::Arm => "ARM",
            Self::Take => "TAKE",
            Self::Save => "SAVE",
            Self::Clear => "CLEAR",
            Self::Commit => "COMMIT",
            Self::Abort => "ABORT",
            Self::Poll => "POLL",
            Self::Restore => "RESTORE",
            Self::Start => "START",
            Self::Delete => "DELETE",
            Self::Verify => "VERIFY",
            Self::Control => "CONTROL",
        })
    }
}

/// Kind of a failure: stable over releases, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The VM does not run, or is not known.
    VmNotRunning,
    /// The guest agent does not answer or is not healthy.
    GuestAgent,
    /// Not enough space.
    NoSpace,
    /// The hypervisor refused or died.
    Hypervisor,
    /// The member had advanced by itself: the cut came too late.
    LateCut,
    /// Files missing, truncated, damaged or foreign.
    Files,
    /// A lower term or incarnation, or an order that does not fit the state.
    Stale,
    /// A wait ran out.
    TimedOut,
    /// The host is not connected, or its connection broke.
    HostLost,
    /// The operator asked for something that does not exist or cannot be.
    BadRequest,
    /// A defect or an error of the program's own machine (disk, memory).
    Internal,
    /// The VM's packets cannot be coloured as its definition says.
    Colouring,
}

/// What failed, on the wire: stable kind, step, and words (what, why, what to do).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{phase}: {text}")]
pub struct Failure {
    /// Stable code.
    pub kind: FailureKind,
    /// The step that failed.
    pub phase: Phase,
    /// For people.
    pub text: String,
}

/// Failures that differ in their words only are the same to every machine, hence to whoever counts states.
impl std::hash::Hash for Failure {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.kind, self.phase).hash(state);
    }
}

impl Failure {
    /// A failure with its words.
    pub fn new(kind: FailureKind, phase: Phase, text: impl Into<String>) -> Self {
        Self { kind, phase, text: text.into() }
    }
}

/// First message of a host agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Lowest and highest protocol version that the agent speaks.
    pub protocol: (u16, u16),
    /// The host's name; its certificate must say the same.
    pub host: Name,
    /// Version of the agent's package.
    pub agent_version: String,
    /// Its VMs.
    pub inventory: Inventory,
    /// Snapshots of which the agent does not know whether they were committed; the coordinator
    /// answers each with COMMIT or ABORT.
    pub undecided: Vec<Undecided>,
}

/// A local snapshot, made or half made, whose outcome the host agent has not heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undecided {
    /// As the orders of this snapshot came.
    pub envelope: Envelope,
    /// Is it durable (SAVED was or could be sent)?
    pub saved: bool,
}

/// What runs on a host; sent with the hello and once a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// In the order of their names; at most [`MAX_VMS_PER_HOST`].
    pub vms: Vec<VmReport>,
    /// Free bytes where snapshots are stored.
    pub free_bytes: u64,
}

/// State of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmReport {
    /// Its name.
    pub name: Name,
    /// The deployment whose member it is.
    pub deployment: Name,
    /// RAM, MiB.
    pub memory_mb: u32,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Addresses by which the other members know it.
    pub addresses: Vec<Prefix>,
    /// What the hypervisor says.
    pub state: VmState,
    /// How its packets are coloured, as far as is known before the next PREPARE.
    pub colouring: Colouring,
    /// Why that is not what its definition would rather have; empty when it is.
    pub colouring_note: String,
    /// How its RAM is taken, once probed, e.g. `live`.
    pub ram_way: String,
    /// What emulates its processor, e.g. `kvm`.
    pub accelerator: String,
    /// Does the guest agent answer?
    pub guest: bool,
    /// Of the running instance.
    pub incarnation: u64,
}

/// State of a VM's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// No process.
    Stopped,
    /// Process there, guest not yet answering for the first time.
    Starting,
    /// vCPUs run.
    Running,
    /// vCPUs stand still.
    Paused,
    /// The hypervisor failed or does not answer.
    Failed,
}

/// How a member's packets are coloured (protocol.md section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Colouring {
    /// The straddle through the guest agent.
    Guest,
    /// Not at all: for the control experiment only; such snapshots are not consistent.
    None,
    /// By programs on the VM's taps; both halves flip at once in the pause.
    Host,
    /// By programs in the guest, whose word the host changes in the guest's RAM in the pause.
    Memory,
}

impl std::fmt::Display for Colouring {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.pad(match self {
            Self::Guest => "guest",
            Self::None => "none",
            Self::Host => "host",
            Self::Memory => "memory",
        })
    }
}

/// The answer to [`CoordinatorSession::StillHere`], nanoseconds. From it the coordinator knows how far the two clocks are
/// apart ([`crate::coordinator::clock`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockReading {
    /// As it came: the coordinator's clock when it asked.
    pub asked_ns: u64,
    /// The host's clock when that was received.
    pub received_ns: u64,
    /// The host's clock when this was written.
    pub answered_ns: u64,
}

/// The coordinator's answer to a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Version that both will speak.
    pub protocol: u16,
    /// Of this coordinator.
    pub term: u64,
}

/// A member that stands still in the pause of its cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The member.
    pub vm: Name,
    /// The global snapshot that is taken.
    pub snapshot: Name,
}

messages! {
    /// The host agent's part of the session.
    pub enum HostSession with () {
        /// First of all.
        1 => Hello(Hello),
        /// Once a second; its absence for five tells that the host is gone.
        2 => Inventory(Inventory),
        /// To each StillHere, at once.
        3 => ClockReading(ClockReading),
        /// About VMs that come and go, and disks that they share.
        4 => Household(HostWord),
        /// In the pause of a cut: from now on nothing POSTSNAPSHOT is dropped at this member. [`CoordinatorSession::RunOn`] is
        /// awaited, for a bounded time.
        6 => Standing(Standing),
    }
}

messages! {
    /// The coordinator's part of the session.
    pub enum CoordinatorSession with () {
        /// The hello was accepted.
        8 => Welcome(Welcome),
        /// The connection will be closed, and why.
        9 => Goodbye(String),
        /// Once a second; its absence for five tells that the coordinator is gone. The body is its clock, nanoseconds.
        10 => StillHere(u64),
        /// Right after the welcome: the incarnation that runs now of each deployment of which the host has reported VMs. One that
        /// was fenced while its host was cut off may go on only if it is of that incarnation.
        11 => Incarnations(Vec<(Name, u64)>),
        /// About VMs that come and go, and disks that they share.
        12 => Household(HostOrder),
        /// Every member of this snapshot stands still or has cut: whatever is sent now reaches nobody before its cut.
        14 => RunOn(Name),
    }
}

/// Files of one member's local snapshot, as the operator's report shows them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SavedReport {
    /// blake3 of the manifest, which holds the digests of all files.
    pub digest: [u8; 32],
    /// Bytes that the local snapshot takes on disk.
    pub bytes: u64,
    /// When it was durable, nanoseconds of the host's clock.
    pub saved_ns: u64,
}

/// Times of one cut, nanoseconds of the host's clock.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CutReport {
    /// How this cut's packets were coloured.
    pub colouring: Colouring,
    /// Send half flipped: the straddle begins. Where both halves flip at once, in the pause, both times are that one.
    pub send_flipped_ns: u64,
    /// vCPUs stopped.
    pub stopped_ns: u64,
    /// The snapshot instant: disks switched and RAM fixed.
    pub instant_ns: u64,
    /// vCPUs run again.
    pub resumed_ns: u64,
    /// Receive half flipped: the straddle ends.
    pub receive_flipped_ns: u64,
    /// Where the pause went: part and nanoseconds.
    pub parts: Vec<(String, u64)>,
    /// Connections to addresses that are not members; they do not survive a restore. `None` when
    /// the guest cannot tell.
    pub outside_connections: Option<u32>,
}

impl CutReport {
    /// How long the vCPUs stood still, nanoseconds.
    #[must_use]
    pub fn pause_ns(&self) -> u64 {
        self.resumed_ns.saturating_sub(self.stopped_ns)
    }
}

messages! {
    /// What the coordinator orders a member to do; every order may be repeated.
    #[derive(Hash)]
    pub enum Order with Envelope {
        /// Verify; set both epochs; colouring on. The body lists the addresses of all members.
        16 => Prepare(Vec<Prefix>),
        /// Refuse uncoloured packets.
        17 => Arm(()),
        /// The straddling cut. The body is the instant at which it begins, nanoseconds of the host's clock; `None` means at once,
        /// and so does an instant that has passed. One more than [`MAX_AHEAD_NS`] ahead is refused.
        18 => Take(Option<u64>),
        /// Colouring off.
        19 => Clear(()),
        /// The global snapshot is usable.
        20 => Commit(()),
        /// Undo everything of this snapshot, and why.
        21 => Abort(String),
        /// Is everything here to restore this snapshot?
        32 => Poll(()),
        /// Destroy the old instance, load the snapshot, leave it paused.
        33 => Restore(()),
        /// Resume. The body lists the addresses of all members.
        34 => Start(Vec<Prefix>),
        /// Remove the files of this snapshot.
        40 => Delete(()),
        /// Compare the files of this snapshot, and the images below them, with their digests.
        41 => Verify(()),
        /// Start, stop, pause, resume or reset the VM, outside any snapshot or restore.
        48 => Control(Verb),
    }
}

messages! {
    /// What a member answers.
    #[derive(Hash)]
    pub enum Answer with Envelope {
        /// To PREPARE.
        64 => Prepared(()),
        /// To ARM.
        65 => Armed(()),
        /// As soon as the cut is made.
        66 => Cut(CutReport),
        /// When the local snapshot is durable.
        67 => Saved(SavedReport),
        /// The member is idle again: after CLEAR and COMMIT, or after ABORT.
        68 => Settled(()),
        /// To POLL and VERIFY.
        80 => Ready(()),
        /// To RESTORE.
        81 => Loaded(()),
        /// To START: the hooks that could not be run, in words.
        82 => Started(Vec<String>),
        /// To DELETE.
        88 => Deleted(()),
        /// To CONTROL.
        89 => Controlled(Controlled),
        /// To any order that could not be carried out.
        96 => Refused(Failure),
    }
}

/// What a host agent may receive.
#[derive(Debug, Clone, PartialEq)]
pub enum ToHost {
    /// About the session.
    Session(CoordinatorSession),
    /// To a member.
    Member(Envelope, Order),
}

impl ToHost {
    /// Reads a frame.
    ///
    /// # Errors
    /// See [`DecodeError`].
    pub fn decode(frame: &Frame) -> Result<Self, DecodeError> {
        if frame.number < FIRST_MEMBER_NUMBER {
            CoordinatorSession::decode(frame).map(|((), message)| Self::Session(message))
        } else {
            Order::decode(frame).map(|(envelope, order)| Self::Member(envelope, order))
        }
    }
}

/// What the coordinator may receive from a host agent.
#[derive(Debug, Clone, PartialEq)]
pub enum FromHost {
    /// About the session.
    Session(HostSession),
    /// From a member.
    Member(Envelope, Answer),
}

impl FromHost {
    /// Reads a frame.
    ///
    /// # Errors
    /// See [`DecodeError`].
    pub fn decode(frame: &Frame) -> Result<Self, DecodeError> {
        if frame.number < FIRST_MEMBER_NUMBER {
            HostSession::decode(frame).map(|((), message)| Self::Session(message))
        } else {
            Answer::decode(frame).map(|(envelope, answer)| Self::Member(envelope, answer))
        }
    }
}

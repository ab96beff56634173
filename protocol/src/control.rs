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

pub use self::failure::{Failure, FailureKind, Phase};
pub use self::inventory::{Colouring, Inventory, MAX_VMS_PER_HOST, VmReport, VmState};
use crate::DecodeError;
use crate::access::{AccessAnswer, AccessOrder};
use crate::frame::Frame;
use crate::guest::{Epoch, Prefix};
use crate::household::{HostOrder, HostWord};
use crate::name::Name;
use crate::power::{Controlled, Verb};
pub use crate::transfer::{Moved, Source, TransferAddress};

mod failure;
mod inventory;

/// First message number that is addressed to (or comes from) a member.
const FIRST_MEMBER_NUMBER: u16 = 16;

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
        /// Once after the welcome, by hosts that give files of their snapshots to other hosts: where they are asked for them.
        5 => Serves(TransferAddress),
        /// In the pause of a cut: from now on nothing POSTSNAPSHOT is dropped at this member. [`CoordinatorSession::RunOn`] is
        /// awaited, for a bounded time.
        6 => Standing(Standing),
        /// Once after the welcome and with each change, by hosts that have a user: is somebody sitting there?
        7 => UserHere(bool),
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
        /// To the host, whether or not it has the member: get the files of this snapshot from another host.
        42 => Fetch(Source),
        /// The member lives on this other host from this incarnation on: destroy and forget the instance.
        43 => Evict(Name),
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
        /// To FETCH, at once and once a second until it ends.
        83 => Fetching(Moved),
        /// To FETCH: all files are here, durable, with the right digests.
        84 => Fetched(Moved),
        /// To EVICT: no instance of the member lives here any more.
        85 => Evicted(()),
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
    /// To a guest, past everything that a snapshot depends on.
    Access(Envelope, AccessOrder),
}

impl ToHost {
    /// Reads a frame.
    ///
    /// # Errors
    /// See [`DecodeError`].
    pub fn decode(frame: &Frame) -> Result<Self, DecodeError> {
        if frame.number < FIRST_MEMBER_NUMBER {
            CoordinatorSession::decode(frame).map(|((), message)| Self::Session(message))
        } else if AccessOrder::NUMBERS.contains(&frame.number) {
            AccessOrder::decode(frame).map(|(envelope, order)| Self::Access(envelope, order))
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
    /// About a guest that an operator uses.
    Access(Envelope, AccessAnswer),
}

impl FromHost {
    /// Reads a frame.
    ///
    /// # Errors
    /// See [`DecodeError`].
    pub fn decode(frame: &Frame) -> Result<Self, DecodeError> {
        if frame.number < FIRST_MEMBER_NUMBER {
            HostSession::decode(frame).map(|((), message)| Self::Session(message))
        } else if AccessAnswer::NUMBERS.contains(&frame.number) {
            AccessAnswer::decode(frame).map(|(envelope, answer)| Self::Access(envelope, answer))
        } else {
            Answer::decode(frame).map(|(envelope, answer)| Self::Member(envelope, answer))
        }
    }
}

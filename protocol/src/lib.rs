//! What the programs of unasnap say to each other, and the rules by which they answer.
//!
//! Pure by construction: no sockets, no files, no clock, no randomness, no tokio. A role of the
//! protocol is a state machine `handle(event) -> commands`; the programs are thin shells around them.
//!
//! | module | what is in it |
//! |---|---|
//! | [`frame`] | the fixed header around every message, and the decoder that survives garbage |
//! | [`name`] | validated names of hosts, VMs, deployments and snapshots |
//! | [`guest`] | host agent <-> guest agent |
//! | [`control`] | coordinator <-> host agent |
//! | [`elsewhere`] | restores elsewhere, as operators see them |
//! | [`files`] | which files a VM at one of its snapshots consists of |
//! | [`access`] | commands, files and consoles of guests |
//! | [`operator`] | operator's command <-> coordinator |
//! | [`coordinator`] | the coordinator's half of a snapshot and of a restore |
//! | [`participant`] | one VM's half of both |
//! | [`household`] | disks that VMs of a host share, VMs that come and go |
//! | [`image`] | the image catalogue |
//! | [`placement`] | which host a new VM goes to |
//! | [`power`] | single VMs started, stopped, paused, resumed, reset |
//! | [`relay`] | host agent <-> guest agent where no port leads into the guest |
//! | [`transfer`] | host agent <-> host agent: files of snapshots that are restored elsewhere |
//! | [`role`] | what operators may do, and which role each request needs |
//! | [`failure`] | what failed, in which step |
//! | [`fault`] | mistakes that tests put back |
//!
//! Words (epoch, cut, colour, straddle, PRESNAPSHOT ...) mean what `docs/protocol.md` says.

#[macro_use]
mod messages;

pub mod access;
pub mod control;
pub mod coordinator;
pub mod cut;
pub mod elsewhere;
pub mod fault;
pub mod files;
pub mod frame;
pub mod guest;
pub mod household;
pub mod image;
pub mod name;
pub mod operator;
pub mod participant;
pub mod placement;
pub mod power;
pub mod relay;
pub mod role;
pub mod transfer;

pub use messages::DecodeError;

/// Versions of the protocol that this build speaks; one number for every channel.
pub const PROTOCOL_VERSION: u16 = 1;

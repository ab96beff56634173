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
//! | [`files`] | which files a VM at one of its snapshots consists of |
//! | [`operator`] | operator's command <-> coordinator |
//! | [`coordinator`] | the coordinator's half of a snapshot and of a restore |
//! | [`participant`] | one VM's half of both |
//! | [`household`] | disks that VMs of a host share, VMs that come and go |
//! | [`power`] | single VMs started, stopped, paused, resumed, reset |
//! | [`role`] | what operators may do, and which role each request needs |
//! | [`fault`] | mistakes that tests put back |
//!
//! Words (epoch, cut, colour, straddle, PRESNAPSHOT ...) mean what `docs/protocol.md` says.

#[macro_use]
mod messages;

pub mod control;
pub mod coordinator;
pub mod cut;
pub mod fault;
pub mod files;
pub mod frame;
pub mod guest;
pub mod household;
pub mod name;
pub mod operator;
pub mod participant;
pub mod power;
pub mod role;

pub use messages::DecodeError;

/// Versions of the protocol that this build speaks; one number for every channel.
pub const PROTOCOL_VERSION: u16 = 1;

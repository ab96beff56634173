//! The coordinator's half of the protocol: one state machine per global snapshot, one per restore.
//!
//! Both take what members answer and give orders, in the same way: `handle(event) -> commands`. A
//! [`Command::Journal`] must be durable before any command after it is carried out.

use std::time::Duration;

use crate::control::{Answer, Failure, Order};
use crate::name::Name;

pub mod clock;
pub mod restore;
pub mod returning;
pub mod snapshot;

/// What happens to a snapshot or a restore.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A member answered, under this course's envelope.
    Answer(Name, Answer),
    /// The connection of a member's host broke.
    HostLost(Name),
    /// The time asked for by [`Command::WakeAfter`] has passed.
    Deadline,
}

/// What the shell has to do, in this order. `J` is what is journaled.
#[derive(Debug, Clone, PartialEq, Hash)]
pub enum Command<J> {
    /// Make durable before going on.
    Journal(J),
    /// Send to one member under this course's envelope.
    Send(Name, Order),
    /// Report [`Event::Deadline`] after this long, and forget any earlier wish.
    WakeAfter(Duration),
    /// It is over; nothing more will be asked for.
    Finished(Result<(), Failure>),
}

//! What happens to a participant, and what it has the shell do.

use std::time::Duration;

use crate::control::{Answer, CutReport, Envelope, Failure, Order, Phase, SavedReport};
use crate::guest::Prefix;
use crate::name::Name;
use crate::power::{Controlled, Verb};

/// What happens to a participant.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// An order came.
    Order(Envelope, Order),
    /// The job ended.
    JobDone(Result<Outcome, Failure>),
    /// The saving that began with the cut ended.
    SaveDone(Result<SavedReport, Failure>),
    /// The time asked for by [`Command::WakeAfter`] has passed.
    Deadline,
}

/// What the shell has to do, in this order.
#[derive(Debug, Clone, PartialEq, Hash)]
pub enum Command {
    /// Send to the coordinator.
    Answer(Envelope, Answer),
    /// Carry out, then report [`Event::JobDone`].
    Do(Job),
    /// Wait until the bytes of the cut are durable, then report [`Event::SaveDone`].
    Save(Envelope),
    /// Report [`Event::Deadline`] after this long, and forget any earlier wish; `None` only forgets.
    WakeAfter(Option<Duration>),
}

/// Work for the shell: one step under the envelope that ordered it.
#[derive(Debug, Clone, PartialEq, Hash)]
pub struct Job {
    /// As the order came.
    pub envelope: Envelope,
    /// What to do.
    pub step: Step,
}

/// What a [`Job`] does. All are idempotent.
#[derive(Debug, Clone, PartialEq, Hash)]
pub enum Step {
    /// Verify VM, guest agent and space; make overlays; set members; word := {e, e, on}.
    Prepare(Vec<Prefix>),
    /// Strict := yes, if both halves stand at e.
    Arm,
    /// The straddle, at this instant of the host's clock or at once: send := e+1; stop, fix disks and RAM, resume;
    /// receive := e+1.
    Cut(Option<u64>),
    /// Word := {e+1, e+1, off}.
    Clear,
    /// Mark the local snapshot as committed.
    Commit,
    /// Stop saving, delete the local snapshot, word := {e+1, e+1, off}.
    Undo,
    /// Check the files of this snapshot.
    Poll,
    /// Destroy the old instance, load the snapshot, leave it paused.
    Restore,
    /// Resume; word := {e, e, off}; set members; guest hooks.
    Start(Vec<Prefix>),
    /// Remove the files of this snapshot.
    Delete,
    /// Compare the files of this snapshot, and the images below them, with their digests.
    Verify,
    /// Destroy the instance, and remember that the VM lives on this host now.
    Evict(Name),
    /// Start, stop, pause, resume or reset the VM.
    Control(Verb),
}

/// What a job that went well has to say.
#[derive(Debug, Clone, PartialEq, Hash)]
pub enum Outcome {
    /// Nothing more.
    Done,
    /// Of [`Step::Cut`].
    Cut(CutReport),
    /// Of [`Step::Start`]: hooks that could not be run, in words.
    Started(Vec<String>),
    /// Of [`Step::Control`].
    Controlled(Controlled),
}

/// The step that an order asks for; `None` where it asks the host for something.
pub(super) fn step_of(order: &Order) -> Option<Step> {
    Some(match order {
        Order::Prepare(members) => Step::Prepare(members.clone()),
        Order::Arm(()) => Step::Arm,
        Order::Take(at_ns) => Step::Cut(*at_ns),
        Order::Clear(()) => Step::Clear,
        Order::Commit(()) => Step::Commit,
        Order::Abort(_) => Step::Undo,
        Order::Poll(()) => Step::Poll,
        Order::Restore(()) => Step::Restore,
        Order::Start(members) => Step::Start(members.clone()),
        Order::Delete(()) => Step::Delete,
        Order::Verify(()) => Step::Verify,
        Order::Evict(to) => Step::Evict(to.clone()),
        Order::Fetch(_) => return None,
        Order::Control(verb) => Step::Control(*verb),
    })
}

/// The phase in which an order belongs, for reports.
#[must_use]
pub fn phase_of(order: &Order) -> Phase {
    match order {
        Order::Prepare(_) => Phase::Prepare,
        Order::Arm(()) => Phase::Arm,
        Order::Take(_) => Phase::Take,
        Order::Clear(()) => Phase::Clear,
        Order::Commit(()) => Phase::Commit,
        Order::Abort(_) => Phase::Abort,
        Order::Poll(()) => Phase::Poll,
        Order::Restore(()) => Phase::Restore,
        Order::Start(_) => Phase::Start,
        Order::Delete(()) => Phase::Delete,
        Order::Verify(()) => Phase::Verify,
        Order::Fetch(_) => Phase::Fetch,
        Order::Evict(_) => Phase::Evict,
        Order::Control(_) => Phase::Control,
    }
}

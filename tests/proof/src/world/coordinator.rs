//! The coordinator around its state machines: the journal, who is told what, and how it takes up what a dead one left.
//! (As `coordinator/src/daemon` does it; clocks, records and operators have no part in safety.)

use std::collections::{BTreeMap, BTreeSet};

use unasnap_protocol::control::{Answer, Envelope, Failure, FailureKind, Order, Phase};
use unasnap_protocol::coordinator::restore::{self, Moves, Restore, epoch_for};
use unasnap_protocol::coordinator::snapshot::{self, Decision, Snapshot};
use unasnap_protocol::coordinator::{Command, Event};
use unasnap_protocol::guest::Epoch;
use unasnap_protocol::name::Name;

use super::{Context, Todo, World};
use crate::setup::{Mistake, snapshot_name};

/// The daemon.
#[derive(Debug, Clone, Hash)]
pub struct Coordinator {
    /// Does it run?
    pub up: bool,
    /// Counts its starts.
    pub term: u64,
    /// What survives it.
    pub journal: Journal,
    /// Decisions that a mistaken coordinator has acted on but not written yet.
    pub unwritten: Vec<(Epoch, Decision)>,
    /// What is under way.
    pub course: Option<Course>,
    /// Does the course want to be woken?
    pub wake: bool,
    /// A restore that waits for the end of the course.
    pub then: Option<Epoch>,
}

/// What survives a crash.
#[derive(Debug, Clone, Hash, Default)]
pub struct Journal {
    /// The highest epoch that was used.
    pub last_epoch: Epoch,
    /// Counts the restores.
    pub incarnation: u64,
    /// Every attempt by its epoch.
    pub snapshots: BTreeMap<Epoch, Record>,
}

/// One attempt.
#[derive(Debug, Clone, Hash)]
pub struct Record {
    /// Of the deployment when it was taken.
    pub incarnation: u64,
    /// Is it usable?
    pub committed: bool,
    /// Have all members been told?
    pub closed: bool,
}

/// A snapshot or restore under way.
#[derive(Debug, Clone, Hash)]
pub enum Course {
    /// A snapshot.
    Taking {
        /// Before the cut.
        epoch: Epoch,
        /// Of the deployment.
        incarnation: u64,
        /// Decides.
        machine: Snapshot,
    },
    /// A restore.
    Restoring {
        /// What is restored.
        of: Epoch,
        /// At which the members start.
        epoch: Epoch,
        /// Of the instances that will run.
        incarnation: u64,
        /// Decides.
        machine: Restore,
        /// Members to be polled again.
        again: BTreeSet<Name>,
    },
}

impl Coordinator {
    pub(super) fn new() -> Self {
        Self {
            up: true,
            term: 1,
            journal: Journal::default(),
            unwritten: Vec::new(),
            course: None,
            wake: false,
            then: None,
        }
    }

    fn envelope(&self, cx: &Context<'_>, vm: &Name) -> Option<Envelope> {
        let (snapshot, epoch, incarnation) = match self.course.as_ref()? {
            Course::Taking { epoch, incarnation, .. } => (*epoch, *epoch, *incarnation),
            Course::Restoring { of, epoch, incarnation, .. } => (*of, *epoch, *incarnation),
        };
        Some(Envelope {
            vm: vm.clone(),
            deployment: cx.setup.deployment.clone(),
            snapshot: snapshot_name(snapshot),
            epoch,
            term: self.term,
            incarnation,
        })
    }

    /// The step of the snapshot under way.
    #[must_use]
    pub fn taking_phase(&self, of: Epoch) -> Option<Phase> {
        match &self.course {
            Some(Course::Taking { epoch, machine, .. }) if *epoch == of => Some(machine.phase()),
            _ => None,
        }
    }

    fn write(&mut self, epoch: Epoch, incarnation: u64, decision: &Decision) {
        let fresh = Record { incarnation, committed: false, closed: false };
        let record = self.journal.snapshots.entry(epoch).or_insert(fresh);
        match decision {
            Decision::Opened => self.journal.last_epoch = epoch,
            Decision::Taken | Decision::Aborted(_) => {}
            Decision::Committed => record.committed = true,
            Decision::Closed => record.closed = true,
        }
    }

    /// What a mistaken coordinator has not written yet reaches the disk.
    pub(crate) fn write_late(&mut self) {
        for (epoch, decision) in std::mem::take(&mut self.unwritten) {
            self.write(epoch, self.journal.incarnation, &decision);
        }
    }
}

impl World {
    /// The operator asks for a snapshot; refused while anybody is missing or something is under way.
    pub(crate) fn take(&mut self, cx: &mut Context<'_>) -> bool {
        let everybody = self.hosts.iter().all(|host| host.link.is_some());
        if !self.coordinator.up || self.coordinator.course.is_some() || !everybody {
            return false;
        }
        let epoch = self.coordinator.journal.last_epoch + 1;
        let incarnation = self.coordinator.journal.incarnation;
        let fault = cx.setup.coordinators_fault();
        let (machine, commands) =
            Snapshot::begin_with(fault, &cx.setup.all(), &[], snapshot::Limits::default());
        self.coordinator.course = Some(Course::Taking { epoch, incarnation, machine });
        self.carry_out_taking(cx, commands);
        true
    }

    /// The operator asks for a restore. A snapshot under way is cancelled first, and its end awaited.
    pub(crate) fn restore(&mut self, cx: &mut Context<'_>, of: Epoch) -> bool {
        let coordinator = &mut self.coordinator;
        if !coordinator.up || !coordinator.journal.snapshots.get(&of).is_some_and(|record| record.committed) {
            return false;
        }
        match &mut coordinator.course {
            Some(Course::Restoring { .. }) => false,
            Some(Course::Taking { .. }) if coordinator.then.is_some() => false,
            Some(Course::Taking { machine, .. }) => {
                coordinator.then = Some(of);
                let failure = Failure::new(FailureKind::BadRequest, Phase::Abort, "a restore");
                let commands = machine.cancel(failure);
                self.carry_out_taking(cx, commands);
                true
            }
            None => {
                self.open_restoring(cx, of);
                true
            }
        }
    }

    fn open_restoring(&mut self, cx: &mut Context<'_>, of: Epoch) {
        let (machine, commands) =
            Restore::begin(&cx.setup.all(), &[], Moves::default(), restore::Limits::default());
        let journal = &self.coordinator.journal;
        let epoch = match cx.setup.mistake {
            Mistake::RestoredColour => journal.last_epoch + 1,
            _ => epoch_for(of, journal.last_epoch),
        };
        let incarnation = journal.incarnation + 1;
        self.coordinator.course =
            Some(Course::Restoring { of, epoch, incarnation, machine, again: BTreeSet::new() });
        self.carry_out_restoring(cx, commands);
    }

    /// It takes up what a dead one left.
    pub(crate) fn coordinator_starts(&mut self, cx: &mut Context<'_>) {
        self.coordinator.up = true;
        self.coordinator.term += 1;
        let left = self.coordinator.journal.snapshots.iter().find(|(_, record)| !record.closed);
        let Some((&epoch, record)) = left else { return };
        let (members, limits) = (cx.setup.all(), snapshot::Limits::default());
        let (machine, commands) = if record.committed {
            Snapshot::commit_after_crash(&members, limits)
        } else {
            Snapshot::abort_after_crash(&members, limits)
        };
        let incarnation = record.incarnation;
        self.coordinator.course = Some(Course::Taking { epoch, incarnation, machine });
        self.carry_out_taking(cx, commands);
    }

    /// Only the journal is left of it; every connection breaks.
    pub(crate) fn coordinator_dies(&mut self) {
        let coordinator = &mut self.coordinator;
        coordinator.up = false;
        coordinator.course = None;
        coordinator.wake = false;
        coordinator.then = None;
        coordinator.unwritten.clear();
        for host in &mut self.hosts {
            host.link = None;
        }
    }

    /// Something happened to the course: an answer, a lost host, a wait that ran out.
    pub(crate) fn course_event(&mut self, cx: &mut Context<'_>, event: Event) {
        match &mut self.coordinator.course {
            Some(Course::Taking { machine, .. }) => {
                let commands = machine.handle(event);
                self.carry_out_taking(cx, commands);
            }
            Some(Course::Restoring { machine, again, .. }) => {
                if let (Phase::Poll, Event::Answer(vm, Answer::Refused(_))) = (machine.phase(), &event) {
                    again.insert(vm.clone());
                }
                let commands = machine.handle(event);
                self.carry_out_restoring(cx, commands);
            }
            None => {}
        }
    }

    /// Cancels the snapshot under way.
    pub(crate) fn cancel(&mut self, cx: &mut Context<'_>, failure: Failure) {
        if let Some(Course::Taking { machine, .. }) = &mut self.coordinator.course {
            let commands = machine.cancel(failure);
            self.carry_out_taking(cx, commands);
        }
    }

    /// An answer under this envelope; those of another term or course are late.
    pub(crate) fn answered(&mut self, cx: &mut Context<'_>, envelope: &Envelope, answer: Answer) {
        if envelope.term != self.coordinator.term {
            return;
        }
        let expected = self.coordinator.envelope(cx, &envelope.vm);
        if expected.is_some_and(|expected| expected.same_course(envelope)) {
            self.course_event(cx, Event::Answer(envelope.vm.clone(), answer));
        }
    }

    /// Members that were not ready are polled again.
    pub(crate) fn poll_again(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(Course::Restoring { machine, again, .. }) = &mut self.coordinator.course else {
            return false;
        };
        if !machine.asks_again() {
            return false;
        }
        let again = std::mem::take(again);
        let again = again.into_iter().filter_map(|vm| Some((machine.order_again(&vm)?, vm)));
        let commands: Vec<_> = again.map(|(order, vm)| Command::Send(vm, order)).collect();
        if commands.is_empty() {
            return false;
        }
        self.carry_out_restoring(cx, commands);
        true
    }

    /// In order: a decision is durable before what follows it is sent.
    pub(crate) fn carry_out_taking(&mut self, cx: &mut Context<'_>, commands: Vec<Command<Decision>>) {
        for command in commands {
            let Some(Course::Taking { epoch, incarnation, .. }) = self.coordinator.course else { return };
            match command {
                Command::Journal(decision) if cx.setup.mistake == Mistake::SentFirst => {
                    self.coordinator.unwritten.push((epoch, decision));
                }
                Command::Journal(decision) => self.coordinator.write(epoch, incarnation, &decision),
                Command::Send(vm, order) => {
                    self.send(cx, &vm, order);
                }
                Command::WakeAfter(limit) => {
                    self.coordinator.wake = true;
                    cx.todo.push(Todo::Deadline(limit));
                }
                Command::Finished(_) => {
                    self.coordinator.course = None;
                    self.coordinator.wake = false;
                    if let Some(of) = self.coordinator.then.take() {
                        self.restore(cx, of);
                    }
                    return;
                }
            }
        }
    }

    fn carry_out_restoring(&mut self, cx: &mut Context<'_>, commands: Vec<Command<restore::Decision>>) {
        let mut unsent = Vec::new();
        for command in commands {
            let Some(Course::Restoring { epoch, incarnation, .. }) = self.coordinator.course else { return };
            match command {
                Command::Journal(restore::Decision::Loading) => {
                    self.coordinator.journal.last_epoch = epoch;
                    self.coordinator.journal.incarnation = incarnation;
                }
                Command::Journal(restore::Decision::Started) => {}
                Command::Send(vm, order) => {
                    if matches!(order, Order::Start(_)) {
                        // What old instances sent lives for milliseconds, and the last of them has been dead for longer.
                        self.packets.clear();
                    }
                    if !self.send(cx, &vm, order) {
                        unsent.push(vm);
                    }
                }
                Command::WakeAfter(limit) => {
                    self.coordinator.wake = true;
                    cx.todo.push(Todo::Deadline(limit));
                }
                Command::Finished(_) => {
                    self.coordinator.course = None;
                    self.coordinator.wake = false;
                    return;
                }
            }
        }
        for vm in unsent {
            let failure = Failure::new(FailureKind::HostLost, Phase::Poll, "its host is not connected");
            self.course_event(cx, Event::Answer(vm, Answer::Refused(failure)));
        }
    }

    /// `false` when the host is not connected.
    fn send(&mut self, cx: &mut Context<'_>, vm: &Name, order: Order) -> bool {
        let Some(envelope) = self.coordinator.envelope(cx, vm) else { return false };
        self.order(cx, cx.setup.host_of[cx.setup.member(vm)], envelope, order)
    }
}

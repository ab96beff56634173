//! One global snapshot, as the coordinator sees it (protocol.md section 3).
//!
//! ```text
//!            all Prepared       all Armed        all Cut             all Saved            all Settled
//!  Preparing ----------> Arming --------> Taking -------> Saving ---------------> Committing ----> done
//!      |                   |                |    (CLEAR)     |   (journal COMMIT)      (or time-out: the
//!      |                   |                |                |                          snapshot stands)
//!      +-------------------+-------+--------+----------------+
//!                                  v  any refusal, lost host or time-out: journal ABORT
//!                               Aborting ---- all Settled, or time-out ----> failed
//! ```
//!
//! An answer that comes early is kept: a member may be SAVED before another has cut. Answers that do
//! not fit are late repetitions and are ignored. Clocks are the shell's affair: it gives TAKE its instant, and translates
//! the times of a CUT before the machine sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Command, Event};
use crate::control::{Answer, CutReport, Failure, FailureKind, Order, Phase, SavedReport};
use crate::fault::Fault;
use crate::guest::Prefix;
use crate::name::Name;

#[cfg(test)]
mod tests;

/// A decision that must be durable before it is acted on.
#[derive(Debug, Clone, PartialEq, Hash)]
pub enum Decision {
    /// The attempt began: its epoch is used up.
    Opened,
    /// TAKE goes out.
    Taken,
    /// Every local snapshot is durable: the global one is usable from now on.
    Committed,
    /// It is undone, and why.
    Aborted(Failure),
    /// Every member is idle again.
    Closed,
}

/// How long each phase may last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    /// PREPARE: probes, overlays, the first copy of RAM. A host that hangs or is cut off is noticed much earlier.
    pub prepare: Duration,
    /// ARM: one message to each guest.
    pub arm: Duration,
    /// TAKE to the last CUT. Members stop filtering by themselves after the future lease of 2 s.
    pub take: Duration,
    /// The last CUT to the last SAVED.
    pub save: Duration,
    /// COMMIT or ABORT to the last SETTLED.
    pub settle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            prepare: Duration::from_secs(440),
            arm: Duration::from_secs(3),
            take: Duration::from_secs(5),
            save: Duration::from_secs(600),
            settle: Duration::from_secs(10),
        }
    }
}

/// What is known of one member.
#[derive(Debug, Clone, Default, PartialEq, Hash)]
pub struct Member {
    /// Of its CUT.
    pub cut: Option<CutReport>,
    /// Of its SAVED.
    pub saved: Option<SavedReport>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Preparing,
    Arming,
    Taking,
    Saving,
    Committing,
    Aborting,
    Done,
}

/// One attempt at a global snapshot.
#[derive(Debug, Clone, Hash)]
pub struct Snapshot {
    state: State,
    limits: Limits,
    members: BTreeMap<Name, Member>,
    /// Members whose answer ends the present phase.
    awaited: BTreeSet<Name>,
    failure: Option<Failure>,
    fault: Fault,
    commands: Vec<Command<Decision>>,
}

impl Snapshot {
    /// Begins an attempt with these members; `addresses` are those of all of them.
    #[must_use]
    pub fn begin(
        members: &BTreeSet<Name>,
        addresses: &[Prefix],
        limits: Limits,
    ) -> (Self, Vec<Command<Decision>>) {
        let mut snapshot = Self {
            state: State::Preparing,
            limits,
            members: members.iter().map(|vm| (vm.clone(), Member::default())).collect(),
            awaited: BTreeSet::new(),
            failure: None,
            fault: Fault::None,
            commands: vec![Command::Journal(Decision::Opened)],
        };
        snapshot.enter(State::Preparing, Some(&Order::Prepare(addresses.to_vec())), limits.prepare);
        let commands = std::mem::take(&mut snapshot.commands);
        (snapshot, commands)
    }

    /// As [`Self::begin`], with a mistake that tests put back.
    #[must_use]
    pub fn begin_with(
        fault: Fault,
        members: &BTreeSet<Name>,
        addresses: &[Prefix],
        limits: Limits,
    ) -> (Self, Vec<Command<Decision>>) {
        let (mut snapshot, mut commands) = Self::begin(members, addresses, limits);
        snapshot.fault = fault;
        if fault == Fault::NoBarrier {
            snapshot.state = State::Taking;
            commands.push(Command::Journal(Decision::Taken));
        }
        (snapshot, commands)
    }

    /// Takes up an attempt of a coordinator that died before COMMIT: it is aborted.
    #[must_use]
    pub fn abort_after_crash(members: &BTreeSet<Name>, limits: Limits) -> (Self, Vec<Command<Decision>>) {
        let (mut snapshot, _) = Self::begin(members, &[], limits);
        let text = "the coordinator stopped before every local snapshot was durable";
        snapshot.abort(Failure::new(FailureKind::Internal, Phase::Abort, text));
        let commands = std::mem::take(&mut snapshot.commands);
        (snapshot, commands)
    }

    /// Takes up a committed snapshot whose members may not all have heard of it.
    #[must_use]
    pub fn commit_after_crash(members: &BTreeSet<Name>, limits: Limits) -> (Self, Vec<Command<Decision>>) {
        let (mut snapshot, _) = Self::begin(members, &[], limits);
        snapshot.enter(State::Committing, Some(&Order::Commit(())), limits.settle);
        let commands = std::mem::take(&mut snapshot.commands);
        (snapshot, commands)
    }

    /// Step that is under way.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Preparing => Phase::Prepare,
            State::Arming => Phase::Arm,
            State::Taking => Phase::Take,
            State::Saving => Phase::Save,
            State::Committing | State::Done => Phase::Commit,
            State::Aborting => Phase::Abort,
        }
    }

    /// What is known of each member.
    #[must_use]
    pub fn members(&self) -> &BTreeMap<Name, Member> {
        &self.members
    }

    /// Members whose answer is still missing in this phase.
    #[must_use]
    pub fn awaited(&self) -> &BTreeSet<Name> {
        &self.awaited
    }

    /// Applies one event; the commands are to be carried out in order.
    pub fn handle(&mut self, event: Event) -> Vec<Command<Decision>> {
        match event {
            Event::Answer(vm, answer) if self.members.contains_key(&vm) => self.on_answer(vm, answer),
            Event::Answer(..) => {}
            Event::HostLost(vm) => self.on_host_lost(&vm),
            Event::Deadline => self.on_deadline(),
        }
        std::mem::take(&mut self.commands)
    }

    /// Asks for an end, e.g. because the operator wishes it; without effect after COMMIT.
    pub fn cancel(&mut self, failure: Failure) -> Vec<Command<Decision>> {
        if !matches!(self.state, State::Committing | State::Aborting | State::Done) {
            self.abort(failure);
        }
        std::mem::take(&mut self.commands)
    }

    fn on_answer(&mut self, vm: Name, answer: Answer) {
        match (self.state, answer) {
            (State::Done, _) => {}
            (_, Answer::Refused(failure)) => self.on_refused(&vm, failure),
            (State::Preparing, Answer::Prepared(())) | (State::Arming, Answer::Armed(())) => {
                self.arrived(&vm)
            }
            (State::Taking, Answer::Cut(report)) => {
                self.member(&vm).cut = Some(report);
                if self.fault == Fault::UncolouredTooEarly {
                    self.send(&vm, Order::Clear(()));
                }
                self.arrived(&vm);
            }
            (State::Taking | State::Saving, Answer::Saved(report)) => {
                self.member(&vm).saved = Some(report);
                if self.state == State::Saving {
                    self.arrived(&vm);
                }
            }
            (State::Committing | State::Aborting, Answer::Settled(())) => self.arrived(&vm),
            (State::Taking, Answer::Prepared(())) if self.fault == Fault::NoBarrier => {
                self.send(&vm, Order::Arm(()));
            }
            (State::Taking, Answer::Armed(())) if self.fault == Fault::NoBarrier => {
                self.send(&vm, Order::Take(None));
            }
            _ => {}
        }
    }

    fn member(&mut self, vm: &Name) -> &mut Member {
        self.members.entry(vm.clone()).or_default()
    }

    /// A refusal before COMMIT ends the attempt; afterwards, and for CLEAR (a lost CLEAR is
    /// harmless), it is only a member that will settle later.
    fn on_refused(&mut self, vm: &Name, failure: Failure) {
        if matches!(self.state, State::Committing | State::Aborting) {
            self.arrived(vm);
        } else if failure.phase != Phase::Clear {
            let text = format!("{vm}: {}", failure.text);
            self.abort(Failure { text, ..failure });
        }
    }

    /// Before the cut and until COMMIT a member without a host cannot finish in time, except that
    /// one that has cut goes on saving by itself and reports when it is connected again.
    fn on_host_lost(&mut self, vm: &Name) {
        match self.state {
            State::Preparing | State::Arming | State::Taking if self.members.contains_key(vm) => {
                let text =
                    format!("{vm}: the connection to its host broke; look at the host agent's log there");
                self.abort(Failure::new(FailureKind::HostLost, self.phase(), text));
                // It is not waited for: it hears of the end when it is connected again.
                self.arrived(vm);
            }
            State::Committing | State::Aborting => self.arrived(vm),
            _ => {}
        }
    }

    fn on_deadline(&mut self) {
        match self.state {
            State::Done => {}
            State::Committing | State::Aborting => self.close(),
            _ => {
                let late: Vec<_> = self.awaited.iter().map(Name::as_str).collect();
                let text = format!("no answer from {} in {} s", late.join(", "), self.limit().as_secs());
                self.abort(Failure::new(FailureKind::TimedOut, self.phase(), text));
            }
        }
    }

    fn limit(&self) -> Duration {
        match self.state {
            State::Preparing => self.limits.prepare,
            State::Arming => self.limits.arm,
            State::Taking => self.limits.take,
            State::Saving => self.limits.save,
            State::Committing | State::Aborting | State::Done => self.limits.settle,
        }
    }

    /// One more answer of this phase; the last one opens the next phase.
    fn arrived(&mut self, vm: &Name) {
        if !self.awaited.remove(vm) || !self.awaited.is_empty() {
            return;
        }
        match self.state {
            State::Preparing => self.enter(State::Arming, Some(&Order::Arm(())), self.limits.arm),
            State::Arming => {
                self.commands.push(Command::Journal(Decision::Taken));
                self.enter(State::Taking, Some(&Order::Take(None)), self.limits.take);
            }
            State::Taking => self.all_cut(),
            State::Saving => self.commit(),
            State::Committing | State::Aborting => self.close(),
            State::Done => {}
        }
    }

    fn all_cut(&mut self) {
        self.enter(State::Saving, Some(&Order::Clear(())), self.limits.save);
        let members = &self.members;
        self.awaited.retain(|vm| members[vm].saved.is_none());
        if self.awaited.is_empty() {
            self.commit();
        }
    }

    fn commit(&mut self) {
        self.commands.push(Command::Journal(Decision::Committed));
        self.enter(State::Committing, Some(&Order::Commit(())), self.limits.settle);
    }

    fn abort(&mut self, failure: Failure) {
        self.commands.push(Command::Journal(Decision::Aborted(failure.clone())));
        let order = Order::Abort(failure.to_string());
        self.failure = Some(failure);
        self.enter(State::Aborting, Some(&order), self.limits.settle);
    }

    fn close(&mut self) {
        self.state = State::Done;
        self.commands.push(Command::Journal(Decision::Closed));
        let result = self.failure.clone().map_or(Ok(()), Err);
        self.commands.push(Command::Finished(result));
    }

    fn send(&mut self, vm: &Name, order: Order) {
        self.commands.push(Command::Send(vm.clone(), order));
    }

    fn enter(&mut self, state: State, order: Option<&Order>, limit: Duration) {
        self.state = state;
        self.awaited = self.members.keys().cloned().collect();
        let orders = order
            .into_iter()
            .flat_map(|order| self.members.keys().map(|vm| Command::Send(vm.clone(), order.clone())));
        self.commands.extend(orders);
        self.commands.push(Command::WakeAfter(limit));
    }
}

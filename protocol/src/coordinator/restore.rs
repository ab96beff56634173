//! One restore, as the coordinator sees it (protocol.md section 5).
//!
//! ```text
//!          all Ready          all Loaded        all Started
//!  Polling ---------> Loading ----------> Starting ---------> done
//!     | NotReady: asked again      |               |
//!     +---- time-out --------------+---- refusal, lost host or time-out ----> failed (run it again)
//! ```
//!
//! Nothing runs before everything is loaded and every old instance is known dead: START leaves only
//! when the last LOADED has come. A restore that fails leaves the snapshot as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Command, Event};
use crate::control::{Answer, Failure, FailureKind, Order, Phase};
use crate::guest::{Epoch, Prefix};
use crate::name::Name;

#[cfg(test)]
mod tests;

/// What must be durable before it is acted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// From now on the old incarnation is dead and the new one may exist.
    Loading,
    /// Every member runs.
    Started,
}

/// The epoch at which the members of a snapshot start: the first that was not used yet and has the colour of the snapshot's.
///
/// A frame may lie in a guest's RAM, in its card's ring, that its programs had not judged when the cut came: one of a sender that
/// had cut already, perhaps. The restored programs judge it, and they must drop it under the new epoch as under the old.
#[must_use]
pub fn epoch_for(snapshot: Epoch, last_used: Epoch) -> Epoch {
    let next = last_used + 1;
    next + (snapshot % 3 + 3 - next % 3) % 3
}

/// How long each phase may last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Until every host has everything; NOT_READY is asked again within it.
    pub poll: Duration,
    /// Loading RAM.
    pub load: Duration,
    /// Resume and guest hooks.
    pub start: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { poll: Duration::from_secs(30), load: Duration::from_secs(300), start: Duration::from_secs(30) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Polling,
    Loading,
    Starting,
    Done,
}

/// One attempt at a restore.
#[derive(Debug, Clone, Hash)]
pub struct Restore {
    state: State,
    limits: Limits,
    members: BTreeSet<Name>,
    addresses: Vec<Prefix>,
    awaited: BTreeSet<Name>,
    /// Why members are not ready, as each last said, for the report.
    not_ready: BTreeMap<Name, Failure>,
    warnings: Vec<String>,
    commands: Vec<Command<Decision>>,
}

impl Restore {
    /// Begins a restore of these members; `addresses` are those of all of them.
    #[must_use]
    pub fn begin(
        members: &BTreeSet<Name>,
        addresses: &[Prefix],
        limits: Limits,
    ) -> (Self, Vec<Command<Decision>>) {
        let mut restore = Self {
            state: State::Polling,
            limits,
            members: members.clone(),
            addresses: addresses.to_vec(),
            awaited: BTreeSet::new(),
            not_ready: BTreeMap::new(),
            warnings: Vec::new(),
            commands: Vec::new(),
        };
        restore.enter(State::Polling, &Order::Poll(()), limits.poll);
        let commands = std::mem::take(&mut restore.commands);
        (restore, commands)
    }

    /// Step that is under way.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Polling => Phase::Poll,
            State::Loading => Phase::Restore,
            State::Starting | State::Done => Phase::Start,
        }
    }

    /// Members whose answer is still missing in this phase.
    #[must_use]
    pub fn awaited(&self) -> &BTreeSet<Name> {
        &self.awaited
    }

    /// Guest hooks that could not be run, in words.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Applies one event; the commands are to be carried out in order.
    pub fn handle(&mut self, event: Event) -> Vec<Command<Decision>> {
        match event {
            Event::Answer(vm, answer) if self.members.contains(&vm) => self.on_answer(&vm, answer),
            Event::HostLost(vm) if self.members.contains(&vm) => self.on_host_lost(vm),
            Event::Answer(..) | Event::HostLost(_) => {}
            Event::Deadline => self.on_deadline(),
        }
        std::mem::take(&mut self.commands)
    }

    /// The order of the present phase, for a member that is to be asked again (after NOT_READY, or
    /// when its host is connected again). All orders may be repeated.
    #[must_use]
    pub fn order_again(&self) -> Option<Order> {
        match self.state {
            State::Polling => Some(Order::Poll(())),
            State::Loading => Some(Order::Restore(())),
            State::Starting => Some(Order::Start(self.addresses.clone())),
            State::Done => None,
        }
    }

    /// While hosts are polled, one may go and come back: it is asked again then.
    fn on_host_lost(&mut self, vm: Name) {
        let text = "the connection to its host broke; look at the host agent's log there";
        let failure = Failure::new(FailureKind::HostLost, self.phase(), text);
        match self.state {
            State::Polling => {
                self.awaited.insert(vm.clone());
                self.not_ready.insert(vm, failure);
            }
            State::Loading | State::Starting => self.fail(Some(&vm), failure),
            State::Done => {}
        }
    }

    fn on_answer(&mut self, vm: &Name, answer: Answer) {
        match (self.state, answer) {
            (State::Polling, Answer::Refused(failure)) => {
                self.awaited.insert(vm.clone());
                self.not_ready.insert(vm.clone(), failure);
            }
            (State::Loading | State::Starting, Answer::Refused(failure)) => self.fail(Some(vm), failure),
            (State::Polling, Answer::Ready(())) | (State::Loading, Answer::Loaded(())) => self.arrived(vm),
            (State::Starting, Answer::Started(problems)) => {
                self.warnings.extend(problems.into_iter().map(|problem| format!("{vm}: {problem}")));
                self.arrived(vm);
            }
            _ => {}
        }
    }

    fn limit(&self) -> Duration {
        match self.state {
            State::Polling => self.limits.poll,
            State::Loading => self.limits.load,
            State::Starting | State::Done => self.limits.start,
        }
    }

    fn arrived(&mut self, vm: &Name) {
        self.not_ready.remove(vm);
        if !self.awaited.remove(vm) || !self.awaited.is_empty() {
            return;
        }
        match self.state {
            State::Polling => {
                self.commands.push(Command::Journal(Decision::Loading));
                self.enter(State::Loading, &Order::Restore(()), self.limits.load);
            }
            State::Loading => {
                self.enter(State::Starting, &Order::Start(self.addresses.clone()), self.limits.start)
            }
            State::Starting => {
                self.state = State::Done;
                self.commands.push(Command::Journal(Decision::Started));
                self.commands.push(Command::Finished(Ok(())));
            }
            State::Done => {}
        }
    }

    fn on_deadline(&mut self) {
        if self.state == State::Done {
            return;
        }
        let reason = |vm: &Name| match self.not_ready.get(vm) {
            Some(failure) => format!("{vm}: {}", failure.text),
            None => format!("{vm}: no answer in {} s", self.limit().as_secs()),
        };
        let text = self.awaited.iter().map(reason).collect::<Vec<_>>().join("; ");
        let said = self.awaited.iter().find_map(|vm| self.not_ready.get(vm));
        let kind = said.map_or(FailureKind::TimedOut, |failure| failure.kind);
        self.fail(None, Failure::new(kind, self.phase(), text));
    }

    fn fail(&mut self, vm: Option<&Name>, failure: Failure) {
        self.state = State::Done;
        let text = vm.map_or_else(|| failure.text.clone(), |vm| format!("{vm}: {}", failure.text));
        self.commands.push(Command::Finished(Err(Failure { text, ..failure })));
    }

    fn enter(&mut self, state: State, order: &Order, limit: Duration) {
        self.state = state;
        self.awaited = self.members.clone();
        self.commands.extend(self.members.iter().map(|vm| Command::Send(vm.clone(), order.clone())));
        self.commands.push(Command::WakeAfter(limit));
    }
}

//! One restore, as the coordinator sees it (protocol.md section 5).
//!
//! ```text
//!           all Fetched         all Ready           all Evicted          all Loaded           all Started
//!  Fetching -----------> Polling ---------> Evicting -----------> Loading -----------> Starting -----------> done
//!     |                     | NotReady: asked again    |                    |                |
//!     +---- time-out -------+-------- time-out --------+---- refusal, lost host or time-out -+---> failed (run it again)
//! ```
//!
//! `Fetching` concerns the members whose files lie on another host than the one where they are to run, `Evicting` those
//! that leave a host; without any, the step is left out. While files come, time is counted from the last byte that
//! anybody got. A member whose files are damaged where it is to run gets them anew, if another host has them
//! ([`Restore::mend`]), and is polled once more.
//!
//! Nothing runs before everything is loaded and every old instance is known dead: RESTORE leaves only when the last
//! EVICTED has come, START only when the last LOADED has. A restore that fails leaves the snapshot as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use self::mending::Mending;
use super::{Command, Event};
use crate::control::{Answer, Failure, FailureKind, Order, Phase, Source};
use crate::guest::{Epoch, Prefix};
use crate::name::Name;

mod mending;
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
    /// Without a byte at any host that fetches files.
    pub fetch: Duration,
    /// Until every host has everything; NOT_READY is asked again within it.
    pub poll: Duration,
    /// Ending the instances on the hosts that members leave.
    pub evict: Duration,
    /// Loading RAM.
    pub load: Duration,
    /// Resume and guest hooks.
    pub start: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            fetch: seconds(120),
            poll: seconds(30),
            evict: seconds(60),
            load: seconds(300),
            start: seconds(30),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Fetching,
    Polling,
    Evicting,
    Loading,
    Starting,
    Done,
}

/// Who is restored elsewhere than its files lie, or than it lived.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Moves {
    /// Members whose files are fetched first, and whence.
    pub fetch: BTreeMap<Name, Source>,
    /// Members whose old instance, on the host that they leave, is ended, and where they will live.
    pub evict: BTreeMap<Name, Name>,
}

/// One attempt at a restore.
#[derive(Debug, Clone, Hash)]
pub struct Restore {
    state: State,
    limits: Limits,
    members: BTreeSet<Name>,
    addresses: Vec<Prefix>,
    moves: Moves,
    awaited: BTreeSet<Name>,
    /// How many bytes each had fetched when it last said so.
    sent: BTreeMap<Name, u64>,
    /// Why members are not ready, as each last said, for the report.
    not_ready: BTreeMap<Name, Failure>,
    /// Members whose files come anew while hosts are polled.
    mending: BTreeMap<Name, Mending>,
    warnings: Vec<String>,
    commands: Vec<Command<Decision>>,
}

impl Restore {
    /// Begins a restore of these members; `addresses` are those of all of them.
    #[must_use]
    pub fn begin(
        members: &BTreeSet<Name>,
        addresses: &[Prefix],
        moves: Moves,
        limits: Limits,
    ) -> (Self, Vec<Command<Decision>>) {
        let mut restore = Self {
            state: State::Fetching,
            limits,
            members: members.clone(),
            addresses: addresses.to_vec(),
            moves,
            awaited: BTreeSet::new(),
            sent: BTreeMap::new(),
            not_ready: BTreeMap::new(),
            mending: BTreeMap::new(),
            warnings: Vec::new(),
            commands: Vec::new(),
        };
        restore.enter(State::Fetching);
        let commands = std::mem::take(&mut restore.commands);
        (restore, commands)
    }

    /// Step that is under way.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Fetching => Phase::Fetch,
            State::Polling => Phase::Poll,
            State::Evicting => Phase::Evict,
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
    pub fn order_again(&self, vm: &Name) -> Option<Order> {
        match self.state {
            State::Fetching => self.moves.fetch.get(vm).cloned().map(Order::Fetch),
            State::Polling => Some(self.poll_or_mend(vm)),
            State::Evicting => self.moves.evict.get(vm).cloned().map(Order::Evict),
            State::Loading => Some(Order::Restore(())),
            State::Starting => Some(Order::Start(self.addresses.clone())),
            State::Done => None,
        }
    }

    /// May a member be asked again in this phase? Nothing has been done to any old instance yet.
    #[must_use]
    pub fn asks_again(&self) -> bool {
        matches!(self.state, State::Fetching | State::Polling)
    }

    /// From now on the files of `vm` come from this host, which has them, too.
    pub fn fetch_from(&mut self, vm: &Name, source: Source) {
        if let Some(mending) = self.mending.get_mut(vm) {
            mending.source = source;
        } else if let Some(known) = self.moves.fetch.get_mut(vm) {
            *known = source;
        }
    }

    /// A host that `vm` leaves for `to` is there again: its instance has to be ended, too. Does nothing once that is over.
    pub fn evict_too(&mut self, vm: &Name, to: &Name) {
        if self.asks_again() && self.members.contains(vm) {
            self.moves.evict.insert(vm.clone(), to.clone());
        }
    }

    /// While hosts fetch or are polled, one may go and come back: it is asked again then.
    fn on_host_lost(&mut self, vm: Name) {
        let text = "the connection to its host broke; look at the host agent's log there";
        let failure = Failure::new(FailureKind::HostLost, self.phase(), text);
        match self.state {
            State::Fetching if !self.moves.fetch.contains_key(&vm) => {}
            State::Fetching | State::Polling => {
                self.awaited.insert(vm.clone());
                self.not_ready.insert(vm, failure);
            }
            // The host where it is to run is needed next, and the one that it leaves now: which of them is lost, the order
            // that comes next tells.
            State::Evicting if !self.moves.evict.contains_key(&vm) => {}
            State::Evicting | State::Loading | State::Starting => self.fail(Some(&vm), failure),
            State::Done => {}
        }
    }

    fn on_answer(&mut self, vm: &Name, answer: Answer) {
        match (self.state, answer) {
            (State::Polling, answer) if self.mending.contains_key(vm) => self.on_mending(vm, answer),
            (State::Fetching, Answer::Refused(failure)) if !is_passing(&failure) => {
                self.fail(Some(vm), failure);
            }
            (State::Fetching | State::Polling, Answer::Refused(failure)) => {
                self.awaited.insert(vm.clone());
                self.not_ready.insert(vm.clone(), failure);
            }
            (State::Evicting | State::Loading | State::Starting, Answer::Refused(failure)) => {
                self.fail(Some(vm), failure);
            }
            (State::Fetching, Answer::Fetching(moved)) => self.on_progress(vm, moved.sent),
            (State::Fetching, Answer::Fetched(_))
            | (State::Polling, Answer::Ready(()))
            | (State::Evicting, Answer::Evicted(()))
            | (State::Loading, Answer::Loaded(())) => self.arrived(vm),
            (State::Starting, Answer::Started(problems)) => {
                self.warnings.extend(problems.into_iter().map(|problem| format!("{vm}: {problem}")));
                self.arrived(vm);
            }
            _ => {}
        }
    }

    /// Only bytes count: an attempt that fails again and again is given up.
    fn on_progress(&mut self, vm: &Name, sent: u64) {
        if sent > 0 && self.awaited.contains(vm) && self.sent.insert(vm.clone(), sent) != Some(sent) {
            self.not_ready.remove(vm);
            self.commands.push(Command::WakeAfter(self.limits.fetch));
        }
    }

    fn limit(&self) -> Duration {
        match self.state {
            State::Fetching => self.limits.fetch,
            State::Polling if !self.mending.is_empty() => self.limits.fetch,
            State::Polling => self.limits.poll,
            State::Evicting => self.limits.evict,
            State::Loading => self.limits.load,
            State::Starting | State::Done => self.limits.start,
        }
    }

    fn arrived(&mut self, vm: &Name) {
        self.not_ready.remove(vm);
        if !self.awaited.remove(vm) || !self.awaited.is_empty() {
            return;
        }
        self.leave();
    }

    /// Goes on to what comes next.
    fn leave(&mut self) {
        match self.state {
            State::Fetching => self.enter(State::Polling),
            State::Polling => {
                self.commands.push(Command::Journal(Decision::Loading));
                self.enter(State::Evicting);
            }
            State::Evicting => self.enter(State::Loading),
            State::Loading => self.enter(State::Starting),
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
        let seconds = self.limit().as_secs();
        let reason = |vm: &Name| match (self.not_ready.get(vm), self.mending.get(vm)) {
            (Some(failure), _) => format!("{vm}: {}", failure.text),
            (None, Some(Mending { source, damage })) => format!(
                "{vm}: {}; host {} has them, too, but nothing of them came in {seconds} s",
                damage.text, source.host
            ),
            (None, None) => format!("{vm}: no answer in {seconds} s"),
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

    /// Begins a step with the orders to those whom it concerns; one that concerns nobody is over at once.
    fn enter(&mut self, state: State) {
        self.state = state;
        let orders = self.members.iter().filter_map(|vm| Some((vm.clone(), self.order_again(vm)?)));
        let orders: Vec<_> = orders.collect();
        self.awaited = orders.iter().map(|(vm, _)| vm.clone()).collect();
        if orders.is_empty() {
            return self.leave();
        }
        self.commands.extend(orders.into_iter().map(|(vm, order)| Command::Send(vm, order)));
        self.commands.push(Command::WakeAfter(self.limit()));
    }
}

/// A transfer that broke off goes on where it was when both hosts are there again.
fn is_passing(failure: &Failure) -> bool {
    matches!(failure.kind, FailureKind::HostLost | FailureKind::TimedOut)
}

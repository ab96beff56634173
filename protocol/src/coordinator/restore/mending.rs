//! Files that are damaged on the host where their VM is to run, and come anew from another one while hosts are polled.
//!
//! ```text
//!  POLL -> NOT_READY, damaged -> FETCH -> FETCHED -> POLL -> READY
//! ```

use super::{Command, Decision, Restore, State, is_passing};
use crate::control::{Answer, Failure, Order, Phase, Source};
use crate::name::Name;

/// One member whose files come anew.
#[derive(Debug, Clone, Hash)]
pub(super) struct Mending {
    /// Whence.
    pub source: Source,
    /// What is wrong with those that are there.
    pub damage: Failure,
}

impl Restore {
    /// The files of `vm` are damaged where it is to run, and this host has them, too. Does nothing unless hosts are polled.
    pub fn mend(&mut self, vm: &Name, source: Source, damage: Failure) -> Vec<Command<Decision>> {
        if self.state == State::Polling && self.members.contains(vm) {
            self.awaited.insert(vm.clone());
            self.not_ready.remove(vm);
            self.mending.insert(vm.clone(), Mending { source, damage });
            self.ask(vm);
        }
        std::mem::take(&mut self.commands)
    }

    /// Is it waited for that files of this member come?
    #[must_use]
    pub fn fetches(&self, vm: &Name) -> bool {
        let moves = self.state == State::Fetching && self.moves.fetch.contains_key(vm);
        moves || self.mending.contains_key(vm)
    }

    /// An answer of a member that is mended. What it says to an earlier POLL counts no more.
    pub(super) fn on_mending(&mut self, vm: &Name, answer: Answer) {
        match answer {
            Answer::Fetching(moved) => self.on_progress(vm, moved.sent),
            Answer::Fetched(_) => {
                self.mending.remove(vm);
                self.not_ready.remove(vm);
                self.ask(vm);
            }
            Answer::Refused(failure) if failure.phase != Phase::Fetch => {}
            Answer::Refused(failure) if is_passing(&failure) => {
                self.not_ready.insert(vm.clone(), failure);
            }
            Answer::Refused(failure) => {
                let text = match self.mending.get(vm) {
                    Some(Mending { source, damage }) => {
                        format!("{}; host {} has them, too, but: {}", damage.text, source.host, failure.text)
                    }
                    None => failure.text.clone(),
                };
                self.fail(Some(vm), Failure { text, ..failure });
            }
            _ => {}
        }
    }

    /// What is asked of a member while hosts are polled.
    pub(super) fn poll_or_mend(&self, vm: &Name) -> Order {
        self.mending.get(vm).map_or(Order::Poll(()), |mending| Order::Fetch(mending.source.clone()))
    }

    fn ask(&mut self, vm: &Name) {
        let order = self.poll_or_mend(vm);
        self.commands.push(Command::Send(vm.clone(), order));
        self.commands.push(Command::WakeAfter(self.limit()));
    }
}

//! The one task that owns all state: one `select!`, then apply. Connections, journal and clock are
//! only heard here; nothing else decides.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use unasnap_protocol::control::{FromHost, HostSession};
use unasnap_protocol::fault::Fault;
use unasnap_protocol::household::HostWord;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::Reply;

use super::accessing::Accessing;
use super::chores::Chore;
use super::connections::Input;
use super::controlling::Controlling;
use super::deleting::Deletion;
use super::journal::{Journal, Result};
use super::registry::{LinkId, Registry};
use super::replicating::Replicating;
use super::restoring::Restoring;
use super::taking::Taking;
use super::verifying::Verifying;
use crate::config::Replicas;

/// Operators who wait for the same answer.
pub type Watchers = Vec<mpsc::Sender<Reply>>;

/// All state of the coordinator. At most one course, snapshot or restore, is open per deployment.
pub struct Owner {
    pub(super) journal: Journal,
    pub(super) registry: Registry,
    /// Snapshots under way, by deployment.
    pub(super) takings: BTreeMap<Name, Taking>,
    /// Restores under way, by deployment.
    pub(super) restorings: BTreeMap<Name, Restoring>,
    /// Verifications under way, by deployment.
    pub(super) verifyings: BTreeMap<Name, Verifying>,
    /// VMs being started, stopped and so on, by the courses' own names.
    pub(super) controllings: BTreeMap<Name, Controlling>,
    /// Counts them.
    pub(super) controls: u64,
    /// What hosts are asked that is no member's affair, by number.
    pub(super) chores: BTreeMap<u64, Chore>,
    /// Counts those of this term.
    pub(super) chore_count: u32,
    /// Guests that operators use, by the operators' connections.
    pub(super) accessings: BTreeMap<LinkId, Accessing>,
    /// Deletions for which an operator waits, by snapshot.
    pub(super) deletions: BTreeMap<Name, Deletion>,
    /// Before which nothing is done again for deployments that give way to users.
    pub(super) yield_after: BTreeMap<Name, Instant>,
    /// Copies of snapshots on other hosts.
    pub(super) replicating: Replicating,
    pub(super) started: Instant,
    /// For tests: the mistake that snapshots are taken with.
    pub(super) fault: Fault,
}

impl Owner {
    /// Nobody is connected yet.
    pub fn new(journal: Journal, replicas: Replicas, fault: Fault) -> Self {
        Self {
            journal,
            registry: Registry::default(),
            takings: BTreeMap::new(),
            restorings: BTreeMap::new(),
            verifyings: BTreeMap::new(),
            controllings: BTreeMap::new(),
            controls: 0,
            chores: BTreeMap::new(),
            chore_count: 0,
            accessings: BTreeMap::new(),
            deletions: BTreeMap::new(),
            yield_after: BTreeMap::new(),
            replicating: Replicating::new(replicas),
            started: Instant::now(),
            fault,
        }
    }

    /// Finishes what a dead coordinator left, then serves until `stop`. An error of the journal ends it:
    /// what is not durable must not be acted on, and the next start takes it up from what is.
    pub async fn run(
        mut self,
        mut incoming: mpsc::Receiver<Input>,
        stop: impl Future<Output = ()>,
    ) -> Result<()> {
        self.recover()?;
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(stop);
        loop {
            tokio::select! {
                input = incoming.recv() => match input {
                    Some(input) => self.apply(input)?,
                    None => return Ok(()),
                },
                () = sleep_until(self.next_deadline()) => self.on_deadlines()?,
                _ = tick.tick() => self.on_tick()?,
                () = &mut stop => return Ok(()),
            }
        }
    }

    fn apply(&mut self, input: Input) -> Result<()> {
        match input {
            Input::HostHello { link, ip, hello, outbox } => self.on_hello(link, ip, *hello, outbox),
            Input::HostGone { link, host, why } if self.registry.is_current(&host, link) => {
                tracing::warn!("lost host {host}: {why}");
                self.lose_host(&host)
            }
            Input::HostSaid { link, host, message, heard_ns, share }
                if self.registry.is_current(&host, link) =>
            {
                let applied = self.on_message(&host, *message, heard_ns);
                drop(share);
                applied
            }
            // What a replaced connection still says.
            Input::HostGone { .. } | Input::HostSaid { .. } => Ok(()),
            Input::Asked { operator, request, replies } => {
                tracing::info!("operator {operator} asks: {request:?}");
                self.on_request(request, replies)
            }
            Input::GuestsOpened { link, operator, opening, replies } => {
                self.open_guests(link, &operator, opening, replies);
                Ok(())
            }
            Input::GuestAsked { link, vm, number, ask } => {
                self.ask_guest(link, &vm, number, ask);
                Ok(())
            }
            Input::GuestsLeft { link } => {
                self.leave_guests(link);
                Ok(())
            }
        }
    }

    fn on_message(&mut self, host: &Name, message: FromHost, heard_ns: u64) -> Result<()> {
        match message {
            FromHost::Session(HostSession::Inventory(inventory)) => self.on_inventory(host, inventory),
            FromHost::Session(HostSession::Serves(address)) => {
                self.registry.set_transfer(host, address);
                Ok(())
            }
            FromHost::Session(HostSession::UserHere(here)) => {
                self.registry.set_user_here(host, here);
                Ok(())
            }
            FromHost::Session(HostSession::ClockReading(reading)) => {
                self.on_clock_reading(host, reading, heard_ns);
                Ok(())
            }
            FromHost::Session(HostSession::Standing(standing)) => {
                self.on_standing(host, standing);
                Ok(())
            }
            FromHost::Session(HostSession::Household(HostWord::Gone(vms))) => self.on_gone(host, &vms),
            FromHost::Session(HostSession::Household(HostWord::Done { number, outcome })) => {
                self.on_done(host, number, outcome)
            }
            FromHost::Session(HostSession::Household(HostWord::Bringing { number, from, moved })) => {
                self.on_bringing(host, number, from, moved);
                Ok(())
            }
            FromHost::Session(HostSession::Hello(_)) => Ok(()),
            FromHost::Access(envelope, answer) => {
                self.on_guest_answer(host, &envelope, answer);
                Ok(())
            }
            FromHost::Member(envelope, answer) => self.on_answer(host, &envelope, answer),
        }
    }

    fn next_deadline(&self) -> Instant {
        let takings = self.takings.values().map(|taking| taking.deadline);
        let restorings = self.restorings.values().map(|restoring| restoring.deadline);
        let deletions = self.deletions.values().map(|deletion| deletion.deadline);
        let verifyings = self.verifyings.values().map(|verifying| verifying.deadline);
        let controllings = self.controllings.values().map(|controlling| controlling.deadline);
        let chores = self.chores.values().map(|chore| chore.deadline);
        let accessings = self.accessings.values().filter_map(Accessing::deadline);
        let courses = takings.chain(restorings).chain(verifyings).chain(controllings).chain(deletions);
        let first = courses.chain(chores).chain(accessings).min();
        first.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600))
    }

    fn on_deadlines(&mut self) -> Result<()> {
        let now = Instant::now();
        for deployment in due(&self.takings, |taking| taking.deadline <= now) {
            self.on_taking_deadline(&deployment)?;
        }
        for deployment in due(&self.restorings, |restoring| restoring.deadline <= now) {
            self.on_restoring_deadline(&deployment)?;
        }
        for deployment in due(&self.verifyings, |verifying| verifying.deadline <= now) {
            self.on_verifying_deadline(&deployment);
        }
        self.on_controlling_deadline();
        self.on_chore_deadline()?;
        self.on_accessing_deadline();
        for snapshot in due(&self.deletions, |deletion| deletion.deadline <= now) {
            self.answer_deletion(&snapshot);
        }
        Ok(())
    }

    /// Once a second: say that we are still here, tell operators how far things are, ask again.
    fn on_tick(&mut self) -> Result<()> {
        for host in self.registry.connected() {
            if !self.ask_clock(&host) {
                tracing::warn!("lost host {host}: it does not take what is sent to it");
                self.lose_host(&host)?;
            }
        }
        self.ask_again()?;
        self.give_way()?;
        self.order_deletions(None);
        self.replicate()?;
        self.takings.values_mut().for_each(Taking::show);
        self.restorings.values_mut().for_each(Restoring::show);
        self.verifyings.values_mut().for_each(Verifying::show);
        self.controllings.values_mut().for_each(Controlling::show);
        self.chores.values_mut().for_each(Chore::show);
        Ok(())
    }
}

fn due<T>(courses: &BTreeMap<Name, T>, is_due: impl Fn(&T) -> bool) -> Vec<Name> {
    courses.iter().filter(|(_, course)| is_due(course)).map(|(name, _)| name.clone()).collect()
}

/// Tells every watcher; one that does not read loses progress only, for its queue is longer than any
/// course's.
pub fn tell(watchers: &Watchers, reply: &Reply) {
    for watcher in watchers {
        // An operator who has gone away is not waited for: the course goes on without.
        let _ = watcher.try_send(reply.clone());
    }
}

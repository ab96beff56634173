//! Carries out the state machine of a snapshot: its journal entries, orders, waits and its record.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::mpsc;
use tokio::time::Instant;
use unasnap_channel::steady_ns;
use unasnap_protocol::control::{Answer, Envelope, Failure, FailureKind, Order, Phase};
use unasnap_protocol::coordinator::clock::{MemberCut, skew};
use unasnap_protocol::coordinator::snapshot::{Decision, Limits, Snapshot};
use unasnap_protocol::coordinator::{Command, Event};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Place, Progress, Reply, RequestError, RequestErrorKind, SnapshotState, ms};

use super::clocks::Clocks;
use super::journal::{Journal, Result, Stored};
use super::owner::{Owner, Watchers, tell};

/// A restore that an operator has asked for.
pub struct Wish {
    /// The snapshot.
    pub id: Name,
    /// Where VMs are to run.
    pub places: Vec<Place>,
    /// Who hears of it.
    pub replies: mpsc::Sender<Reply>,
}

/// A snapshot under way.
pub struct Taking {
    /// Decides.
    pub machine: Snapshot,
    /// Its record as far as it is known.
    pub stored: Stored,
    /// Host of every member.
    pub hosts: BTreeMap<Name, Name>,
    /// When the machine wants to be woken.
    pub deadline: Instant,
    /// Members that stand still until all do.
    pub standing: BTreeSet<Name>,
    clocks: Clocks,
    watchers: Watchers,
    /// Is the deployment to be powered off when it is committed?
    pauses: bool,
    /// A restore that waits for the end.
    then: Option<Wish>,
}

impl Taking {
    fn new(machine: Snapshot, stored: Stored, watchers: Watchers, pauses: bool) -> Self {
        let hosts = stored.places();
        let (deadline, clocks) = (Instant::now(), Clocks::default());
        let standing = BTreeSet::new();
        Self { machine, stored, hosts, deadline, standing, clocks, watchers, pauses, then: None }
    }

    /// Does an answer under this envelope from this host belong here?
    pub fn expects(&self, host: &Name, envelope: &Envelope) -> bool {
        envelope.snapshot == self.stored.record.id
            && envelope.incarnation == self.stored.incarnation
            && self.hosts.get(&envelope.vm) == Some(host)
    }

    /// The decision, once there is one, for members that have to hear it again.
    pub fn settling_order(&self) -> Option<Order> {
        match self.machine.phase() {
            Phase::Commit => Some(Order::Commit(())),
            Phase::Abort => {
                let why = self.stored.record.failure.as_ref().map(ToString::to_string);
                Some(Order::Abort(why.unwrap_or_default()))
            }
            _ => None,
        }
    }

    /// Tells operators how far it is.
    pub fn show(&mut self) {
        let progress = Progress {
            snapshot: self.stored.record.id.clone(),
            phase: self.machine.phase(),
            members: self.hosts.keys().cloned().collect(),
            waiting: self.machine.awaited().iter().cloned().collect(),
        };
        tell(&self.watchers, &Reply::Progress(progress));
    }

    fn handle(&mut self, event: Event) -> Vec<Command<Decision>> {
        let commands = self.machine.handle(event);
        self.note_members();
        commands
    }

    fn note_members(&mut self) {
        for member in &mut self.stored.record.members {
            let Some(known) = self.machine.members().get(&member.vm) else { continue };
            if let (Some(cut), None) = (&known.cut, member.instant_ns) {
                member.set_cut(cut, self.clocks.bound_ns(&member.host));
            }
            if let (Some(saved), None) = (&known.saved, member.saved_ns) {
                member.set_saved(saved);
            }
        }
    }

    fn note_sent(&mut self, order: &Order) {
        let phases = &mut self.stored.record.phases;
        let time = match order {
            Order::Prepare(_) => &mut phases.prepare_ns,
            Order::Arm(()) => &mut phases.arm_ns,
            Order::Take(_) => &mut phases.take_ns,
            Order::Clear(()) => &mut phases.clear_ns,
            _ => return,
        };
        time.get_or_insert_with(steady_ns);
    }

    /// Makes a decision durable together with all that is known by then.
    fn decide(&mut self, decision: Decision, journal: &mut Journal) -> Result<()> {
        let record = &mut self.stored.record;
        match decision {
            Decision::Opened => return journal.open_snapshot(self.stored.clone()),
            Decision::Taken => {}
            Decision::Committed => record.state = SnapshotState::Committed,
            Decision::Aborted(failure) => {
                record.state = SnapshotState::Aborted;
                record.failure.get_or_insert(failure);
            }
            Decision::Closed => self.stored.closed = true,
        }
        let commits = self.stored.is_committed() && self.stored.record.phases.commit_ns.is_none();
        self.summarise(commits);
        journal.update_snapshot(self.stored.clone())?;
        // The journal's own sync is part of the global time; Closed writes the exact figure.
        self.summarise(commits);
        Ok(())
    }

    fn summarise(&mut self, commits_now: bool) {
        self.summarise_skew();
        let record = &mut self.stored.record;
        if commits_now {
            record.phases.commit_ns = Some(steady_ns());
        }
        let locals: Option<Vec<f64>> = record.members.iter().map(|member| member.local_ms).collect();
        record.save_ms = locals.and_then(|all| all.into_iter().max_by(f64::total_cmp));
        let span = record.phases.take_ns.zip(record.phases.commit_ns);
        record.global_ms = span.map(|(take, commit)| ms(commit.saturating_sub(take)));
    }

    /// Once, when all have cut.
    fn summarise_skew(&mut self) {
        let record = &mut self.stored.record;
        let cuts = record.members.iter().map(|member| {
            let bound_ns = self.clocks.bound_ns(&member.host);
            Some(MemberCut { host: &member.host, ns: member.instant_ns?, bound_ns })
        });
        let all_cut: Option<Vec<_>> = cuts.collect();
        let Some(skew) = all_cut.filter(|_| record.skew_ms.is_none()).and_then(|cuts| skew(&cuts)) else {
            return;
        };
        record.skew_ms = Some(ms(skew.ns));
        record.skew_bound_ms = skew.bound_ns.map(ms);
        for member in &mut record.members {
            member.after_first_ms = member.instant_ns.map(|ns| ms(ns - skew.first_ns));
        }
    }
}

impl Owner {
    /// `snapshot take`, and the first half of a pause.
    pub(super) fn take(
        &mut self,
        deployment: Option<Name>,
        replies: mpsc::Sender<Reply>,
        pauses: bool,
    ) -> Result<()> {
        let stored = match self.plan(deployment) {
            Ok(stored) => stored,
            Err(error) => {
                tell(&vec![replies], &Reply::Failed(error));
                return Ok(());
            }
        };
        let members: BTreeSet<_> = stored.places().into_keys().collect();
        let (machine, commands) =
            Snapshot::begin_with(self.fault, &members, &stored.addresses, Limits::default());
        self.open_taking(Taking::new(machine, stored, vec![replies], pauses), commands)
    }

    /// What is under way for a deployment, in words.
    pub(super) fn open_course(&self, deployment: &Name) -> Option<String> {
        self.open_but_chores(deployment).or_else(|| self.open_chore(deployment))
    }

    /// The same, without VMs that come or go.
    pub(super) fn open_but_chores(&self, deployment: &Name) -> Option<String> {
        let taking =
            self.takings.get(deployment).map(|taking| format!("snapshot {}", taking.stored.record.id));
        let restoring =
            || self.restorings.get(deployment).map(|restoring| format!("the restore of {}", restoring.id));
        let verifying = || {
            self.verifyings.get(deployment).map(|verifying| format!("the verification of {}", verifying.id))
        };
        taking.or_else(restoring).or_else(verifying).or_else(|| self.open_verb(deployment))
    }

    /// What is being done to its VMs, in words; also when one comes or goes.
    pub(super) fn open_control(&self, deployment: &Name) -> Option<String> {
        self.open_verb(deployment).or_else(|| self.open_chore(deployment))
    }

    fn open_verb(&self, deployment: &Name) -> Option<String> {
        self.controllings.values().find_map(|controlling| controlling.open_in(deployment))
    }

    /// Takes up what a dead coordinator left: aborts what was not committed, tells of what was.
    pub(super) fn recover(&mut self) -> Result<()> {
        let left: Vec<_> =
            self.journal.snapshots().values().filter(|stored| !stored.closed).cloned().collect();
        for stored in left {
            tracing::warn!("snapshot {} was under way when the coordinator stopped", stored.record.id);
            let members: BTreeSet<_> = stored.places().into_keys().collect();
            let (machine, commands) = if stored.is_committed() {
                Snapshot::commit_after_crash(&members, Limits::default())
            } else {
                Snapshot::abort_after_crash(&members, Limits::default())
            };
            self.open_taking(Taking::new(machine, stored, Vec::new(), false), commands)?;
        }
        Ok(())
    }

    fn open_taking(&mut self, taking: Taking, commands: Vec<Command<Decision>>) -> Result<()> {
        let deployment = taking.stored.record.deployment.clone();
        self.takings.insert(deployment.clone(), taking);
        self.carry_out_taking(&deployment, commands)
    }

    /// An answer of a member.
    pub(super) fn on_taking_answer(&mut self, deployment: &Name, vm: Name, answer: Answer) -> Result<()> {
        self.with_taking(deployment, |taking| {
            let answer = match taking.hosts.get(&vm) {
                Some(host) => taking.clocks.translate(host, answer),
                None => answer,
            };
            taking.handle(Event::Answer(vm, answer))
        })?;
        self.let_run_on(deployment);
        Ok(())
    }

    /// A wait ran out.
    pub(super) fn on_taking_deadline(&mut self, deployment: &Name) -> Result<()> {
        self.with_taking(deployment, |taking| taking.handle(Event::Deadline))
    }

    /// Ends it, unless it is decided already.
    pub(super) fn cancel_taking(&mut self, deployment: &Name, failure: Failure) -> Result<()> {
        self.with_taking(deployment, |taking| taking.machine.cancel(failure))
    }

    /// Cancels it, and restores `id` when it has ended. The replies come back if a restore waits already.
    pub(super) fn restore_after_taking(
        &mut self,
        deployment: &Name,
        wish: Wish,
    ) -> Result<Option<mpsc::Sender<Reply>>> {
        match self.takings.get_mut(deployment) {
            Some(taking) if taking.then.is_none() => taking.then = Some(wish),
            _ => return Ok(Some(wish.replies)),
        }
        let text = "the operator asked for a restore meanwhile";
        self.cancel_taking(deployment, Failure::new(FailureKind::BadRequest, Phase::Abort, text))?;
        Ok(None)
    }

    /// A host has gone.
    pub(super) fn takings_lose(&mut self, host: &Name) -> Result<()> {
        let on_host = |taking: &Taking| -> Vec<Name> {
            taking.hosts.iter().filter(|(_, place)| *place == host).map(|(vm, _)| vm.clone()).collect()
        };
        let lost: Vec<_> =
            self.takings.iter().map(|(name, taking)| (name.clone(), on_host(taking))).collect();
        for (deployment, vms) in lost {
            for vm in vms {
                self.with_taking(&deployment, |taking| taking.handle(Event::HostLost(vm)))?;
            }
        }
        Ok(())
    }

    fn with_taking(
        &mut self,
        deployment: &Name,
        act: impl FnOnce(&mut Taking) -> Vec<Command<Decision>>,
    ) -> Result<()> {
        let Some(taking) = self.takings.get_mut(deployment) else { return Ok(()) };
        let commands = act(taking);
        self.carry_out_taking(deployment, commands)
    }

    /// In order: a decision is durable before what follows it is sent.
    fn carry_out_taking(&mut self, deployment: &Name, commands: Vec<Command<Decision>>) -> Result<()> {
        if commands.iter().any(|command| matches!(command, Command::Send(_, Order::Arm(())))) {
            self.ask_clocks(deployment);
        }
        for command in commands {
            let Some(taking) = self.takings.get_mut(deployment) else { return Ok(()) };
            match command {
                Command::Journal(decision) => {
                    tracing::info!("{}: {decision:?}", taking.stored.record.id);
                    let takes = decision == Decision::Taken;
                    taking.decide(decision, &mut self.journal)?;
                    if takes {
                        taking.clocks = Clocks::fix(taking.hosts.values(), &self.registry);
                        taking.stored.record.phases.cut_at_ns = taking.clocks.at_ns();
                    }
                }
                Command::Send(vm, order) => {
                    taking.note_sent(&order);
                    let envelope = taking.stored.envelope(&vm, self.journal.term());
                    if let Some(host) = taking.hosts.get(&vm) {
                        let order = taking.clocks.time_order(host, order);
                        self.registry.order(host, &envelope, &order);
                    }
                }
                Command::WakeAfter(limit) => taking.deadline = Instant::now() + limit,
                Command::Finished(result) => return self.finish_taking(deployment, result),
            }
        }
        if let Some(taking) = self.takings.get_mut(deployment) {
            taking.show();
        }
        Ok(())
    }

    /// So that TAKE finds fresh readings.
    fn ask_clocks(&self, deployment: &Name) {
        let Some(taking) = self.takings.get(deployment) else { return };
        for host in taking.hosts.values().collect::<BTreeSet<_>>() {
            // One that does not take it does not take ARM either.
            self.ask_clock(host);
        }
    }

    fn finish_taking(&mut self, deployment: &Name, result: std::result::Result<(), Failure>) -> Result<()> {
        let Some(taking) = self.takings.remove(deployment) else { return Ok(()) };
        match result {
            Ok(()) if taking.pauses && taking.then.is_none() => {
                let id = taking.stored.record.id;
                self.journal.set_paused(deployment, Some(id.clone()))?;
                self.power_off(deployment.clone(), id, taking.watchers);
            }
            Ok(()) if taking.pauses => {
                let id = &taking.stored.record.id;
                let text =
                    format!("{deployment} is saved in {id} and runs on: a restore was asked for meanwhile");
                tell(&taking.watchers, &Reply::Failed(RequestError::new(RequestErrorKind::Refused, text)));
            }
            Ok(()) => {
                self.forget_stale_pause(deployment)?;
                tell(&taking.watchers, &Reply::Record(Box::new(taking.stored.record)));
                tell(&taking.watchers, &Reply::End(()));
            }
            Err(failure) => {
                let id = &taking.stored.record.id;
                let text = format!(
                    "snapshot {id} was aborted in {failure}; every VM runs on and nothing of it is kept"
                );
                tell(&taking.watchers, &Reply::Failed(RequestError::new(error_kind(&failure), text)));
            }
        }
        self.journal.prune_aborted()?;
        match taking.then {
            Some(Wish { id, places, replies }) => self.restore(Some(id), places, replies),
            None => Ok(()),
        }
    }
}

/// Kind of the error that an operator hears.
pub fn error_kind(failure: &Failure) -> RequestErrorKind {
    match failure.kind {
        FailureKind::TimedOut => RequestErrorKind::TimedOut,
        _ => RequestErrorKind::Aborted,
    }
}

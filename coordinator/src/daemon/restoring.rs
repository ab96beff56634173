//! Carries out the state machine of a restore.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::mpsc;
use tokio::time::Instant;
use unasnap_protocol::control::{Answer, Envelope, Failure, FailureKind, Phase, VmState};
use unasnap_protocol::coordinator::restore::{Decision, Limits, Restore, epoch_for};
use unasnap_protocol::coordinator::{Command, Event};
use unasnap_protocol::guest::Epoch;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{
    Place, Progress, Reply, RequestError, RequestErrorKind, RestoreReport, SnapshotState,
};

use super::journal::{Counters, Result, Stored};
use super::owner::{Owner, Watchers, tell};
use super::taking::error_kind;

/// A restore under way.
pub struct Restoring {
    /// The snapshot.
    pub id: Name,
    /// Decides.
    pub machine: Restore,
    /// When the machine wants to be woken.
    pub deadline: Instant,
    deployment: Name,
    hosts: BTreeMap<Name, Name>,
    /// At which the members start.
    epoch: Epoch,
    /// Of the instances that will run.
    incarnation: u64,
    /// Members to be polled again at the next tick.
    again: BTreeSet<Name>,
    consistent: bool,
    /// When each step so far began.
    steps: Vec<Instant>,
    watchers: Watchers,
}

impl Restoring {
    /// Does an answer under this envelope from this host belong here?
    pub fn expects(&self, host: &Name, envelope: &Envelope) -> bool {
        envelope.snapshot == self.id
            && envelope.incarnation == self.incarnation
            && self.hosts.get(&envelope.vm) == Some(host)
    }

    /// Tells operators how far it is.
    pub fn show(&mut self) {
        let progress = Progress {
            snapshot: self.id.clone(),
            phase: self.machine.phase(),
            members: self.hosts.keys().cloned().collect(),
            waiting: self.machine.awaited().iter().cloned().collect(),
        };
        tell(&self.watchers, &Reply::Progress(progress));
    }

    fn envelope(&self, vm: &Name, term: u64) -> Envelope {
        Envelope {
            vm: vm.clone(),
            deployment: self.deployment.clone(),
            snapshot: self.id.clone(),
            epoch: self.epoch,
            term,
            incarnation: self.incarnation,
        }
    }

    /// How long each step took, ms; the last one until now.
    fn step_ms(&self) -> [f64; 3] {
        let now = Instant::now();
        let at = |step: usize| self.steps.get(step).copied().unwrap_or(now);
        [0, 1, 2].map(|step| at(step + 1).duration_since(at(step)).as_secs_f64() * 1e3)
    }

    fn report(&self) -> RestoreReport {
        let [poll_ms, load_ms, start_ms] = self.step_ms();
        let place = |(vm, host): (&Name, &Name)| Place { vm: vm.clone(), host: host.clone() };
        let mut warnings = self.machine.warnings().to_vec();
        if !self.consistent {
            warnings.push(format!("{} was taken without colouring and is not consistent", self.id));
        }
        warnings.sort();
        RestoreReport {
            snapshot: self.id.clone(),
            incarnation: self.incarnation,
            restore_ms: poll_ms + load_ms + start_ms,
            poll_ms,
            load_ms,
            start_ms,
            members: self.hosts.iter().map(place).collect(),
            warnings,
        }
    }
}

impl Owner {
    /// `restore`. An open snapshot of the deployment is cancelled first, and its end awaited.
    pub(super) fn restore(&mut self, id: Option<Name>, replies: mpsc::Sender<Reply>) -> Result<()> {
        let stored = match self.choose_snapshot(id) {
            Ok(stored) => stored,
            Err(error) => {
                tell(&vec![replies], &Reply::Failed(error));
                return Ok(());
            }
        };
        let deployment = stored.record.deployment.clone();
        let mut refused = None;
        if self.restorings.contains_key(&deployment) || self.open_control(&deployment).is_some() {
            refused = Some(replies);
        } else if self.takings.contains_key(&deployment) {
            refused = self.restore_after_taking(&deployment, stored.record.id, replies)?;
        } else {
            self.open_restoring(stored, replies)?;
        }
        if let Some(replies) = refused {
            let what = self.open_control(&deployment).unwrap_or_else(|| "a restore".to_owned());
            let text = format!("{what} of deployment {deployment} is under way; try again when it has ended");
            tell(&vec![replies], &Reply::Failed(RequestError::new(RequestErrorKind::Refused, text)));
        }
        Ok(())
    }

    /// A usable snapshot, the newest when none is named.
    pub(super) fn choose_snapshot(&self, wanted: Option<Name>) -> std::result::Result<Stored, RequestError> {
        let error = |kind, text| Err(RequestError::new(kind, text));
        let Some(id) = wanted else { return self.newest_snapshot() };
        let Some(stored) = self.journal.snapshots().get(&id) else {
            return error(RequestErrorKind::NotFound, no_snapshot(&id));
        };
        let why = match stored.record.state {
            SnapshotState::Committed => return Ok(stored.clone()),
            SnapshotState::Open => "is not complete yet",
            SnapshotState::Aborted => "was aborted",
            SnapshotState::Deleting => "is being deleted",
        };
        error(
            RequestErrorKind::Refused,
            format!("snapshot {id} {why}; `unasnap snapshot list` shows the usable ones"),
        )
    }

    fn newest_snapshot(&self) -> std::result::Result<Stored, RequestError> {
        let error = |kind, text: String| Err(RequestError::new(kind, text));
        let usable = || self.journal.snapshots().values().filter(|stored| stored.is_committed());
        let deployments: BTreeSet<_> = usable().map(|stored| stored.record.deployment.as_str()).collect();
        match usable().max_by_key(|stored| stored.record.epoch) {
            None => error(
                RequestErrorKind::NotFound,
                "there is no usable snapshot yet; `unasnap snapshot take` takes one".to_owned(),
            ),
            Some(stored) if deployments.len() == 1 => Ok(stored.clone()),
            Some(_) => {
                let list = deployments.into_iter().collect::<Vec<_>>().join(", ");
                error(
                    RequestErrorKind::Refused,
                    format!("there are snapshots of several deployments ({list}); name the snapshot"),
                )
            }
        }
    }

    fn open_restoring(&mut self, stored: Stored, replies: mpsc::Sender<Reply>) -> Result<()> {
        let hosts = stored.places();
        let members = hosts.keys().cloned().collect();
        let (machine, commands) = Restore::begin(&members, &stored.addresses, Limits::default());
        let deployment = stored.record.deployment;
        let counters = self.journal.counters(&deployment);
        let restoring = Restoring {
            id: stored.record.id,
            machine,
            deadline: Instant::now(),
            deployment: deployment.clone(),
            hosts,
            epoch: epoch_for(stored.record.epoch, counters.last_epoch),
            incarnation: counters.incarnation + 1,
            again: BTreeSet::new(),
            consistent: stored.record.consistent,
            steps: Vec::new(),
            watchers: vec![replies],
        };
        self.restorings.insert(deployment.clone(), restoring);
        self.carry_out_restoring(&deployment, commands)
    }

    /// An answer of a member. One that is not ready is asked again.
    pub(super) fn on_restoring_answer(&mut self, deployment: &Name, vm: Name, answer: Answer) -> Result<()> {
        let Some(restoring) = self.restorings.get_mut(deployment) else { return Ok(()) };
        if matches!((restoring.machine.phase(), &answer), (Phase::Poll, Answer::Refused(_))) {
            restoring.again.insert(vm.clone());
        }
        self.restoring_event(deployment, Event::Answer(vm, answer))
    }

    /// A wait ran out.
    pub(super) fn on_restoring_deadline(&mut self, deployment: &Name) -> Result<()> {
        self.restoring_event(deployment, Event::Deadline)
    }

    /// A host has gone.
    pub(super) fn restorings_lose(&mut self, host: &Name) -> Result<()> {
        let members = |restoring: &Restoring| -> Vec<Name> {
            restoring.hosts.iter().filter(|(_, place)| *place == host).map(|(vm, _)| vm.clone()).collect()
        };
        let lost: Vec<_> =
            self.restorings.iter().map(|(name, restoring)| (name.clone(), members(restoring))).collect();
        for (deployment, vms) in lost {
            for vm in vms {
                self.restoring_event(&deployment, Event::HostLost(vm))?;
            }
        }
        Ok(())
    }

    /// A host has come: its members are polled at the next tick.
    pub(super) fn resume_restorings(&mut self, host: &Name) {
        for restoring in
            self.restorings.values_mut().filter(|restoring| restoring.machine.phase() == Phase::Poll)
        {
            let here = |vm: &&Name| restoring.hosts.get(*vm) == Some(host);
            restoring.again.extend(restoring.machine.awaited().iter().filter(here).cloned());
        }
    }

    /// Polls members that were not ready.
    pub(super) fn ask_again(&mut self) -> Result<()> {
        for deployment in self.restorings.keys().cloned().collect::<Vec<_>>() {
            let Some(restoring) = self.restorings.get_mut(&deployment) else { continue };
            let Some(order) =
                restoring.machine.order_again().filter(|_| restoring.machine.phase() == Phase::Poll)
            else {
                continue;
            };
            let again = std::mem::take(&mut restoring.again);
            let commands = again.into_iter().map(|vm| Command::Send(vm, order.clone())).collect();
            self.carry_out_restoring(&deployment, commands)?;
        }
        Ok(())
    }

    fn restoring_event(&mut self, deployment: &Name, event: Event) -> Result<()> {
        let Some(restoring) = self.restorings.get_mut(deployment) else { return Ok(()) };
        let commands = restoring.machine.handle(event);
        self.carry_out_restoring(deployment, commands)
    }

    fn carry_out_restoring(&mut self, deployment: &Name, commands: Vec<Command<Decision>>) -> Result<()> {
        let mut unsent = Vec::new();
        for command in commands {
            let Some(restoring) = self.restorings.get_mut(deployment) else { return Ok(()) };
            match command {
                Command::Journal(Decision::Loading) => {
                    let counters =
                        Counters { last_epoch: restoring.epoch, incarnation: restoring.incarnation };
                    self.journal.set_counters(deployment, counters)?;
                }
                // Nothing depends on it after a crash: the operator restores again if VMs do not run.
                Command::Journal(Decision::Started) => tracing::info!("restored {}", restoring.id),
                Command::Send(vm, order) => {
                    let envelope = restoring.envelope(&vm, self.journal.term());
                    let host = restoring.hosts.get(&vm);
                    if !host.is_some_and(|host| self.registry.order(host, &envelope, &order)) {
                        unsent.push(vm);
                    }
                }
                // Each step begins with its orders and this wish.
                Command::WakeAfter(limit) => {
                    let now = Instant::now();
                    restoring.steps.push(now);
                    restoring.deadline = now + limit;
                }
                Command::Finished(result) => {
                    return self.finish_restoring(deployment, result);
                }
            }
        }
        unsent.into_iter().try_for_each(|vm| self.note_unreachable(deployment, vm))?;
        if let Some(restoring) = self.restorings.get_mut(deployment) {
            restoring.show();
        }
        Ok(())
    }

    fn note_unreachable(&mut self, deployment: &Name, vm: Name) -> Result<()> {
        let Some(restoring) = self.restorings.get_mut(deployment) else { return Ok(()) };
        let host = restoring.hosts.get(&vm).map_or("unknown", Name::as_str);
        let text = format!("its host {host} is not connected; start the host agent there");
        let failure = Failure::new(FailureKind::HostLost, restoring.machine.phase(), text);
        self.restoring_event(deployment, Event::Answer(vm, Answer::Refused(failure)))
    }

    fn finish_restoring(
        &mut self,
        deployment: &Name,
        result: std::result::Result<(), Failure>,
    ) -> Result<()> {
        let Some(restoring) = self.restorings.remove(deployment) else { return Ok(()) };
        let reply = match result {
            Ok(()) => {
                // As for a single VM that was started: whoever asks at once is to see it.
                for (vm, host) in &restoring.hosts {
                    self.registry.set_state(host, vm, VmState::Running, restoring.incarnation);
                }
                if self.journal.paused(deployment).is_some() {
                    self.journal.set_paused(deployment, None)?;
                }
                Reply::Restored(restoring.report())
            }
            Err(failure) => {
                let id = &restoring.id;
                tracing::warn!("the restore of {id} failed in {failure}");
                let text = format!(
                    "the restore of {id} failed in {failure}; the snapshot is untouched: run `unasnap restore {id}` again"
                );
                Reply::Failed(RequestError::new(error_kind(&failure), text))
            }
        };
        tell(&restoring.watchers, &reply);
        Ok(())
    }
}

/// In words, with advice.
pub fn no_snapshot(id: &Name) -> String {
    format!("there is no snapshot {id}; `unasnap snapshot list --all` shows those that are known")
}

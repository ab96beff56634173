//! Carries out the state machine of a restore.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::mpsc;
use tokio::time::Instant;
use unasnap_protocol::control::{Answer, Envelope, Failure, FailureKind, Order, Phase, VmState};
use unasnap_protocol::coordinator::restore::{Decision, Limits, Restore, epoch_for};
use unasnap_protocol::coordinator::{Command, Event};
use unasnap_protocol::elsewhere::FetchedMember;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Place, Reply, RequestError, RequestErrorKind, SnapshotState};

pub use self::course::Restoring;
use super::journal::{Counters, Result, Stored};
use super::owner::{Owner, tell};
use super::placing::Placement;
use super::registry::not_connected;
use super::taking::{Wish, error_kind};

mod course;
mod sources;

impl Owner {
    /// `restore`, with some VMs on hosts that are named. An open snapshot of the deployment is cancelled first, and its
    /// end awaited.
    pub(super) fn restore(
        &mut self,
        id: Option<Name>,
        places: Vec<Place>,
        replies: mpsc::Sender<Reply>,
    ) -> Result<()> {
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
            let wish = Wish { id: stored.record.id, places, replies };
            refused = self.restore_after_taking(&deployment, wish)?;
        } else {
            match self.place(&stored, &places) {
                Ok(placement) => self.open_restoring(stored, placement, replies)?,
                Err(error) => tell(&vec![replies], &Reply::Failed(error)),
            }
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

    fn open_restoring(
        &mut self,
        mut stored: Stored,
        placement: Placement,
        replies: mpsc::Sender<Reply>,
    ) -> Result<()> {
        let Placement { hosts, moves, evicting, away } = placement;
        let coming = |(vm, to): (&Name, &Name)| {
            let from = moves.fetch.get(vm)?.host.clone();
            Some((vm.clone(), FetchedMember::new(vm.clone(), from, to.clone())))
        };
        let fetched: BTreeMap<_, _> = hosts.iter().filter_map(coming).collect();
        // Written before anything comes: whatever becomes of it, a deletion finds the files.
        for member in fetched.values() {
            stored.note_copy(&member.vm, &member.to, false);
        }
        if !fetched.is_empty() {
            self.journal.set_copies(stored.clone())?;
        }
        let members = hosts.keys().cloned().collect();
        let (machine, commands) = Restore::begin(&members, &stored.addresses, moves, Limits::default());
        let deployment = stored.record.deployment;
        let counters = self.journal.counters(&deployment);
        let restoring = Restoring {
            id: stored.record.id,
            machine,
            deadline: Instant::now(),
            deployment: deployment.clone(),
            hosts,
            leaving: evicting.clone(),
            evicting,
            away,
            reports: Vec::new(),
            fetched,
            spoiled: BTreeMap::new(),
            detours: Vec::new(),
            epoch: epoch_for(stored.record.epoch, counters.last_epoch),
            incarnation: counters.incarnation + 1,
            again: BTreeSet::new(),
            consistent: stored.record.consistent,
            phases: Vec::new(),
            watchers: vec![replies],
        };
        self.restorings.insert(deployment.clone(), restoring);
        self.carry_out_restoring(&deployment, commands)
    }

    /// An answer of a member. One that is not ready is asked again.
    pub(super) fn on_restoring_answer(&mut self, deployment: &Name, vm: Name, answer: Answer) -> Result<()> {
        let Some(restoring) = self.restorings.get_mut(deployment) else { return Ok(()) };
        match &answer {
            Answer::Refused(failure) if restoring.machine.asks_again() => {
                restoring.again.insert(vm.clone());
                if failure.kind == FailureKind::Files && self.take_other_copy(deployment, &vm, failure)? {
                    return Ok(());
                }
            }
            Answer::Fetching(moved) => restoring.note_moved(&vm, *moved),
            Answer::Fetched(moved) => {
                restoring.note_moved(&vm, *moved);
                let host = restoring.hosts.get(&vm).cloned();
                let stored = self.journal.snapshots().get(&restoring.id).cloned();
                if let (Some(host), Some(mut stored)) = (host, stored)
                    // Where they were taken they are no copy.
                    && stored.copies.iter().any(|copy| copy.vm == vm && copy.host == host)
                {
                    stored.note_copy(&vm, &host, true);
                    self.journal.set_copies(stored)?;
                }
            }
            _ => {}
        }
        self.restoring_event(deployment, Event::Answer(vm, answer))
    }

    /// All hosts have ended their instances of a member.
    pub(super) fn restoring_evicted(&mut self, envelope: &Envelope) -> Result<()> {
        let event = Event::Answer(envelope.vm.clone(), Answer::Evicted(()));
        self.restoring_event(&envelope.deployment, event)
    }

    /// A wait ran out.
    pub(super) fn on_restoring_deadline(&mut self, deployment: &Name) -> Result<()> {
        self.restoring_event(deployment, Event::Deadline)
    }

    /// A host has gone.
    pub(super) fn restorings_lose(&mut self, host: &Name) -> Result<()> {
        let members = |restoring: &Restoring| -> Vec<Name> {
            let hit = |(vm, place): &(&Name, &Name)| *place == host || restoring.evicts(host, vm);
            restoring.hosts.iter().filter(hit).map(|(vm, _)| vm.clone()).collect()
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

    /// A host has come: its members are asked at the next tick.
    pub(super) fn resume_restorings(&mut self, host: &Name) {
        for restoring in self.restorings.values_mut().filter(|restoring| restoring.machine.asks_again()) {
            let here = |vm: &&Name| restoring.hosts.get(*vm) == Some(host);
            restoring.again.extend(restoring.machine.awaited().iter().filter(here).cloned());
            restoring.is_back(host);
        }
    }

    /// Asks members that were not ready, or whose files did not come to the end.
    pub(super) fn ask_again(&mut self) -> Result<()> {
        for deployment in self.restorings.keys().cloned().collect::<Vec<_>>() {
            let Some(restoring) = self.restorings.get_mut(&deployment) else { continue };
            let again = std::mem::take(&mut restoring.again);
            if !restoring.machine.asks_again() {
                continue;
            }
            self.leave_dead_sources(&deployment, &again);
            let Some(restoring) = self.restorings.get_mut(&deployment) else { continue };
            let order = |vm: Name| Some(Command::Send(vm.clone(), restoring.machine.order_again(&vm)?));
            let commands = again.into_iter().filter_map(order).collect();
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
                    let homes = restoring.homes(&self.journal);
                    let reported = |vm: &Name| self.registry.report(&self.journal.vms().get(vm)?.host, vm);
                    restoring.reports = homes.keys().filter_map(reported).cloned().collect();
                    self.journal.begin_loading(deployment, counters, homes)?;
                }
                // Nothing depends on it after a crash: the operator restores again if VMs do not run.
                Command::Journal(Decision::Started) => tracing::info!("restored {}", restoring.id),
                Command::Send(vm, order) => {
                    let envelope = restoring.envelope(&vm, self.journal.term());
                    let to: Vec<_> = match &order {
                        Order::Evict(_) => restoring.evicting.get(&vm).into_iter().flatten().collect(),
                        _ => restoring.hosts.get(&vm).into_iter().collect(),
                    };
                    if !to.into_iter().all(|host| self.registry.order(host, &envelope, &order)) {
                        unsent.push(vm);
                    }
                }
                // Each phase begins with its orders and this wish.
                Command::WakeAfter(limit) => {
                    let (now, phase) = (Instant::now(), restoring.machine.phase());
                    if restoring.phases.last().is_none_or(|(last, _)| *last != phase) {
                        restoring.phases.push((phase, now));
                    }
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
        let leaving = restoring.evicting.get(&vm).filter(|_| restoring.machine.phase() == Phase::Evict);
        let hosts: Vec<_> = match leaving {
            Some(hosts) => hosts.iter().map(Name::as_str).collect(),
            None => restoring.hosts.get(&vm).map(Name::as_str).into_iter().collect(),
        };
        let text = format!("its {}", not_connected(hosts.join(", ")));
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
                // As for a single VM that was started: whoever asks at once is to see it, also where it has moved to.
                for report in restoring.reports.iter().cloned() {
                    if let Some(host) = restoring.hosts.get(&report.name)
                        && self.registry.report(host, &report.name).is_none()
                    {
                        self.registry.add_report(host, report);
                    }
                }
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
                let advice = self.advice(&restoring);
                let text =
                    format!("the restore of {id} failed in {failure}; the snapshot is untouched: {advice}");
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

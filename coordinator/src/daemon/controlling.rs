//! Starts, stops, pauses, resumes and resets VMs: all that are meant at once, outside any snapshot or restore of theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use unasnap_protocol::control::{Answer, Envelope, FailureKind, Order, Phase};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Progress, Reply, RequestError, RequestErrorKind};
use unasnap_protocol::power::{
    ControlReport, ControlRequest, Controlled, ControlledVm, Patterns, PauseReport, Verb,
};

use super::journal::{KnownVm, Result};
use super::owner::{Owner, Watchers, tell};
use super::registry::not_connected;

/// For a host's answer: longer than a host gives itself.
const LIMIT: Duration = Duration::from_secs(160);

/// A verb under way.
pub struct Controlling {
    /// When those who have not answered are given up.
    pub deadline: Instant,
    id: Name,
    verb: Verb,
    began: Instant,
    vms: BTreeMap<Name, Place>,
    found: BTreeMap<Name, ControlledVm>,
    /// The deployment that is being paused, and its snapshot.
    pausing: Option<(Name, Name)>,
    watchers: Watchers,
}

/// Where a VM is, and whose it is.
struct Place {
    host: Name,
    deployment: Name,
}

impl Controlling {
    /// VMs whose host has not answered.
    fn awaited(&self) -> impl Iterator<Item = (&Name, &Place)> {
        self.vms.iter().filter(|(vm, _)| !self.found.contains_key(*vm))
    }

    /// Tells operators how far it is.
    pub fn show(&mut self) {
        let progress = Progress {
            snapshot: self.id.clone(),
            phase: Phase::Control,
            members: self.vms.keys().cloned().collect(),
            waiting: self.awaited().map(|(vm, _)| vm.clone()).collect(),
        };
        tell(&self.watchers, &Reply::Progress(progress));
    }

    /// What is awaited of a deployment, in words.
    pub fn open_in(&self, deployment: &Name) -> Option<String> {
        let open = self.awaited().filter(|(_, place)| place.deployment == *deployment);
        let vms: Vec<_> = open.map(|(vm, _)| vm.as_str()).collect();
        (!vms.is_empty()).then(|| format!("`vm {}` of {}", self.verb, vms.join(", ")))
    }

    fn line(&self, vm: &Name) -> Option<ControlledVm> {
        let ms = self.began.elapsed().as_secs_f64() * 1e3;
        let (vm, host) = (vm.clone(), self.vms.get(vm)?.host.clone());
        let (state, changed, note, problem, timed_out) = (None, false, None, None, false);
        Some(ControlledVm { vm, host, state, changed, note, problem, timed_out, ms })
    }

    fn enter(&mut self, vm: &Name, done: &Controlled) {
        let Some(line) = self.line(vm) else { return };
        let note = Some(done.note.clone()).filter(|note| !note.is_empty());
        let line = ControlledVm { state: Some(done.state), changed: done.changed, note, ..line };
        self.found.insert(vm.clone(), line);
    }

    fn fail(&mut self, vm: &Name, why: String, timed_out: bool) {
        if let Some(line) = self.line(vm) {
            self.found.insert(vm.clone(), ControlledVm { problem: Some(why), timed_out, ..line });
        }
    }
}

impl Owner {
    /// `vm start` and the like.
    pub(super) fn control(&mut self, request: &ControlRequest, replies: mpsc::Sender<Reply>) -> Result<()> {
        match self.meant(&request.vms) {
            Ok(vms) => {
                let of = vms.iter().filter_map(|vm| self.journal.deployment_of(vm));
                for deployment in of.collect::<BTreeSet<_>>() {
                    self.forget_stale_pause(&deployment)?;
                }
                self.open_controlling(request.verb, vms, vec![replies], None);
            }
            Err(error) => tell(&vec![replies], &Reply::Failed(error)),
        }
        Ok(())
    }

    /// The VMs that the patterns mean. A pattern that means none is a mistake, and then nothing is done.
    pub(super) fn meant(&self, patterns: &Patterns) -> std::result::Result<BTreeSet<Name>, RequestError> {
        let mut vms = BTreeSet::new();
        for pattern in patterns.as_slice() {
            let known = self.journal.vms().keys().filter(|vm| pattern.matches(vm));
            let found: Vec<_> = known.cloned().collect();
            if found.is_empty() {
                let text = format!(
                    "no VM is called {pattern}; nothing was done. `unasnap vm list` shows all of them"
                );
                return Err(RequestError::new(RequestErrorKind::NotFound, text));
            }
            vms.extend(found);
        }
        Ok(vms)
    }

    /// `pausing` is the deployment that is being paused, and its snapshot.
    pub(super) fn open_controlling(
        &mut self,
        verb: Verb,
        vms: BTreeSet<Name>,
        watchers: Watchers,
        pausing: Option<(Name, Name)>,
    ) {
        self.controls += 1;
        // No snapshot is called so: their names end in digits. That of an earlier coordinator's has another term.
        let id = format!("control-{}-{}-vm", self.journal.term(), self.controls);
        let Ok(id) = Name::new(&id) else { return };
        let now = Instant::now();
        let place =
            |known: &KnownVm| Place { host: known.host.clone(), deployment: known.deployment.clone() };
        let placed = vms.into_iter().filter_map(|vm| Some((vm.clone(), place(self.journal.vms().get(&vm)?))));
        let mut controlling = Controlling {
            deadline: now + LIMIT,
            id: id.clone(),
            verb,
            began: now,
            vms: placed.collect(),
            found: BTreeMap::new(),
            pausing,
            watchers,
        };
        for vm in controlling.vms.keys().cloned().collect::<Vec<_>>() {
            let Some(Place { host, deployment }) = controlling.vms.get(&vm) else { continue };
            let envelope = Envelope {
                vm: vm.clone(),
                deployment: deployment.clone(),
                snapshot: id.clone(),
                epoch: 0,
                term: self.journal.term(),
                incarnation: self.journal.counters(deployment).incarnation,
            };
            if let Some(what) = self.open_course(deployment) {
                let why =
                    format!("{what} of deployment {deployment} is under way; try again when it has ended");
                controlling.fail(&vm, why, false);
            } else if let Some(id) = self.paused_in(deployment).filter(|_| verb == Verb::Start) {
                let why = format!(
                    "its deployment {deployment} is paused in {id}; `unasnap resume {deployment}` brings all of it back"
                );
                controlling.fail(&vm, why, false);
            } else if !self.registry.order(host, &envelope, &Order::Control(verb)) {
                let why = format!("its {}", not_connected(host));
                controlling.fail(&vm, why, false);
            }
        }
        self.controllings.insert(id.clone(), controlling);
        self.end_controlling_if_complete(&id);
    }

    /// An answer to an order of such a course.
    pub(super) fn on_controlled(&mut self, host: &Name, envelope: &Envelope, answer: &Answer) {
        let Some(controlling) = self.controllings.get_mut(&envelope.snapshot) else { return };
        let vm = &envelope.vm;
        if controlling.vms.get(vm).is_none_or(|place| place.host != *host)
            || controlling.found.contains_key(vm)
        {
            return;
        }
        match answer {
            Answer::Controlled(done) => {
                // The next inventory comes within a second; who asks before is to see it, too.
                self.registry.set_state(host, vm, done.state, done.incarnation);
                controlling.enter(vm, done);
            }
            Answer::Refused(failure) => {
                let timed_out = failure.kind == FailureKind::TimedOut;
                controlling.fail(vm, failure.text.clone(), timed_out);
            }
            _ => return,
        }
        self.end_controlling_if_complete(&envelope.snapshot);
    }

    /// A host has gone: whether it has done it nobody knows.
    pub(super) fn controllings_lose(&mut self, host: &Name) {
        let text = format!(
            "the connection to its host {host} broke; whether it was carried out, `unasnap vm show` tells when that is back"
        );
        self.give_up(|_, place| (place.host == *host).then(|| (text.clone(), false)));
    }

    /// Whoever has not answered is not waited for any more.
    pub(super) fn on_controlling_deadline(&mut self) {
        let now = Instant::now();
        self.give_up(|controlling, place| {
            let text = format!(
                "its host {} has not answered in {} s; look at the log of the host agent there",
                place.host,
                LIMIT.as_secs()
            );
            (controlling.deadline <= now).then_some((text, true))
        });
    }

    /// `why` says of whom, with the words and whether a wait ran out.
    fn give_up(&mut self, why: impl Fn(&Controlling, &Place) -> Option<(String, bool)>) {
        for controlling in self.controllings.values_mut() {
            let given_up = controlling.awaited();
            let given_up = given_up.filter_map(|(vm, place)| Some((vm.clone(), why(controlling, place)?)));
            for (vm, (text, timed_out)) in given_up.collect::<Vec<_>>() {
                controlling.fail(&vm, text, timed_out);
            }
        }
        for id in self.controllings.keys().cloned().collect::<Vec<_>>() {
            self.end_controlling_if_complete(&id);
        }
    }

    fn end_controlling_if_complete(&mut self, id: &Name) {
        if self.controllings.get(id).is_some_and(|controlling| controlling.awaited().next().is_none())
            && let Some(Controlling { verb, found, pausing, watchers, .. }) = self.controllings.remove(id)
        {
            let vms = found.into_values().collect();
            let reply = match pausing {
                Some((deployment, snapshot)) => Reply::Paused(PauseReport { deployment, snapshot, vms }),
                None => Reply::Controlled(ControlReport { verb, vms }),
            };
            tell(&watchers, &reply);
        }
    }
}

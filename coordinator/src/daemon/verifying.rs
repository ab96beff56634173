//! Lets every host compare a snapshot's files with their digests, and tells operators what each has found.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use unasnap_protocol::control::{Answer, Envelope, Order, Phase};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{
    Progress, Reply, RequestError, RequestErrorKind, VerifiedMember, VerifyReport,
};

use super::journal::Result;
use super::owner::{Owner, Watchers, tell};
use super::registry::not_connected;

/// For reading everything; a host needs some seconds for each gigabyte.
const LIMIT: Duration = Duration::from_secs(3600);

/// A verification under way.
pub struct Verifying {
    /// The snapshot.
    pub id: Name,
    /// When those who have not answered are given up.
    pub deadline: Instant,
    hosts: BTreeMap<Name, Name>,
    found: BTreeMap<Name, Option<String>>,
    watchers: Watchers,
}

impl Verifying {
    /// Members whose host is still reading.
    pub fn awaited(&self) -> BTreeSet<Name> {
        self.hosts.keys().filter(|vm| !self.found.contains_key(*vm)).cloned().collect()
    }

    /// Tells operators how far it is.
    pub fn show(&mut self) {
        let progress = Progress {
            snapshot: self.id.clone(),
            phase: Phase::Verify,
            members: self.hosts.keys().cloned().collect(),
            waiting: self.awaited().into_iter().collect(),
        };
        tell(&self.watchers, &Reply::Progress(progress));
    }

    fn report(self) -> Reply {
        let Self { id, hosts, mut found, .. } = self;
        let member =
            |(vm, host): (Name, Name)| VerifiedMember { problem: found.remove(&vm).flatten(), vm, host };
        Reply::Verified(VerifyReport { snapshot: id, members: hosts.into_iter().map(member).collect() })
    }
}

impl Owner {
    /// `snapshot verify`.
    pub(super) fn verify(&mut self, id: Name, replies: mpsc::Sender<Reply>) -> Result<()> {
        let stored = match self.choose_snapshot(Some(id)) {
            Ok(stored) => stored,
            Err(error) => {
                tell(&vec![replies], &Reply::Failed(error));
                return Ok(());
            }
        };
        let deployment = stored.record.deployment.clone();
        if let Some(what) = self.open_course(&deployment) {
            let text = format!("{what} is under way; verify {} when it has ended", stored.record.id);
            tell(&vec![replies], &Reply::Failed(RequestError::new(RequestErrorKind::Refused, text)));
            return Ok(());
        }
        let incarnation = self.journal.counters(&deployment).incarnation;
        let mut verifying = Verifying {
            id: stored.record.id.clone(),
            deadline: Instant::now() + LIMIT,
            hosts: stored.places(),
            found: BTreeMap::new(),
            watchers: vec![replies],
        };
        for (vm, host) in stored.places() {
            let envelope = Envelope { incarnation, ..stored.envelope(&vm, self.journal.term()) };
            if !self.registry.order(&host, &envelope, &Order::Verify(())) {
                let text = format!("its {}", not_connected(&host));
                verifying.found.insert(vm, Some(text));
            }
        }
        self.verifyings.insert(deployment.clone(), verifying);
        self.end_verifying_if_complete(&deployment);
        Ok(())
    }

    /// Is this an answer to a verification? Then it is taken.
    pub(super) fn on_verified(&mut self, host: &Name, envelope: &Envelope, answer: &Answer) {
        let Some(verifying) = self.verifyings.get_mut(&envelope.deployment) else { return };
        if verifying.id != envelope.snapshot || verifying.hosts.get(&envelope.vm) != Some(host) {
            return;
        }
        let problem = match answer {
            Answer::Ready(()) => None,
            Answer::Refused(failure) => Some(failure.text.clone()),
            _ => return,
        };
        verifying.found.insert(envelope.vm.clone(), problem);
        self.end_verifying_if_complete(&envelope.deployment);
    }

    /// A host has gone: what it would have found nobody knows.
    pub(super) fn verifyings_lose(&mut self, host: &Name) {
        for verifying in self.verifyings.values_mut() {
            let lost: Vec<_> =
                verifying.awaited().into_iter().filter(|vm| verifying.hosts.get(vm) == Some(host)).collect();
            let text = format!("the connection to its host {host} broke; verify again");
            verifying.found.extend(lost.into_iter().map(|vm| (vm, Some(text.clone()))));
        }
        for deployment in self.verifyings.keys().cloned().collect::<Vec<_>>() {
            self.end_verifying_if_complete(&deployment);
        }
    }

    /// Whoever is still reading is not waited for any more.
    pub(super) fn on_verifying_deadline(&mut self, deployment: &Name) {
        let Some(verifying) = self.verifyings.get_mut(deployment) else { return };
        let text = format!("its host has not answered in {} s", LIMIT.as_secs());
        let late = verifying.awaited().into_iter().map(|vm| (vm, Some(text.clone())));
        let late: Vec<_> = late.collect();
        verifying.found.extend(late);
        self.end_verifying_if_complete(deployment);
    }

    fn end_verifying_if_complete(&mut self, deployment: &Name) {
        if self.verifyings.get(deployment).is_some_and(|verifying| verifying.awaited().is_empty())
            && let Some(verifying) = self.verifyings.remove(deployment)
        {
            let watchers = verifying.watchers.clone();
            tell(&watchers, &verifying.report());
        }
    }
}

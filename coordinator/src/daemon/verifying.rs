//! Lets every host compare a snapshot's files with their digests, those of its copies too, and tells operators what each has found.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use unasnap_protocol::control::{Answer, Envelope, Order, Phase};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{
    MemberRecord, Progress, Reply, RequestError, RequestErrorKind, VerifiedMember, VerifyReport,
};

use super::journal::Result;
use super::owner::{Owner, Watchers, tell};
use super::registry::not_connected;

/// For reading everything; a host needs some seconds for each gigabyte.
const LIMIT: Duration = Duration::from_secs(3600);

/// Files of a VM, and the host that has them.
type Part = (Name, Name);

/// A verification under way.
pub struct Verifying {
    /// The snapshot.
    pub id: Name,
    /// When those who have not answered are given up.
    pub deadline: Instant,
    parts: BTreeSet<Part>,
    found: BTreeMap<Part, Option<String>>,
    watchers: Watchers,
}

impl Verifying {
    /// Members of which a host is still reading.
    pub fn awaited(&self) -> BTreeSet<Name> {
        self.unread().map(|(vm, _)| vm.clone()).collect()
    }

    fn unread(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(|part| !self.found.contains_key(*part))
    }

    /// What these hosts would have found nobody knows.
    fn give_up(&mut self, is_given_up: impl Fn(&Name) -> bool, why: impl Fn(&Name) -> String) {
        let given_up: Vec<_> = self.unread().filter(|(_, host)| is_given_up(host)).cloned().collect();
        self.found.extend(given_up.into_iter().map(|part| {
            let why = why(&part.1);
            (part, Some(why))
        }));
    }

    /// Tells operators how far it is.
    pub fn show(&mut self) {
        let progress = Progress {
            snapshot: self.id.clone(),
            phase: Phase::Verify,
            members: self
                .parts
                .iter()
                .map(|(vm, _)| vm.clone())
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            waiting: self.awaited().into_iter().collect(),
        };
        tell(&self.watchers, &Reply::Progress(progress));
    }

    fn report(self) -> Reply {
        let member = |((vm, host), problem): (Part, Option<String>)| VerifiedMember { vm, host, problem };
        Reply::Verified(VerifyReport {
            snapshot: self.id,
            members: self.found.into_iter().map(member).collect(),
        })
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
        let of_member = |member: &MemberRecord| {
            let holders = stored.holders(member).into_iter();
            holders.map(|host| (member.vm.clone(), host.clone())).collect::<Vec<_>>()
        };
        let mut verifying = Verifying {
            id: stored.record.id.clone(),
            deadline: Instant::now() + LIMIT,
            parts: stored.record.members.iter().flat_map(of_member).collect(),
            found: BTreeMap::new(),
            watchers: vec![replies],
        };
        for (vm, host) in &verifying.parts {
            let envelope = Envelope { incarnation, ..stored.envelope(vm, self.journal.term()) };
            if !self.registry.order(host, &envelope, &Order::Verify(())) {
                let text = format!("its {}", not_connected(host));
                verifying.found.insert((vm.clone(), host.clone()), Some(text));
            }
        }
        self.verifyings.insert(deployment.clone(), verifying);
        self.end_verifying_if_complete(&deployment);
        Ok(())
    }

    /// Is this an answer to a verification? Then it is taken.
    pub(super) fn on_verified(&mut self, host: &Name, envelope: &Envelope, answer: &Answer) {
        let Some(verifying) = self.verifyings.get_mut(&envelope.deployment) else { return };
        let part = (envelope.vm.clone(), host.clone());
        if verifying.id != envelope.snapshot || !verifying.parts.contains(&part) {
            return;
        }
        let problem = match answer {
            Answer::Ready(()) => None,
            Answer::Refused(failure) => Some(failure.text.clone()),
            _ => return,
        };
        verifying.found.insert(part, problem);
        self.end_verifying_if_complete(&envelope.deployment);
    }

    /// A host has gone: what it would have found nobody knows.
    pub(super) fn verifyings_lose(&mut self, host: &Name) {
        for verifying in self.verifyings.values_mut() {
            verifying.give_up(
                |one| one == host,
                |host| format!("the connection to its host {host} broke; verify again"),
            );
        }
        for deployment in self.verifyings.keys().cloned().collect::<Vec<_>>() {
            self.end_verifying_if_complete(&deployment);
        }
    }

    /// Whoever is still reading is not waited for any more.
    pub(super) fn on_verifying_deadline(&mut self, deployment: &Name) {
        let Some(verifying) = self.verifyings.get_mut(deployment) else { return };
        verifying
            .give_up(|_| true, |host| format!("its host {host} has not answered in {} s", LIMIT.as_secs()));
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

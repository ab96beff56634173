//! Removes snapshots: first the record becomes unusable, then every member's host removes its files.
//! A host that is away is asked when it comes back.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use unasnap_protocol::control::{Envelope, Order};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{DeleteReport, Place, Reply, RequestError, RequestErrorKind, SnapshotState};

use super::journal::{Result, Stored};
use super::owner::{Owner, Watchers, tell};
use super::restoring::no_snapshot;

/// How long an operator waits for hosts to remove files.
const OPERATOR_LIMIT: Duration = Duration::from_secs(10);

/// A deletion for which operators wait.
pub struct Deletion {
    /// When they are told who has not answered.
    pub deadline: Instant,
    watchers: Watchers,
}

impl Owner {
    /// `snapshot delete`.
    pub(super) fn delete(&mut self, id: &Name, replies: mpsc::Sender<Reply>) -> Result<()> {
        let mut stored = match self.deletable(id) {
            Ok(stored) => stored,
            Err(error) => {
                tell(&vec![replies], &Reply::Failed(error));
                return Ok(());
            }
        };
        match stored.record.state {
            // An aborted attempt has no files.
            SnapshotState::Aborted => {}
            SnapshotState::Deleting => {}
            SnapshotState::Committed | SnapshotState::Open => {
                stored.record.state = SnapshotState::Deleting;
                stored.undeleted = stored.places().into_keys().collect();
                self.journal.update_snapshot(stored)?;
            }
        }
        let deletion = self
            .deletions
            .entry(id.clone())
            .or_insert_with(|| Deletion { deadline: Instant::now() + OPERATOR_LIMIT, watchers: Vec::new() });
        deletion.watchers.push(replies);
        self.forget_if_deleted(id)?;
        self.order_deletions(None);
        Ok(())
    }

    fn deletable(&self, id: &Name) -> std::result::Result<Stored, RequestError> {
        let Some(stored) = self.journal.snapshots().get(id) else {
            return Err(RequestError::new(RequestErrorKind::NotFound, no_snapshot(id)));
        };
        let deployment = &stored.record.deployment;
        if self.paused_in(deployment).as_ref() == Some(id) {
            let text =
                format!("deployment {deployment} is paused in {id}; `unasnap resume {deployment}` first");
            return Err(RequestError::new(RequestErrorKind::Refused, text));
        }
        match self.open_course(deployment) {
            Some(what) => {
                let text = format!("{what} is under way; delete {id} when it has ended");
                Err(RequestError::new(RequestErrorKind::Refused, text))
            }
            None => Ok(stored.clone()),
        }
    }

    /// Orders what is still to be removed, of `host` or of all hosts, where no course could be disturbed: a
    /// member's mailbox has one place.
    pub(super) fn order_deletions(&self, host: Option<&Name>) {
        let deleting = |stored: &&Stored| stored.record.state == SnapshotState::Deleting;
        for stored in self.journal.snapshots().values().filter(deleting) {
            let deployment = &stored.record.deployment;
            if self.open_course(deployment).is_some() {
                continue;
            }
            let incarnation = self.journal.counters(deployment).incarnation;
            for Place { vm, host: place } in remaining(stored) {
                if host.is_none_or(|host| *host == place) {
                    let envelope = Envelope { incarnation, ..stored.envelope(&vm, self.journal.term()) };
                    self.registry.order(&place, &envelope, &Order::Delete(()));
                }
            }
        }
    }

    /// A host has removed one member's files.
    pub(super) fn on_deleted(&mut self, host: &Name, envelope: &Envelope) -> Result<()> {
        let Some(stored) = self.journal.snapshots().get(&envelope.snapshot) else { return Ok(()) };
        let gone = Place { vm: envelope.vm.clone(), host: host.clone() };
        if stored.record.state != SnapshotState::Deleting || !remaining(stored).contains(&gone) {
            return Ok(());
        }
        let mut stored = stored.clone();
        if stored.places().get(&gone.vm) == Some(host) {
            stored.undeleted.retain(|vm| *vm != gone.vm);
        }
        stored.copies.retain(|copy| copy.vm != gone.vm || copy.host != gone.host);
        if remaining(&stored).is_empty() {
            return self.forget(&envelope.snapshot);
        }
        self.journal.update_snapshot(stored)
    }

    fn forget_if_deleted(&mut self, id: &Name) -> Result<()> {
        match self.journal.snapshots().get(id) {
            Some(stored) if remaining(stored).is_empty() => self.forget(id),
            _ => Ok(()),
        }
    }

    fn forget(&mut self, id: &Name) -> Result<()> {
        self.journal.remove_snapshot(id)?;
        self.answer_deletion(id);
        Ok(())
    }

    /// Tells operators that it is done, or whose files remain for now.
    pub(super) fn answer_deletion(&mut self, id: &Name) {
        let Some(deletion) = self.deletions.remove(id) else { return };
        let stored = self.journal.snapshots().get(id);
        let waiting = stored.map(remaining).unwrap_or_default();
        tell(&deletion.watchers, &Reply::Deleted(DeleteReport { snapshot: id.clone(), waiting }));
    }
}

/// Whose files are still to be removed, and where.
fn remaining(stored: &Stored) -> Vec<Place> {
    let taken = stored.places().into_iter().filter(|(vm, _)| stored.undeleted.contains(vm));
    let taken = taken.map(|(vm, host)| Place { vm, host });
    let copies = stored.copies.iter().map(|copy| Place { vm: copy.vm.clone(), host: copy.host.clone() });
    taken.chain(copies).collect()
}

//! Orders to the host itself about members: files that are to be fetched, members that come with a restore, members that leave
//! with one, and what is left here of those that have left.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Mutex, mpsc};
use unasnap_protocol::control::{Answer, Envelope, Failure, FailureKind, Order, Phase};
use unasnap_protocol::name::Name;
use unasnap_protocol::participant::phase_of;

use crate::member::Handle;
use crate::registry::Registry;
use crate::store::{Store, StoreError};
use crate::transfer::fetching::Fetcher;
use crate::transfer::fitting;
use crate::works::store_failure;

/// What is needed for members to come and go.
pub struct Moving {
    /// This host, for words.
    pub host: Name,
    /// All that live here.
    pub registry: Arc<Registry>,
    /// Where snapshots lie.
    pub store: Store,
    /// What gets files.
    pub fetcher: Fetcher,
    /// Where answers go.
    pub answers: mpsc::UnboundedSender<(Envelope, Answer)>,
    /// The highest that was heard.
    pub term: AtomicU64,
    /// One order after the other, for a member is not to come twice.
    pub busy: Mutex<()>,
}

impl Moving {
    /// An order that is not a member's: to one that is not here, or to the host about it.
    pub fn order(self: &Arc<Self>, envelope: Envelope, order: Order) {
        let term = self.term.fetch_max(envelope.term, Ordering::Relaxed);
        if envelope.term < term {
            let text = format!("coordinator term {} has ended; term {term} leads now", envelope.term);
            let failure = Failure::new(FailureKind::Stale, phase_of(&order), text);
            return self.answer(envelope, Err(failure));
        }
        let this = Arc::clone(self);
        match order {
            Order::Fetch(source) => self.fetcher.fetch(envelope, source),
            order => drop(tokio::spawn(async move { this.carry_out(envelope, order).await })),
        }
    }

    /// The files of this part are to be deleted, whoever does it.
    pub fn forget_files(&self, envelope: &Envelope) {
        self.fetcher.cancel(&envelope.snapshot, &envelope.vm);
    }

    async fn carry_out(&self, envelope: Envelope, order: Order) {
        let _others_wait = self.busy.lock().await;
        if let Some(member) = self.registry.members().get(&envelope.vm) {
            // It came with the order before.
            return member.order(envelope, order);
        }
        let result = match &order {
            Order::Poll(()) => self.poll(&envelope).await.map(Answer::Ready),
            Order::Verify(()) => self.verify(&envelope).await.map(Answer::Ready),
            Order::Delete(()) => self.delete(&envelope, Phase::Delete).map(Answer::Deleted),
            Order::Commit(()) => self.commit(&envelope).map(Answer::Settled),
            Order::Abort(_) => self.abort(&envelope).map(Answer::Settled),
            // Whoever is not here has no instance here.
            Order::Evict(_) => Ok(Answer::Evicted(())),
            Order::Restore(()) => match self.come(&envelope).await {
                Ok(member) => return member.order(envelope, order),
                Err(failure) => Err(failure),
            },
            other => Err(self.unknown(other)),
        };
        self.answer(envelope, result);
    }

    fn answer(&self, envelope: Envelope, result: Result<Answer, Failure>) {
        let answer = result.unwrap_or_else(Answer::Refused);
        tracing::info!(vm = %envelope.vm, snapshot = %envelope.snapshot, answer = answer.name());
        // The receiver lives as long as the process.
        let _ = self.answers.send((envelope, answer));
    }

    fn unknown(&self, order: &Order) -> Failure {
        let text = format!("host {} has no VM of this name; look at its vm_dir", self.host);
        Failure::new(FailureKind::VmNotRunning, phase_of(order), text)
    }

    /// As of a member, and whether it could run here.
    async fn poll(&self, envelope: &Envelope) -> Result<(), Failure> {
        let (store, snapshot, vm) = (self.store.clone(), envelope.snapshot.clone(), envelope.vm.clone());
        blocking(Phase::Poll, move || store.verify(&snapshot, &vm).map(drop)).await?;
        self.fits(envelope, Phase::Poll).await
    }

    async fn verify(&self, envelope: &Envelope) -> Result<(), Failure> {
        let (store, snapshot, vm) = (self.store.clone(), envelope.snapshot.clone(), envelope.vm.clone());
        blocking(Phase::Verify, move || store.verify_with_bases(&snapshot, &vm)).await
    }

    async fn fits(&self, envelope: &Envelope, phase: Phase) -> Result<(), Failure> {
        let failure = |error: StoreError| store_failure(&error, phase);
        let manifest = self.store.manifest(&envelope.snapshot, &envelope.vm).map_err(failure)?;
        let definition = self.store.here(&manifest).map_err(failure)?.definition;
        let runner = fitting::runner(&*self.registry, &definition).await;
        fitting::check(&definition, &manifest.hypervisor, &runner, phase)
    }

    fn delete(&self, envelope: &Envelope, phase: Phase) -> Result<(), Failure> {
        let deleted = self.store.delete_vm(&envelope.snapshot, &envelope.vm);
        deleted.map_err(|error| store_failure(&error, phase))
    }

    /// How a snapshot ended of which only the files are left here.
    fn commit(&self, envelope: &Envelope) -> Result<(), Failure> {
        let failure = |error: StoreError| store_failure(&error, Phase::Commit);
        self.store.manifest(&envelope.snapshot, &envelope.vm).map_err(failure)?;
        self.store.commit(&envelope.snapshot).map_err(failure)
    }

    fn abort(&self, envelope: &Envelope) -> Result<(), Failure> {
        if self.store.is_committed(&envelope.snapshot) {
            let text = "this snapshot is committed; it can be deleted, not aborted";
            return Err(Failure::new(FailureKind::Stale, Phase::Abort, text));
        }
        self.delete(envelope, Phase::Abort)
    }

    /// A member says that it has ended its instance for good. Is it taken in hand here? What is kept of it goes first, its
    /// definition among it, so that no later agent starts it; then it is said once more, by nobody's member.
    #[must_use]
    pub fn sees_off(self: &Arc<Self>, envelope: &Envelope, given: &Answer) -> bool {
        if *given != Answer::Evicted(()) || self.registry.members().get(&envelope.vm).is_none() {
            return false;
        }
        let (this, envelope) = (Arc::clone(self), envelope.clone());
        tokio::spawn(async move {
            let _others_wait = this.busy.lock().await;
            let removed = this.registry.see_off(&envelope.vm, true).await;
            let failure = |text| Failure::new(FailureKind::Internal, Phase::Evict, text);
            this.answer(envelope, removed.map(Answer::Evicted).map_err(|error| failure(error.to_string())));
        });
        true
    }

    /// A member comes with the restore of its deployment, as it was snapshotted.
    async fn come(&self, envelope: &Envelope) -> Result<Handle, Failure> {
        self.fits(envelope, Phase::Restore).await?;
        let definition = self.store.definition(&envelope.snapshot, &envelope.vm);
        let definition = definition.map_err(|error| store_failure(&error, Phase::Restore))?;
        let added = self.registry.add(definition).await;
        let (member, _) = added
            .map_err(|error| Failure::new(FailureKind::BadRequest, Phase::Restore, error.to_string()))?;
        tracing::info!(vm = %envelope.vm, snapshot = %envelope.snapshot, "it lives on this host now");
        Ok(member)
    }
}

async fn blocking(
    phase: Phase,
    work: impl FnOnce() -> Result<(), StoreError> + Send + 'static,
) -> Result<(), Failure> {
    let joined = tokio::task::spawn_blocking(work).await;
    let done = joined.map_err(|error| Failure::new(FailureKind::Internal, phase, error.to_string()))?;
    done.map_err(|error| store_failure(&error, phase))
}

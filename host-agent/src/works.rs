//! What a member's jobs do: hypervisor, guest agent and store, in the order that protocol.md gives.
//!
//! The straddle stands in [`Works::cut`]: send early, stop, fix, resume, receive late. Every step is
//! idempotent; what undoes is written so that it can follow any step that was broken off anywhere.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use unasnap_channel::steady_ns;
use unasnap_protocol::control::{CutReport, Envelope, Failure, FailureKind, Phase, SavedReport};
use unasnap_protocol::guest::{Prefix, WordState};
use unasnap_protocol::participant::{Job, Outcome, Step};

use crate::definition::{Colouring, VmDefinition};
use crate::guest_channel::{GuestChannel, GuestError, member_table};
use crate::hypervisor::{Hypervisor, HypervisorError, Vm, VmState};
use crate::store::manifest::{Identity, Saved};
use crate::store::{Draft, Store, StoreError};

mod instant;
mod report;
mod resumption;

/// One VM with everything that its jobs need.
pub struct Works {
    definition: VmDefinition,
    hypervisor: Arc<dyn Hypervisor>,
    store: Store,
    instance: Mutex<Option<Box<dyn Vm>>>,
    guest: Mutex<GuestChannel>,
    /// The local snapshot that is being written, from PREPARE to SAVED.
    draft: Arc<Mutex<Option<Draft>>>,
    /// Connections of the guest to addresses that are not members, as counted at PREPARE.
    outside: Mutex<Option<u32>>,
    /// Test switch: how much later than ordered this VM's cut begins.
    take_delay: Duration,
    last_report: report::Remembered,
}

impl Works {
    /// A VM whose instance, if any, was just started or adopted.
    #[must_use]
    pub fn new(
        definition: VmDefinition,
        hypervisor: Arc<dyn Hypervisor>,
        store: Store,
        instance: Option<Box<dyn Vm>>,
        take_delay: Duration,
    ) -> Self {
        let guest = match &instance {
            Some(vm) => GuestChannel::new(vm.guest_channel_path().to_owned(), vm.incarnation()),
            None => GuestChannel::new(std::path::PathBuf::new(), 0),
        };
        Self {
            definition,
            hypervisor,
            store,
            instance: Mutex::new(instance),
            guest: Mutex::new(guest),
            draft: Arc::default(),
            outside: Mutex::default(),
            take_delay,
            last_report: report::Remembered::default(),
        }
    }

    /// Incarnation of the running instance; 0 when there is none.
    pub async fn incarnation(&self) -> u64 {
        self.instance.lock().await.as_ref().map_or(0, |vm| vm.incarnation())
    }

    /// Carries out one job of the participant.
    ///
    /// # Errors
    /// What failed, in the words that go to the operator.
    pub async fn carry_out(&self, job: Job) -> Result<Outcome, Failure> {
        let Job { envelope, step } = job;
        match step {
            Step::Prepare(members) => self.prepare(&envelope, members).await?,
            Step::Arm => self.arm(&envelope).await?,
            Step::Cut(at_ns) => return self.cut(&envelope, at_ns).await.map(Outcome::Cut),
            Step::Clear => self.make_idle(envelope.epoch + 1, Phase::Clear).await?,
            Step::Commit => self.commit(&envelope).await?,
            Step::Undo => self.undo(&envelope).await?,
            Step::Poll => self.poll(&envelope).await?,
            Step::Restore => self.restore(&envelope).await?,
            Step::Start(members) => return self.start(&envelope, members).await.map(Outcome::Started),
            Step::Delete => self.delete(&envelope, Phase::Delete)?,
        }
        Ok(Outcome::Done)
    }

    fn colours(&self) -> bool {
        self.definition.colouring == Colouring::Guest
    }

    async fn prepare(&self, envelope: &Envelope, members: Vec<Prefix>) -> Result<(), Failure> {
        let mut instance = self.living(Phase::Prepare).await?;
        let vm = instance.as_mut().ok_or_else(|| self.not_running(Phase::Prepare))?;
        match vm.state().await.map_err(|error| hypervisor_failure(&error, Phase::Prepare))? {
            VmState::Running => {}
            other => {
                let text = format!("the VM is {other:?}, not running; only running VMs are snapshotted");
                return Err(Failure::new(FailureKind::VmNotRunning, Phase::Prepare, text));
            }
        }
        if self.colours() {
            let guest_failure = |error: GuestError| error.during(Phase::Prepare);
            let mut guest = self.guest.lock().await;
            guest.self_check().await.map_err(guest_failure)?;
            guest.set_members(member_table(members)).await.map_err(guest_failure)?;
            // Asked now: between TAKE and the cut every question would widen the skew.
            *self.outside.lock().await = Some(guest.count_outside().await.map_err(guest_failure)?);
        }
        let store_failure = |error: StoreError| store_failure(&error, Phase::Prepare);
        self.store.check_space(vm.space_needed()).map_err(store_failure)?;
        let draft = self.store.begin(&envelope.snapshot, &self.definition.name).map_err(store_failure)?;
        let folder = draft.folder().to_owned();
        *self.draft.lock().await = Some(draft);
        vm.prepare_cut(&folder).await.map_err(|error| hypervisor_failure(&error, Phase::Prepare))?;
        self.set_word(WordState::colouring(envelope.epoch), Phase::Prepare).await
    }

    async fn arm(&self, envelope: &Envelope) -> Result<(), Failure> {
        let mut instance = self.living(Phase::Arm).await?;
        let vm = instance.as_mut().ok_or_else(|| self.not_running(Phase::Arm))?;
        vm.arm_cut().await.map_err(|error| hypervisor_failure(&error, Phase::Arm))?;
        if self.colours() {
            let mut guest = self.guest.lock().await;
            guest.set_strict(envelope.epoch).await.map_err(|error| error.during(Phase::Arm))?;
        }
        Ok(())
    }

    /// The straddling cut: between the two flips this member neither sends as PRESNAPSHOT nor
    /// receives POSTSNAPSHOT, so the instant between them is consistent wherever it falls.
    async fn cut(&self, envelope: &Envelope, at_ns: Option<u64>) -> Result<CutReport, Failure> {
        let mut instance = self.living(Phase::Take).await?;
        let vm = instance.as_mut().ok_or_else(|| self.not_running(Phase::Take))?;
        let mut guest = self.guest.lock().await;
        let guest_failure = |error: GuestError| error.during(Phase::Take);
        instant::wait(at_ns, self.take_delay).await?;
        if self.colours() {
            guest.flip_send(envelope.epoch).await.map_err(guest_failure)?;
        }
        let send_flipped_ns = steady_ns();
        let times = vm.cut(Box::new(|| {})).await.map_err(|error| hypervisor_failure(&error, Phase::Take))?;
        if self.colours() {
            guest.flip_receive(envelope.epoch).await.map_err(guest_failure)?;
        }
        Ok(CutReport {
            send_flipped_ns,
            stopped_ns: times.stopped_at,
            instant_ns: times.instant,
            resumed_ns: times.resumed_at,
            receive_flipped_ns: steady_ns(),
            parts: times.parts.iter().map(|(name, ns)| ((*name).to_owned(), *ns)).collect(),
            outside_connections: *self.outside.lock().await,
        })
    }

    /// Waits until the local snapshot is durable. May be dropped at any moment; [`Step::Undo`] follows then.
    ///
    /// # Errors
    /// What failed, in the words that go to the operator.
    pub async fn save(&self, envelope: &Envelope) -> Result<SavedReport, Failure> {
        let saved = {
            let mut instance = self.living(Phase::Save).await?;
            let vm = instance.as_mut().ok_or_else(|| self.not_running(Phase::Save))?;
            vm.save().await.map_err(|error| hypervisor_failure(&error, Phase::Save))?
        };
        let identity = Identity {
            snapshot: envelope.snapshot.clone(),
            deployment: envelope.deployment.clone(),
            epoch: u64::from(envelope.epoch),
            definition: self.definition.clone(),
        };
        self.finish(identity, saved).await
    }

    /// Makes the draft a local snapshot. The thread that hashes cannot be stopped, so it keeps the
    /// draft locked: whoever undoes waits for it.
    async fn finish(&self, identity: Identity, saved: Saved) -> Result<SavedReport, Failure> {
        let mut draft = self.draft.clone().lock_owned().await;
        let store = self.store.clone();
        let finished = tokio::task::spawn_blocking(move || {
            let Some(prepared) = draft.take() else { return Ok(None) };
            let finished = store.finish(&prepared, identity, saved);
            if finished.is_err() {
                store.abandon(&prepared)?;
            }
            finished.map(Some)
        });
        let internal = |text: String| Failure::new(FailureKind::Internal, Phase::Save, text);
        let stored = finished.await.map_err(|error| internal(error.to_string()))?;
        let stored = stored.map_err(|error| store_failure(&error, Phase::Save))?;
        let stored = stored.ok_or_else(|| internal("no folder was prepared for this snapshot".to_owned()))?;
        let digest = blake3::Hash::from_hex(&stored.digest).map_err(|error| internal(error.to_string()))?;
        Ok(SavedReport { digest: *digest.as_bytes(), bytes: stored.bytes, saved_ns: steady_ns() })
    }

    /// The mark comes first: whatever happens to the guest afterwards, the snapshot is usable. A
    /// guest that cannot be told to stop colouring is told at the next snapshot.
    async fn commit(&self, envelope: &Envelope) -> Result<(), Failure> {
        let failure = |error: StoreError| store_failure(&error, Phase::Commit);
        self.store.manifest(&envelope.snapshot, &self.definition.name).map_err(failure)?;
        self.store.commit(&envelope.snapshot).map_err(failure)?;
        if let Err(failure) = self.make_idle(envelope.epoch + 1, Phase::Commit).await {
            tracing::warn!(vm = %envelope.vm, "colouring stays on until the next snapshot: {failure}");
        }
        Ok(())
    }

    /// Undoes whatever was done, in every order of failures: the VM runs, nothing of the snapshot is
    /// left, the member is idle. A VM or guest that is gone needs no undoing.
    async fn undo(&self, envelope: &Envelope) -> Result<(), Failure> {
        if let Some(vm) = self.instance.lock().await.as_mut()
            && let Err(error) = vm.discard_cut().await
        {
            tracing::warn!(vm = %envelope.vm, "giving up the cut: {error}");
        }
        if let Err(failure) = self.make_idle(envelope.epoch + 1, Phase::Abort).await {
            tracing::warn!(vm = %envelope.vm, "the member advances by itself after its lease: {failure}");
        }
        if let Some(draft) = self.draft.lock().await.take() {
            self.store.abandon(&draft).map_err(|error| store_failure(&error, Phase::Abort))?;
        }
        if self.store.is_committed(&envelope.snapshot) {
            let text = "this snapshot is committed; it can be deleted, not aborted";
            return Err(Failure::new(FailureKind::Stale, Phase::Abort, text));
        }
        self.delete(envelope, Phase::Abort)
    }

    fn delete(&self, envelope: &Envelope, phase: Phase) -> Result<(), Failure> {
        let deleted = self.store.delete_vm(&envelope.snapshot, &self.definition.name);
        deleted.map_err(|error| store_failure(&error, phase))
    }

    async fn make_idle(&self, epoch: u32, phase: Phase) -> Result<(), Failure> {
        self.set_word(WordState::idle(epoch), phase).await
    }

    async fn set_word(&self, word: WordState, phase: Phase) -> Result<(), Failure> {
        if self.colours() {
            self.guest.lock().await.set_word(word).await.map_err(|error| error.during(phase))?;
        }
        Ok(())
    }

    /// The instance, if its process is there.
    async fn living(&self, phase: Phase) -> Result<MutexGuard<'_, Option<Box<dyn Vm>>>, Failure> {
        let instance = self.instance.lock().await;
        if instance.is_some() { Ok(instance) } else { Err(self.not_running(phase)) }
    }

    fn not_running(&self, phase: Phase) -> Failure {
        let text = format!("VM {} does not run here; restore its deployment", self.definition.name);
        Failure::new(FailureKind::VmNotRunning, phase, text)
    }
}

fn hypervisor_failure(error: &HypervisorError, phase: Phase) -> Failure {
    let kind = match error {
        HypervisorError::TimedOut { .. } => FailureKind::TimedOut,
        HypervisorError::Gone { .. } | HypervisorError::WrongState { .. } => FailureKind::VmNotRunning,
        _ => FailureKind::Hypervisor,
    };
    Failure::new(kind, phase, chain(error))
}

fn store_failure(error: &StoreError, phase: Phase) -> Failure {
    let kind = match error {
        StoreError::NoSpace { .. } => FailureKind::NoSpace,
        _ => FailureKind::Files,
    };
    Failure::new(kind, phase, chain(error))
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

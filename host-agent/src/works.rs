//! What a member's jobs do: hypervisor, colours and store, in the order that protocol.md gives.
//!
//! Every step is idempotent; what undoes is written so that it can follow any step that was broken off anywhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::timeout;
use unasnap_channel::steady_ns;
use unasnap_protocol::control::{CutReport, Envelope, Failure, FailureKind, Phase, SavedReport};
use unasnap_protocol::guest::{Prefix, WordState};
use unasnap_protocol::participant::{Job, Outcome, Step};

use self::living::Living;
use crate::colouring::Colours;
use crate::colouring::host::Taps;
use crate::definition::VmDefinition;
use crate::hypervisor::{Hypervisor, HypervisorError, Vm, VmState};
use crate::store::manifest::{Identity, Saved};
use crate::store::{Draft, Store, StoreError};
use crate::switches::Switches;
use crate::together::{Pause, Together};

mod access;
mod instant;
mod leaving;
mod living;
mod power;
mod report;
mod resumption;
mod tail;

/// How long a hypervisor may take to give up a cut while the files are waited for; it is told again at every look.
const DISCARD_PATIENCE: Duration = Duration::from_secs(3);

/// One VM with everything that its jobs need.
pub struct Works {
    definition: VmDefinition,
    hypervisor: Arc<dyn Hypervisor>,
    store: Store,
    instance: Mutex<Option<Box<dyn Vm>>>,
    /// Locked after the instance by whoever needs both.
    colours: Mutex<Colours>,
    /// The local snapshot that is being written, from PREPARE to SAVED.
    draft: Arc<Mutex<Option<Draft>>>,
    /// What undid a cut was not heard by the hypervisor.
    owes_discard: AtomicBool,
    switches: Switches,
    /// With whom it ends its pauses; with nobody where there is no coordinator.
    together: Option<Together>,
    gate: access::Gate,
    last_report: report::Remembered,
}

/// Where an instance comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It outlived an earlier host agent.
    Adopted,
    /// It was booted or restored by this one.
    Started,
}

impl Works {
    /// A VM that does not run yet.
    #[must_use]
    pub fn new(
        definition: VmDefinition,
        hypervisor: Arc<dyn Hypervisor>,
        store: Store,
        taps: Arc<dyn Taps>,
        switches: Switches,
    ) -> Self {
        Self {
            colours: Mutex::new(Colours::new(&definition, taps, switches.fault)),
            definition,
            hypervisor,
            store,
            instance: Mutex::default(),
            draft: Arc::default(),
            switches,
            together: None,
            gate: access::Gate::default(),
            owes_discard: AtomicBool::new(false),
            last_report: report::Remembered::default(),
        }
    }

    /// One that ends its pauses together with the other members.
    #[must_use]
    pub fn pausing_with(mut self, together: Together) -> Self {
        self.together = Some(together).filter(|_| !self.switches.resumes_alone);
        self
    }

    /// Takes charge of the instance, if there is one: adopted, or just started.
    pub async fn take_charge(&self, found: Option<(Box<dyn Vm>, Origin)>) {
        let mut instance = self.instance.lock().await;
        let mut colours = self.colours.lock().await;
        match found {
            Some((mut vm, origin)) => {
                colours.begin(vm.as_mut(), origin == Origin::Adopted).await;
                *instance = Some(vm);
            }
            None => colours.end(&[]).await,
        }
    }

    /// Incarnation of the running instance; 0 when there is none.
    pub async fn incarnation(&self) -> u64 {
        self.instance.lock().await.as_ref().map_or(0, |vm| vm.incarnation())
    }

    /// Stops the VM, if it runs, until [`lift_fence`](Self::lift_fence) or a restore.
    pub async fn fence(&self) {
        let mut instance = self.instance.lock().await;
        if let Some(vm) = instance.as_mut().filter(|vm| !vm.is_fenced())
            && let Err(error) = vm.fence().await
        {
            tracing::error!(vm = %self.definition.name, "it may run on although its host is cut off: {error}");
        }
    }

    /// Lets a fenced VM go on, if `current` is its incarnation.
    pub async fn lift_fence(&self, current: u64) {
        let (mut instance, name) = (self.instance.lock().await, &self.definition.name);
        let Some(vm) = instance.as_mut().filter(|vm| vm.is_fenced()) else { return };
        if vm.incarnation() != current {
            tracing::error!(
                vm = %name,
                "it stays stopped: incarnation {current} of its deployment runs elsewhere, this is {}; a restore removes it",
                vm.incarnation()
            );
        } else if let Err(error) = vm.lift_fence().await {
            tracing::error!(vm = %name, "it stays stopped: {error}");
        } else {
            tracing::info!(vm = %name, "the coordinator is back: it goes on");
        }
    }

    /// Carries out one job of the participant.
    ///
    /// # Errors
    /// What failed, in the words that go to the operator.
    pub async fn carry_out(&self, job: Job) -> Result<Outcome, Failure> {
        let Job { envelope, step } = job;
        let _talking = self.gate.begin(&envelope.snapshot, &step);
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
            Step::Verify => self.verify(&envelope).await?,
            Step::Evict(to) => self.leave(&to).await?,
            Step::Control(verb) => return self.control(&envelope, verb).await.map(Outcome::Controlled),
        }
        Ok(Outcome::Done)
    }

    async fn prepare(&self, envelope: &Envelope, members: Vec<Prefix>) -> Result<(), Failure> {
        tokio::time::sleep(self.switches.prepare_delay).await;
        let talking = self.gate.talk();
        let mut vm = self.living(Phase::Prepare).await?;
        let holds = |text| Failure::new(FailureKind::TimedOut, Phase::Prepare, text);
        self.give_up_what_is_owed(&mut *vm).await.map_err(holds)?;
        let mut colours = self.colours.lock().await;
        // Everybody knows the epoch before anybody colours by it: to a member that stands before it (freshly booted or
        // restored), packets of one that was prepared sooner would come from the future, for as long as a copy takes.
        if let Err(failure) = colours.set_word(WordState::idle(envelope.epoch), Phase::Prepare).await {
            tracing::info!(vm = %envelope.vm, "another way of colouring may work: {failure}");
        }
        match vm.state().await.map_err(|error| hypervisor_failure(&error, Phase::Prepare))? {
            VmState::Running => {}
            other => {
                let text = format!("the VM is {other:?}, not running; only running VMs are snapshotted");
                return Err(Failure::new(FailureKind::VmNotRunning, Phase::Prepare, text));
            }
        }
        colours.prepare(&mut *vm, members, envelope.epoch).await?;
        let store_failure = |error: StoreError| store_failure(&error, Phase::Prepare);
        let mut draft = self.draft.lock().await;
        // What undid an earlier attempt has failed.
        if let Some(left) = draft.take() {
            self.store.abandon(&left).map_err(store_failure)?;
        }
        let begun = self.store.begin(&envelope.snapshot, &self.definition.name).map_err(store_failure)?;
        let folder = begun.folder().to_owned();
        if let Err(full) = self.store.promise(&begun, vm.space_needed()) {
            self.store.abandon(&begun).map_err(store_failure)?;
            return Err(store_failure(full));
        }
        *draft = Some(begun);
        drop(draft);
        // Copying takes long, and needs nothing of the guest: operators may use its port meanwhile.
        drop((colours, talking));
        vm.prepare_cut(&folder).await.map_err(|error| hypervisor_failure(&error, Phase::Prepare))?;
        let _talking = self.gate.talk();
        self.colours.lock().await.set_word(WordState::colouring(envelope.epoch), Phase::Prepare).await
    }

    async fn arm(&self, envelope: &Envelope) -> Result<(), Failure> {
        let mut vm = self.living(Phase::Arm).await?;
        vm.arm_cut().await.map_err(|error| hypervisor_failure(&error, Phase::Arm))?;
        self.colours.lock().await.arm(envelope.epoch).await
    }

    async fn cut(&self, envelope: &Envelope, at_ns: Option<u64>) -> Result<CutReport, Failure> {
        let mut vm = self.living(Phase::Take).await?;
        let mut colours = self.colours.lock().await;
        instant::wait(at_ns, self.switches.take_delay).await?;
        let pause = self.together.as_ref().map_or_else(Pause::alone, |together| {
            together.pause_of(envelope.vm.clone(), envelope.snapshot.clone())
        });
        let cut = colours.cut(&mut *vm, envelope.epoch, pause).await?;
        Ok(CutReport {
            colouring: colours.way(),
            send_flipped_ns: cut.send_flipped_ns,
            stopped_ns: cut.times.stopped_at,
            instant_ns: cut.times.instant,
            resumed_ns: cut.times.resumed_at,
            receive_flipped_ns: cut.receive_flipped_ns,
            parts: cut.times.parts.iter().map(|(name, ns)| ((*name).to_owned(), *ns)).collect(),
            outside_connections: colours.outside(),
        })
    }

    /// Waits until the local snapshot is durable. May be dropped at any moment; [`Step::Undo`] follows then.
    ///
    /// # Errors
    /// What failed, in the words that go to the operator.
    pub async fn save(&self, envelope: &Envelope) -> Result<SavedReport, Failure> {
        let saved = {
            let mut vm = self.living(Phase::Save).await?;
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
            && let Err(error) = self.give_up(&mut **vm).await
        {
            tracing::warn!(vm = %envelope.vm, "the cut is given up later: {error}");
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

    /// Has the hypervisor give up whatever it holds of a cut, or remembers that it has to.
    async fn give_up(&self, vm: &mut dyn Vm) -> Result<(), String> {
        self.owes_discard.store(true, Ordering::Relaxed);
        let given_up = timeout(DISCARD_PATIENCE, vm.discard_cut()).await;
        let silent = |_| {
            format!("the hypervisor of {} has not answered for {DISCARD_PATIENCE:?}", self.definition.name)
        };
        given_up.map_err(silent)?.map_err(|error| error.to_string())?;
        self.owes_discard.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// A hypervisor that hung when a snapshot was undone answers again.
    async fn give_up_what_is_owed(&self, vm: &mut dyn Vm) -> Result<(), String> {
        if self.owes_discard.load(Ordering::Relaxed) { self.give_up(vm).await } else { Ok(()) }
    }

    fn delete(&self, envelope: &Envelope, phase: Phase) -> Result<(), Failure> {
        let deleted = self.store.delete_vm(&envelope.snapshot, &self.definition.name);
        deleted.map_err(|error| store_failure(&error, phase))
    }

    async fn make_idle(&self, epoch: u32, phase: Phase) -> Result<(), Failure> {
        self.colours.lock().await.set_word(WordState::idle(epoch), phase).await
    }

    /// The instance, locked.
    async fn living(&self, phase: Phase) -> Result<Living<'_>, Failure> {
        Living::new(self.instance.lock().await).ok_or_else(|| {
            let text =
                format!("VM {} does not run here; start it, or restore its deployment", self.definition.name);
            Failure::new(FailureKind::VmNotRunning, phase, text)
        })
    }
}

/// A driver's error as it goes to the coordinator.
pub(crate) fn hypervisor_failure(error: &HypervisorError, phase: Phase) -> Failure {
    let kind = match error {
        HypervisorError::TimedOut { .. } => FailureKind::TimedOut,
        HypervisorError::Gone { .. } | HypervisorError::WrongState { .. } => FailureKind::VmNotRunning,
        _ => FailureKind::Hypervisor,
    };
    Failure::new(kind, phase, chain(error))
}

pub(crate) fn store_failure(error: &StoreError, phase: Phase) -> Failure {
    let kind = match error {
        StoreError::NoSpace { .. } | StoreError::OverQuota { .. } => FailureKind::NoSpace,
        _ => FailureKind::Files,
    };
    Failure::new(kind, phase, chain(error))
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

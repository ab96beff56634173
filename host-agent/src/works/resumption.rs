//! POLL, RESTORE and START of one VM (protocol.md section 5).

use std::time::Duration;

use tokio::time::{Instant, sleep};
use unasnap_protocol::control::{Envelope, Failure, FailureKind, Phase};
use unasnap_protocol::guest::{Prefix, StartHooks, WordState};

use super::{Works, hypervisor_failure, store_failure};
use crate::clock::unix_ns;
use crate::guest_channel::{GuestChannel, member_table};
use crate::hypervisor::{HypervisorError, SavedVm};

/// How long a resumed guest may take until its agent answers again; it wakes up in the middle of a cut.
const WAKE_LIMIT: Duration = Duration::from_secs(15);

impl Works {
    /// Everything here, complete, and with the right digests?
    pub(super) async fn poll(&self, envelope: &Envelope) -> Result<(), Failure> {
        let (store, snapshot, vm) =
            (self.store.clone(), envelope.snapshot.clone(), self.definition.name.clone());
        tokio::task::spawn_blocking(move || store.verify(&snapshot, &vm))
            .await
            .map_err(|error| Failure::new(FailureKind::Internal, Phase::Poll, error.to_string()))?
            .map_err(|error| store_failure(&error, Phase::Poll))?;
        Ok(())
    }

    /// The old instance dies before the new one is made: two of one VM never live at once here.
    pub(super) async fn restore(&self, envelope: &Envelope) -> Result<(), Failure> {
        let name = &self.definition.name;
        let manifest = self
            .store
            .manifest(&envelope.snapshot, name)
            .map_err(|error| store_failure(&error, Phase::Restore))?;
        let folder = self.store.vm_folder(&envelope.snapshot, name);
        let failure = |error: HypervisorError| hypervisor_failure(&error, Phase::Restore);
        let mut instance = self.instance.lock().await;
        *instance = None;
        self.hypervisor.destroy(name).await.map_err(failure)?;
        let saved = SavedVm { folder: &folder, manifest: &manifest };
        let vm =
            self.hypervisor.restore(&self.definition, saved, envelope.incarnation).await.map_err(failure)?;
        *self.guest.lock().await =
            GuestChannel::new(vm.guest_channel_path().to_owned(), envelope.incarnation);
        *instance = Some(vm);
        Ok(())
    }

    /// Resumes, then tells the guest what it cannot know. Hooks that fail are told to the operator;
    /// the word must be set, or the member would go on straddling until its lease.
    pub(super) async fn start(
        &self,
        envelope: &Envelope,
        members: Vec<Prefix>,
    ) -> Result<Vec<String>, Failure> {
        {
            let mut instance = self.living(Phase::Start).await?;
            let vm = instance.as_mut().ok_or_else(|| self.not_running(Phase::Start))?;
            vm.resume().await.map_err(|error| hypervisor_failure(&error, Phase::Start))?;
        }
        if !self.colours() {
            return Ok(vec!["colouring is none: the guest was told nothing".to_owned()]);
        }
        self.wake(envelope).await?;
        let mut guest = self.guest.lock().await;
        let failure = |error: crate::guest_channel::GuestError| error.during(Phase::Start);
        guest.set_members(member_table(members)).await.map_err(failure)?;
        let hooks = StartHooks { unix_ns: unix_ns(), entropy: entropy() };
        let problem = guest.start_hooks(hooks).await.err();
        Ok(problem.into_iter().map(|error| error.to_string()).collect())
    }

    /// Sets the word as soon as the guest agent answers.
    async fn wake(&self, envelope: &Envelope) -> Result<(), Failure> {
        let deadline = Instant::now() + WAKE_LIMIT;
        loop {
            match self.guest.lock().await.set_word(WordState::idle(envelope.epoch)).await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error.during(Phase::Start)),
                Err(error) => tracing::debug!(vm = %envelope.vm, "not awake yet: {error}"),
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Randomness of the host's kernel.
fn entropy() -> [u8; 32] {
    use std::io::Read;
    let mut bytes = [0; 32];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    if let Err(error) = read {
        tracing::warn!(%error, "/dev/urandom cannot be read; the restored guest is not reseeded well");
    }
    bytes
}

//! POLL, RESTORE and START of one VM (protocol.md section 5).

use std::sync::atomic::Ordering;

use unasnap_protocol::control::{Envelope, Failure, FailureKind, Phase};
use unasnap_protocol::guest::Prefix;
use unasnap_protocol::name::Name;

use super::{Works, hypervisor_failure, store_failure};
use crate::hypervisor::{HypervisorError, SavedVm};

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

    /// As [`poll`](Self::poll), and the images below the disks' layers, however large they are.
    pub(super) async fn verify(&self, envelope: &Envelope) -> Result<(), Failure> {
        let (store, snapshot, vm) =
            (self.store.clone(), envelope.snapshot.clone(), self.definition.name.clone());
        tokio::task::spawn_blocking(move || store.verify_with_bases(&snapshot, &vm))
            .await
            .map_err(|error| Failure::new(FailureKind::Internal, Phase::Verify, error.to_string()))?
            .map_err(|error| store_failure(&error, Phase::Verify))
    }

    /// The old instance dies before the new one is made: two of one VM never live at once here.
    pub(super) async fn restore(&self, envelope: &Envelope) -> Result<(), Failure> {
        let name = &self.definition.name;
        let manifest = self
            .store
            .manifest(&envelope.snapshot, name)
            .map_err(|error| store_failure(&error, Phase::Restore))?;
        let placed = self.store.placed(&manifest).map_err(|error| store_failure(&error, Phase::Restore))?;
        let folder = self.store.vm_folder(&envelope.snapshot, name);
        let failure = |error: HypervisorError| hypervisor_failure(&error, Phase::Restore);
        let mut instance = self.instance.lock().await;
        let mut colours = self.colours.lock().await;
        let taps = instance.take().map(|vm| vm.host_interfaces().to_vec()).unwrap_or_default();
        colours.end(&taps).await;
        self.hypervisor.destroy(name).await.map_err(failure)?;
        self.owes_discard.store(false, Ordering::Relaxed);
        let saved = SavedVm { folder: &folder, manifest: &manifest, here: placed.as_ref() };
        let mut vm =
            self.hypervisor.restore(&self.definition, saved, envelope.incarnation).await.map_err(failure)?;
        colours.begin(vm.as_mut(), false).await;
        *instance = Some(vm);
        Ok(())
    }

    /// The instance ends: the VM lives on another host, where it was restored. The registry does the rest.
    pub(super) async fn leave(&self, to: &Name) -> Result<(), Failure> {
        tracing::warn!(vm = %self.definition.name, "it is restored on host {to}: the instance here is ended");
        self.end(true).await.map_err(|failure| Failure { phase: Phase::Evict, ..failure })
    }

    /// Resumes, then tells the guest what it cannot know. Hooks that fail are told to the operator.
    pub(super) async fn start(
        &self,
        envelope: &Envelope,
        members: Vec<Prefix>,
    ) -> Result<Vec<String>, Failure> {
        let mut vm = self.living(Phase::Start).await?;
        let mut colours = self.colours.lock().await;
        colours.before_start(&members, envelope.epoch).await?;
        vm.resume().await.map_err(|error| hypervisor_failure(&error, Phase::Start))?;
        drop(vm);
        colours.after_start(members, envelope.epoch).await
    }
}

//! What the registry and the household ask of a VM: what it is, its files, its end for good.

use std::path::PathBuf;

use unasnap_protocol::control::{Failure, FailureKind, Phase};

use super::{Works, hypervisor_failure};
use crate::definition::VmDefinition;

impl Works {
    /// The VM as it is defined.
    #[must_use]
    pub fn definition(&self) -> &VmDefinition {
        &self.definition
    }

    /// The files of each of its disks as it is now, from the operator's image upwards.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn disk_files(&self) -> Result<Vec<Vec<PathBuf>>, Failure> {
        let files = self.hypervisor.disk_files(&self.definition);
        files.map_err(|error| hypervisor_failure(&error, Phase::Control))
    }

    /// Sees to it that the VM does not run, and that nothing of it is left on the host's network.
    ///
    /// # Errors
    /// It runs, and this is not `force`; or it cannot be ended.
    pub async fn end(&self, force: bool) -> Result<(), Failure> {
        if force {
            return self.kill().await.map(drop);
        }
        if self.is_alive().await? {
            let text = format!("VM {} runs: stop it first, or use --force", self.definition.name);
            return Err(Failure::new(FailureKind::Stale, Phase::Control, text));
        }
        let mut instance = self.instance.lock().await;
        let left = instance.take().map(|vm| vm.host_interfaces().to_vec()).unwrap_or_default();
        self.colours.lock().await.end(&left).await;
        Ok(())
    }

    /// Deletes its disks, and whatever else is kept of it but its snapshots. Refused while it runs.
    ///
    /// # Errors
    /// The hypervisor's.
    pub async fn forget(&self) -> Result<(), Failure> {
        let forgotten = self.hypervisor.forget(&self.definition.name).await;
        forgotten.map_err(|error| hypervisor_failure(&error, Phase::Control))
    }
}

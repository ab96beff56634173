//! What the registry and the household ask of a VM: what it is, its files, its end for good.

use std::path::PathBuf;

use unasnap_protocol::control::{Failure, FailureKind, Phase};

use super::{Works, hypervisor_failure};
use crate::definition::VmDefinition;
use crate::hypervisor::FrozenDisks;

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

    /// Fixes what its disks hold; see [`Hypervisor::freeze`](crate::hypervisor::Hypervisor::freeze).
    ///
    /// # Errors
    /// It is not stopped; or the hypervisor's.
    pub async fn freeze(&self) -> Result<FrozenDisks, Failure> {
        if self.is_alive().await? {
            let text =
                format!("VM {} is not stopped: a replica has what its disks hold then", self.definition.name);
            return Err(Failure::new(FailureKind::Stale, Phase::Control, text));
        }
        // Nobody starts it meanwhile; whoever did a moment ago is refused by the driver.
        let _instance = self.instance.lock().await;
        let frozen = self.hypervisor.freeze(&self.definition).await;
        frozen.map_err(|error| hypervisor_failure(&error, Phase::Control))
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

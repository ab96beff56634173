//! The drivers that the VMs of this host need, each opened when the first such VM is there.

use std::sync::Arc;

use crate::config::Config;
use crate::definition::VmDefinition;
use crate::hypervisor::qemu::{Qemu, QemuConfig};
use crate::hypervisor::virtualbox::{VirtualBox, VirtualBoxConfig};
use crate::hypervisor::{Hypervisor, HypervisorError, Pending};
use crate::store::manifest::Facts;

/// Knows which hypervisors this host has.
pub trait Runners: Send + Sync {
    /// What the one for VMs of VirtualBox is, or that for those of QEMU. Fails where it cannot be driven.
    fn facts(&self, virtualbox: bool) -> Pending<'_, Facts>;
}

/// Of this host.
pub struct Drivers {
    qemu_config: QemuConfig,
    virtualbox_config: VirtualBoxConfig,
    qemu: Option<Arc<dyn Hypervisor>>,
    virtualbox: Option<Arc<dyn Hypervisor>>,
}

impl Drivers {
    /// None is open yet.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let (qemu_config, virtualbox_config) = (config.qemu.clone(), config.virtualbox.clone());
        Self { qemu_config, virtualbox_config, qemu: None, virtualbox: None }
    }

    /// Only this one, for VMs of QEMU.
    #[must_use]
    pub fn with_qemu(driver: Arc<dyn Hypervisor>) -> Self {
        let (qemu_config, virtualbox_config) = Default::default();
        Self { qemu_config, virtualbox_config, qemu: Some(driver), virtualbox: None }
    }

    /// And this one for machines of VirtualBox.
    #[must_use]
    pub fn and_virtualbox(mut self, driver: Arc<dyn Hypervisor>) -> Self {
        self.virtualbox = Some(driver);
        self
    }

    /// The one for VMs of VirtualBox, or for those of QEMU.
    ///
    /// # Errors
    /// The hypervisor is not installed, or cannot do what the configuration insists on.
    pub async fn open(&mut self, virtualbox: bool) -> Result<Arc<dyn Hypervisor>, HypervisorError> {
        let open = if virtualbox { &self.virtualbox } else { &self.qemu };
        if let Some(driver) = open {
            return Ok(driver.clone());
        }
        let driver: Arc<dyn Hypervisor> = if virtualbox {
            Arc::new(VirtualBox::open(self.virtualbox_config.clone()).await?)
        } else {
            Arc::new(Qemu::open(self.qemu_config.clone()).await?)
        };
        let facts = driver.about();
        let (accel, ram_way) = (facts.accel.label(), facts.ram_way.label());
        tracing::info!(kind = facts.kind, version = facts.version, accel, ram_way, "hypervisor");
        let place = if virtualbox { &mut self.virtualbox } else { &mut self.qemu };
        Ok(place.insert(driver).clone())
    }

    /// The one that runs this VM.
    ///
    /// # Errors
    /// As of [`open`](Self::open).
    pub async fn of(&mut self, vm: &VmDefinition) -> Result<Arc<dyn Hypervisor>, HypervisorError> {
        self.open(vm.machine.is_some()).await
    }
}

//! What a member says about its VM once a second.

use std::sync::Mutex;

use unasnap_protocol::control::{self, VmReport};
use unasnap_protocol::guest::Prefix;

use super::Works;
use crate::definition::Colouring;
use crate::hypervisor::VmState;

/// What was last seen, shown while the VM or its channel is busy with a job.
pub(super) type Remembered = Mutex<Option<(control::VmState, bool)>>;

impl Works {
    /// The VM as it stands; asks the hypervisor and the guest unless they are busy.
    pub async fn report(&self) -> VmReport {
        let (state, guest) = self.look().await;
        let facts = self.hypervisor.about();
        VmReport {
            name: self.definition.name.clone(),
            deployment: self.definition.deployment.clone(),
            memory_mb: u32::try_from(self.definition.memory_mb).unwrap_or(u32::MAX),
            cpus: self.definition.cpus,
            addresses: self.addresses(),
            state,
            colouring: match self.definition.colouring {
                Colouring::Guest => control::Colouring::Guest,
                Colouring::None => control::Colouring::None,
            },
            ram_way: facts.ram_way.label().to_owned(),
            accelerator: facts.accel.label().to_owned(),
            guest,
            incarnation: self
                .instance
                .try_lock()
                .ok()
                .and_then(|vm| vm.as_ref().map(|vm| vm.incarnation()))
                .unwrap_or(0),
        }
    }

    /// Addresses by which the other members know this one.
    #[must_use]
    pub fn addresses(&self) -> Vec<Prefix> {
        self.definition.prefixes()
    }

    async fn look(&self) -> (control::VmState, bool) {
        let remembered = || self.last_report.lock().ok().and_then(|last| *last);
        let Ok(mut instance) = self.instance.try_lock() else {
            return remembered().unwrap_or((control::VmState::Running, false));
        };
        let seen = match instance.as_mut() {
            None => (control::VmState::Stopped, false),
            Some(vm) => match vm.state().await {
                Ok(VmState::Running) => {
                    drop(instance);
                    let answers = self.guest_answers().await;
                    let state = if answers || !self.colours() || remembered().is_some_and(|(_, guest)| guest)
                    {
                        control::VmState::Running
                    } else {
                        control::VmState::Starting
                    };
                    (state, answers)
                }
                Ok(VmState::Paused) => (control::VmState::Paused, false),
                Ok(VmState::Dead) => {
                    *instance = None;
                    (control::VmState::Stopped, false)
                }
                Ok(VmState::IoError) | Err(_) => (control::VmState::Failed, false),
            },
        };
        if let Ok(mut last) = self.last_report.lock() {
            *last = Some(seen);
        }
        seen
    }

    async fn guest_answers(&self) -> bool {
        match self.guest.try_lock() {
            Ok(mut guest) => guest.identify().await.is_ok(),
            Err(_) => true,
        }
    }
}

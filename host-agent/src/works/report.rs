//! What a member says about its VM once a second.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::timeout;
use unasnap_protocol::control::{self, VmReport};
use unasnap_protocol::guest::Prefix;

use super::Works;
use crate::hypervisor::VmState;

/// For the hypervisor's answer: whoever waits for the VM because a look is under way must not wait for a hung one.
const LOOK_PATIENCE: Duration = Duration::from_secs(2);

/// What was last seen, shown while the VM is busy with a job.
pub(super) type Remembered = Mutex<Option<Seen>>;

/// What changes from one look to the next.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    state: control::VmState,
    colouring: control::Colouring,
    colouring_note: String,
    guest: bool,
    incarnation: u64,
}

impl Works {
    /// The VM as it stands; asks the hypervisor and the guest unless they are busy.
    pub async fn report(&self) -> VmReport {
        let seen = self.look().await;
        let facts = self.hypervisor.about();
        VmReport {
            name: self.definition.name.clone(),
            deployment: self.definition.deployment.clone(),
            memory_mb: u32::try_from(self.definition.memory_mb).unwrap_or(u32::MAX),
            cpus: self.definition.cpus,
            addresses: self.addresses(),
            state: seen.state,
            colouring: seen.colouring,
            colouring_note: seen.colouring_note,
            ram_way: facts.ram_way.label().to_owned(),
            accelerator: facts.accel.label().to_owned(),
            guest: seen.guest,
            incarnation: seen.incarnation,
        }
    }

    /// Addresses by which the other members know this one.
    #[must_use]
    pub fn addresses(&self) -> Vec<Prefix> {
        self.definition.prefixes()
    }

    /// What the hypervisor said last.
    pub(super) fn last_state(&self) -> Option<control::VmState> {
        self.last_report.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|seen| seen.state)
    }

    /// The guest that boots now has not answered yet.
    pub(super) fn forget_report(&self) {
        *self.last_report.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn look(&self) -> Seen {
        let remembered = || self.last_report.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (instance, colours) = (self.instance.try_lock(), self.colours.try_lock());
        let (mut instance, mut colours) = match (instance, colours, remembered()) {
            (Ok(instance), Ok(colours), _) => (instance, colours),
            (_, _, Some(seen)) => return seen,
            // Nobody has looked yet, and a job is under way: wait for it.
            (instance, colours, None) => {
                drop((instance, colours));
                (self.instance.lock().await, self.colours.lock().await)
            }
        };
        let incarnation = instance.as_ref().map_or(0, |vm| vm.incarnation());
        let state = match instance.as_mut() {
            None => control::VmState::Stopped,
            Some(vm) => match timeout(LOOK_PATIENCE, vm.state()).await {
                Ok(Ok(VmState::Running)) => {
                    colours.look(vm.as_mut()).await;
                    let before = remembered().is_some_and(|seen| seen.guest);
                    if colours.guest_answers() || before || !colours.needs_guest() {
                        control::VmState::Running
                    } else {
                        control::VmState::Starting
                    }
                }
                Ok(Ok(VmState::Paused)) => control::VmState::Paused,
                Ok(Ok(VmState::Dead)) => {
                    let taps = vm.host_interfaces().to_vec();
                    *instance = None;
                    colours.end(&taps).await;
                    control::VmState::Stopped
                }
                Ok(Ok(VmState::IoError) | Err(_)) | Err(_) => control::VmState::Failed,
            },
        };
        if let (Some(vm), false) = (instance.as_mut(), state == control::VmState::Failed)
            && let Err(error) = self.give_up_what_is_owed(vm.as_mut()).await
        {
            tracing::warn!(vm = %self.definition.name, "a cut that was undone is still held: {error}");
        }
        let seen = Seen {
            state,
            colouring: colours.way(),
            colouring_note: colours.note().to_owned(),
            guest: state == control::VmState::Running && colours.guest_answers(),
            incarnation: if instance.is_some() { incarnation } else { 0 },
        };
        *self.last_report.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen.clone());
        seen
    }
}

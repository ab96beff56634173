//! I6, source unharmed: taking (or failing to take) a snapshot changes nothing in the VM but a pause.

use unasnap_protocol::participant::Step;

use super::{Violation, broken};
use crate::setup::Setup;
use crate::world::World;

/// A VM that a job has stopped runs again as soon as no cut is under way, except for one that waits for START; and nobody but a
/// restore ends an instance or replaces it.
///
/// # Errors
/// A VM that stands still.
pub fn check(setup: &Setup, world: &World) -> Result<(), Violation> {
    for (index, member) in world.members.iter().enumerate() {
        let agent = world.hosts[setup.host_of[index]].up;
        let cutting =
            member.job.as_ref().is_some_and(|running| matches!(running.job.step, Step::Cut(_) | Step::Undo));
        let Some(vm) = &member.vm else { continue };
        // A hypervisor that does not even obey what undoes is asked again at the next PREPARE or start of the agent.
        if agent && !vm.running && !vm.awaits_start && !cutting && !member.undo_failed {
            return broken("I6", format!("m{index} stands still, and no cut is under way"));
        }
        if vm.incarnation > world.coordinator.journal.incarnation {
            return broken("I6", format!("m{index} runs incarnation {}, never decided", vm.incarnation));
        }
    }
    Ok(())
}

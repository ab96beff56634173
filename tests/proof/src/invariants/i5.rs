//! I5, no residue: after commit or abort, members are idle and nothing is left behind but the snapshot.

use super::{Violation, broken};
use crate::setup::Setup;
use crate::world::World;

/// Once nothing is under way, everybody is connected and every message has arrived: no member is busy, and no file is left of
/// what was not committed.
///
/// # Errors
/// A residue.
pub fn check(setup: &Setup, world: &World) -> Result<(), Violation> {
    if setup.lossy {
        return Ok(());
    }
    let coordinator = &world.coordinator;
    let quiet = |host: &crate::world::Host| {
        let empty = |link: &crate::world::Link| link.down.is_empty() && link.up.is_empty();
        host.up && host.link.as_ref().is_some_and(empty)
    };
    let told = coordinator.journal.snapshots.values().all(|record| record.closed);
    if !coordinator.up || coordinator.course.is_some() || !told || !world.hosts.iter().all(quiet) {
        return Ok(());
    }
    for (index, member) in world.members.iter().enumerate() {
        // A lease that runs, a job or a saving: it is not over. What a failed undo left goes at the next occasion.
        if member.job.is_some() || member.saving.is_some() || member.wake || member.undo_failed {
            continue;
        }
        if let Some(draft) = &member.draft {
            return broken("I5", format!("m{index} keeps the draft of s{}", draft.snapshot));
        }
        for epoch in member.locals.keys() {
            if !coordinator.journal.snapshots.get(epoch).is_some_and(|record| record.committed) {
                return broken("I5", format!("m{index} keeps files of s{epoch}, which was not committed"));
            }
        }
        // One whose restore failed half way is restored again: not this.
        if let Some(undecided) = member.participant.undecided() {
            return broken("I5", format!("m{index} is still busy with {}", undecided.envelope.snapshot));
        }
    }
    Ok(())
}

/// The words after a snapshot that went well: all alike, no colouring, no filter.
///
/// # Errors
/// A word that is not idle.
pub fn words_at_rest(world: &World) -> Result<(), Violation> {
    let epoch = world.coordinator.journal.last_epoch + 1;
    for (index, member) in world.members.iter().enumerate() {
        let Some(vm) = &member.vm else { continue };
        let word = vm.image.word;
        if word.colouring() || word.strict() || word.send() != epoch || word.receive() != epoch {
            return broken(
                "I5",
                format!("m{index} stands at {word:?} after the snapshot before epoch {epoch}"),
            );
        }
    }
    Ok(())
}

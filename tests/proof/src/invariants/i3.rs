//! I3, all or nothing: a snapshot is usable only if every member's local snapshot of that epoch is durable.

use super::{Violation, broken};
use crate::setup::Setup;
use crate::world::World;

/// What the journal lists, every store has; and nobody has marked what the journal does not list.
///
/// # Errors
/// A part that is missing, or a mark that is one too many.
pub fn check(setup: &Setup, world: &World) -> Result<(), Violation> {
    let snapshots = &world.coordinator.journal.snapshots;
    for (epoch, _) in snapshots.iter().filter(|(_, record)| record.committed) {
        for member in 0..setup.members() {
            if !world.members[member].locals.get(epoch).is_some_and(|local| local.durable) {
                let what = format!("snapshot s{epoch} is listed, and m{member} has no durable part of it");
                return broken("I3", what);
            }
        }
    }
    for (index, member) in world.members.iter().enumerate() {
        for (epoch, _) in member.locals.iter().filter(|(_, local)| local.committed) {
            if !snapshots.get(epoch).is_some_and(|record| record.committed) {
                return broken(
                    "I3",
                    format!("m{index} has marked s{epoch}, which the journal does not list"),
                );
            }
        }
    }
    Ok(())
}

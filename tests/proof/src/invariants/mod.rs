//! The invariants of protocol.md section 7, one file each. Exploration and simulation ask the same functions.

use unasnap_protocol::guest::Epoch;

use crate::setup::{Channel, Setup};
use crate::world::{Image, World};

pub mod i1;
pub mod i2;
pub mod i3;
pub mod i4;
pub mod i5;
pub mod i6;

/// A broken invariant: its name, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// `I1` to `I6`.
    pub invariant: &'static str,
    /// In words.
    pub what: String,
}

pub(crate) fn broken(invariant: &'static str, what: String) -> Result<(), Violation> {
    Err(Violation { invariant, what })
}

/// Those that must hold at every moment.
///
/// # Errors
/// The first that does not.
pub fn always(setup: &Setup, world: &World) -> Result<(), Violation> {
    i3::check(setup, world)?;
    i1::check(setup, world)?;
    i2::check(setup, world)?;
    i4::check(setup, world)?;
    i5::check(setup, world)?;
    i6::check(setup, world)
}

/// Every committed snapshot that is whole, stream by stream: what its sender and its receiver hold.
fn committed_streams<'a>(
    setup: &'a Setup,
    world: &'a World,
) -> impl Iterator<Item = (Epoch, &'a Channel, &'a Image, &'a Image)> {
    let committed = world.coordinator.journal.snapshots.iter().filter(|(_, record)| record.committed);
    committed.flat_map(move |(&epoch, _)| {
        let image = move |member: usize| world.members[member].locals.get(&epoch).map(|local| &*local.image);
        setup
            .channels
            .iter()
            .filter_map(move |channel| Some((epoch, channel, image(channel.from)?, image(channel.to)?)))
    })
}

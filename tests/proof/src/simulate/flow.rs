//! I4 with a clock: no member drops a stream's packets for longer than the lease without advancing.

use unasnap_guest_ebpf::layout::{Config, DropStamp};

use super::MS;
use crate::invariants::Violation;
use crate::setup::Setup;
use crate::step::{Came, Event};
use crate::world::network::Arrival;
use crate::world::{Body, World};

/// Since when each direction of each stream has been dropped, by which stamp.
#[derive(Debug)]
pub(super) struct Flow(Vec<[Option<(u64, DropStamp)>; 2]>);

impl Flow {
    pub(super) fn new(channels: usize) -> Self {
        Self(vec![[None; 2]; channels])
    }

    /// A stamp counts ticks of about 1 ms, and a lease begins with the first drop of any stream.
    pub(super) fn see(
        &mut self,
        setup: &Setup,
        world: &World,
        event: Event,
        came: Came,
        now: u64,
    ) -> Result<(), Violation> {
        let (Event::Deliver { packet, .. } | Event::Repeat { packet, .. }) = event else { return Ok(()) };
        let direction = usize::from(matches!(packet.body, Body::Acknowledgement(_)));
        let since = &mut self.0[packet.channel][direction];
        let Came::Packet(Arrival::Dropped) = came else {
            *since = None;
            return Ok(());
        };
        let to = packet.to(setup);
        let Some(vm) = &world.members[to].vm else { return Ok(()) };
        let word = vm.image.word;
        // Whoever sets the word takes the stamp away, and the lease begins anew.
        let stamp = vm.image.stamp;
        let first = since.filter(|(_, before)| *before == stamp).map_or(now, |(first, _)| first);
        *since = Some((first, stamp));
        let lease = Config::default().future_lease_ns;
        if now - first > lease + 5 * MS {
            let ms = (now - first) / MS;
            let what = format!("m{to} at {word:?} has dropped a stream for {ms} ms, and does not advance");
            return Err(Violation { invariant: "I4", what });
        }
        Ok(())
    }
}

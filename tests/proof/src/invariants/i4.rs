//! I4, progress: whatever crashes, member traffic flows again within `future_lease`, without an operator.

use unasnap_guest_ebpf::{CodePoints, Dropped, dropped, egress, ingress};

use super::{Violation, broken};
use crate::setup::{Mistake, Setup};
use crate::step::{EARLY_NS, late_ns};
use crate::world::World;

/// Without a clock: whatever two members' words are, a packet that is dropped is let through when it is sent again after one
/// lease, by the programs alone, and if nobody else does anything.
///
/// # Errors
/// Two members that would need more than one lease.
pub fn check(setup: &Setup, world: &World) -> Result<(), Violation> {
    let codes = CodePoints::DEFAULT;
    for channel in &setup.channels {
        for (from, to) in [(channel.from, channel.to), (channel.to, channel.from)] {
            let (Some(sender), Some(receiver)) = (&world.members[from].vm, &world.members[to].vm) else {
                continue;
            };
            let dscp = match egress(sender.image.word, 0, codes) {
                unasnap_guest_ebpf::Egress::Colour(dscp) => dscp,
                _ => 0,
            };
            let word = receiver.image.word;
            if !ingress(word, dscp, codes).drops() {
                continue;
            }
            let first = match dropped(word, receiver.image.stamp, EARLY_NS, 0) {
                Dropped::Remember(stamp) => stamp,
                _ => receiver.image.stamp,
            };
            // In a simulation the first drop was at any time, also at one of these: it cannot have been at both.
            let advanced = [late_ns(), late_ns() + EARLY_NS].map(|now_ns| dropped(word, first, now_ns, 0));
            let after = match advanced {
                [Dropped::Advance(after), _] | [_, Dropped::Advance(after)]
                    if setup.mistake != Mistake::NoAdvance =>
                {
                    after
                }
                _ => word,
            };
            if ingress(after, dscp, codes).drops() {
                let what =
                    format!("m{to} at {word:?} drops for ever what m{from} sends at {:?}", sender.image.word);
                return broken("I4", what);
            }
        }
    }
    Ok(())
}

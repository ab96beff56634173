//! I1, no orphan: in a committed global snapshot no member has received, before its cut, a packet sent after the sender's.

use super::{Violation, broken, committed_streams};
use crate::setup::Setup;
use crate::world::World;

/// What the receiver's snapshot holds must be in the sender's: as many messages at most, and the same. Acknowledgements are
/// packets of the other direction.
///
/// # Errors
/// An orphan, with its place.
pub fn check(setup: &Setup, world: &World) -> Result<(), Violation> {
    for (epoch, channel, sender, receiver) in committed_streams(setup, world) {
        let (sent, received) = (&sender.app.sent[channel.out], &receiver.app.received[channel.inn]);
        if !sent.log.starts_with(received) {
            let (from, to) = (channel.from, channel.to);
            let (has, made) = (received.len(), sent.log.len());
            return broken(
                "I1",
                format!(
                    "in snapshot s{epoch} m{to} has received {has} messages of m{from}, which has sent {made}"
                ),
            );
        }
        if sent.acknowledged as usize > received.len() {
            let (from, to) = (channel.from, channel.to);
            return broken(
                "I1",
                format!("in snapshot s{epoch} m{from} has an acknowledgement that m{to} has not sent"),
            );
        }
    }
    Ok(())
}

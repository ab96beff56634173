//! I2, no loss on reliable channels: after a restore every stream delivers each byte exactly once, in order.

use super::{Violation, broken};
use crate::setup::Setup;
use crate::world::World;

/// Where both ends live in the same incarnation, what one has received is what the other has sent, from the first message on.
/// Contents tell a message from another one that was sent under its number before a restore.
///
/// # Errors
/// A stream with other contents.
pub fn check(setup: &Setup, world: &World) -> Result<(), Violation> {
    for channel in &setup.channels {
        let (from, to) = (&world.members[channel.from].vm, &world.members[channel.to].vm);
        let (Some(from), Some(to)) = (from, to) else { continue };
        if from.incarnation != to.incarnation {
            continue;
        }
        let (sent, received) = (&from.image.app.sent[channel.out], &to.image.app.received[channel.inn]);
        if !sent.log.starts_with(received) {
            let what = format!(
                "m{} has received {received:?} from m{}, which has sent {:?} (contents by incarnation)",
                channel.to, channel.from, sent.log
            );
            return broken("I2", what);
        }
        if sent.acknowledged as usize > received.len() {
            let what = format!(
                "m{} will never send again what m{} has not received: {} of {} acknowledged",
                channel.from,
                channel.to,
                sent.acknowledged,
                received.len()
            );
            return broken("I2", what);
        }
    }
    Ok(())
}

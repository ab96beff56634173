//! How far transfers are that no member waits for: said once a second.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use unasnap_protocol::control::Moved;
use unasnap_protocol::name::Name;

/// Between two words that tell how far a transfer is.
pub(super) const TELL_EVERY: Duration = Duration::from_secs(1);

/// How far one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Far {
    /// Whence it comes.
    pub from: Name,
    /// In this attempt.
    pub moved: Moved,
}

/// What a transfer has last put here.
pub(super) type Mark = watch::Sender<Option<Far>>;

/// Carries out a transfer; meanwhile `tell` hears every second how far it is.
pub(super) async fn told<T, W: Future<Output = T>>(
    tell: impl Fn(Far),
    transfer: impl FnOnce(Mark) -> W,
) -> T {
    let (mark, mut seen) = watch::channel(None);
    let mut work = pin!(transfer(mark));
    let mut every = interval(TELL_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = every.tick() => drop(seen.borrow_and_update().clone().map(&tell)),
        }
    }
}

//! Waiting for the instant at which all members are to cut.

use std::time::Duration;

use unasnap_channel::steady_ns;
use unasnap_protocol::control::{Failure, FailureKind, MAX_AHEAD_NS, Phase};

/// Waits until `at_ns` of this host's clock (now, if there is none or it has passed), and `delay` more. On a thread of its own:
/// the timers of the async runtime count milliseconds, the kernel's are exact to some 0.1 ms.
///
/// # Errors
/// The instant is more than [`MAX_AHEAD_NS`] away: the clocks are not what the coordinator takes them for.
pub(super) async fn wait(at_ns: Option<u64>, delay: Duration) -> Result<(), Failure> {
    let ahead_ns = at_ns.map_or(0, |at_ns| at_ns.saturating_sub(steady_ns()));
    if ahead_ns > MAX_AHEAD_NS {
        let text = format!(
            "the cut is ordered for an instant {:.1} s ahead on this host's clock, more than {:.0} s; one of the clocks stood still or jumped: take another snapshot",
            seconds(ahead_ns),
            seconds(MAX_AHEAD_NS)
        );
        return Err(Failure::new(FailureKind::Stale, Phase::Take, text));
    }
    let ahead = Duration::from_nanos(ahead_ns) + delay;
    if ahead.is_zero() {
        return Ok(());
    }
    let slept = tokio::task::spawn_blocking(move || std::thread::sleep(ahead)).await;
    slept.map_err(|error| Failure::new(FailureKind::Internal, Phase::Take, error.to_string()))
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

//! The clock of the control channel: what coordinator and host agents report and compare.
//!
//! It reads like Unix time and goes on evenly (`CLOCK_MONOTONIC_RAW`) from what that was when the program started, so that
//! setting the wall clock in the middle of a snapshot changes nothing. How far it is from another machine's is
//! found out over the connection, and holds for that connection.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Unix time and the even clock at one moment.
static START: OnceLock<(Duration, Duration)> = OnceLock::new();

/// Nanoseconds since 1970 by this program's even clock.
#[must_use]
pub fn steady_ns() -> u64 {
    let now = even();
    let (unix, start) = START.get_or_init(|| (unix(), even()));
    u64::try_from((*unix + now.saturating_sub(*start)).as_nanos()).unwrap_or(u64::MAX)
}

fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Since some moment before this machine's start.
fn even() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_RAW).expect("Linux has had this clock since 2.6.28");
    Duration::from(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_like_unix_time_and_never_goes_back() {
        let mut last = steady_ns();
        assert!(last.abs_diff(u64::try_from(unix().as_nanos()).unwrap()) < 60_000_000_000);
        for _ in 0..1000 {
            let now = steady_ns();
            assert!(now >= last);
            last = now;
        }
    }
}

//! The host's wall clock, as guests get it. Reports carry that of the channel ([`unasnap_channel::steady_ns`]), which is never
//! set.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since 1970; 0 on a machine whose clock stands before that.
#[must_use]
pub fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

//! Names, sizes and values of the maps, and names of the programs.

use crate::{counters::Counter, rules::CodePoints};

/// Name of the egress program.
pub const EGRESS: &str = "unasnap_egress";
/// Name of the ingress program.
pub const INGRESS: &str = "unasnap_ingress";

/// Array of two `u64` that can be mapped into user space: the [`StateWord`](crate::StateWord) and, beside it, the
/// nonce by which a host recognises the word in the guest's RAM.
pub const STATE: &str = "STATE";
/// Place of the word.
pub const STATE_WORD: u32 = 0;
/// Place of the nonce.
pub const STATE_NONCE: u32 = 1;
/// Array of one [`Config`].
pub const CONFIG: &str = "CONFIG";
/// LPM trie of IPv4 prefixes; the values mean nothing.
pub const MEMBERS4: &str = "MEMBERS4";
/// LPM trie of IPv6 prefixes; the values mean nothing.
pub const MEMBERS6: &str = "MEMBERS6";
/// Per-CPU array of `u64`, one per [`Counter`](crate::Counter).
pub const COUNTERS: &str = "COUNTERS";
/// Array of one `u64`, a [`DropStamp`].
pub const FIRST_DROP: &str = "FIRST_DROP";

/// Most prefixes per address family: twice what one deployment may have, so that one list can be
/// replaced by another without a gap.
pub const MAX_PREFIXES: u32 = 8192;

/// What tells one version of a map from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapShape {
    /// Name of the map and of its pin.
    pub name: &'static str,
    /// Bytes of a key; an LPM trie's begins with four bytes of prefix length.
    pub key_bytes: u32,
    /// Bytes of a value.
    pub value_bytes: u32,
    /// Most entries.
    pub entries: u32,
}

const fn shape(name: &'static str, key_bytes: u32, value_bytes: u32, entries: u32) -> MapShape {
    MapShape { name, key_bytes, value_bytes, entries }
}

/// All maps.
pub const MAPS: [MapShape; 6] = [
    shape(STATE, 4, 8, 2),
    shape(CONFIG, 4, size_of::<Config>() as u32, 1),
    shape(MEMBERS4, 4 + 4, 1, MAX_PREFIXES),
    shape(MEMBERS6, 4 + 16, 1, MAX_PREFIXES),
    shape(COUNTERS, 4, 8, Counter::ALL.len() as u32),
    shape(FIRST_DROP, 4, 8, 1),
];

/// What the programs need to know besides the word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// After how many nanoseconds of dropping the member advances by itself.
    pub future_lease_ns: u64,
    /// DSCP of each colour.
    pub code_points: CodePoints,
    /// Fills the structure to whole words; 0.
    pub padding: [u8; 5],
}

impl Config {
    /// With the lease in milliseconds.
    #[must_use]
    pub const fn new(code_points: CodePoints, future_lease_ms: u32) -> Self {
        Self { future_lease_ns: future_lease_ms as u64 * 1_000_000, code_points, padding: [0; 5] }
    }
}

impl Default for Config {
    /// Code points 3, 5, 7 and a lease of 2 s.
    fn default() -> Self {
        Self::new(CodePoints::DEFAULT, 2000)
    }
}

/// When the first packet of a receive epoch was dropped, in one word so that it changes at once.
///
/// The lower 31 bits are the receive epoch, so that a stamp of an earlier epoch is recognised; the upper 33
/// bits are monotonic time in units of 2^20 ns (1.05 ms), which come round in 104 days: elapsed time is
/// taken modulo that. 0 means "none yet".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct DropStamp(u64);

impl DropStamp {
    const TICK_SHIFT: u32 = 20;
    const EPOCH_BITS: u32 = 31;
    const EPOCH_MASK: u64 = (1 << Self::EPOCH_BITS) - 1;

    /// A drop in receive epoch `epoch` at the monotonic time `now_ns`.
    #[inline(always)]
    #[must_use]
    pub const fn new(epoch: u32, now_ns: u64) -> Self {
        Self((epoch as u64 & Self::EPOCH_MASK) | ((now_ns >> Self::TICK_SHIFT) << Self::EPOCH_BITS))
    }

    /// The stamp as it stands in the map.
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The stamp as it is to stand in the map.
    #[inline(always)]
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Nanoseconds (to within 1.05 ms) from this first drop to the drop `now`; `None` when this stamp is
    /// none or of another epoch, and `now` is the first drop.
    #[inline(always)]
    #[must_use]
    pub const fn elapsed_ns(self, now: Self) -> Option<u64> {
        if self.0 == 0 || (self.0 ^ now.0) & Self::EPOCH_MASK != 0 {
            return None;
        }
        let ticks = now.0.wrapping_sub(self.0) >> Self::EPOCH_BITS;
        Some(ticks << Self::TICK_SHIFT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn elapsed_time_is_right_to_a_tick() {
        let first = DropStamp::new(7, 5_000 * MS);
        let elapsed = first.elapsed_ns(DropStamp::new(7, 5_150 * MS)).unwrap();
        assert!(elapsed.abs_diff(150 * MS) <= 1 << 20, "{elapsed}");
    }

    #[test]
    fn a_stamp_of_another_epoch_is_none() {
        assert_eq!(DropStamp::default().elapsed_ns(DropStamp::new(0, 9)), None);
        assert_eq!(DropStamp::new(6, 100 * MS).elapsed_ns(DropStamp::new(7, 9_000 * MS)), None);
    }

    #[test]
    fn time_may_come_round() {
        let first = DropStamp::new(7, (1 << 53) - (1 << 20));
        assert_eq!(first.elapsed_ns(DropStamp::new(7, 1 << 53)), Some(1 << 20));
    }

    #[test]
    fn config_has_no_hidden_bytes() {
        assert_eq!(size_of::<Config>(), 16);
    }
}

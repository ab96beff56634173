//! How far a host's clock stands from the coordinator's, found out over the control channel, and what follows
//! from it: one instant that all hosts understand.
//!
//! ```text
//! coordinator   asked ──┐                          ┌── heard
//!                        ╲                        ╱
//! host                    received ──── answered
//! ```
//!
//! No message arrives before it was sent, so the offset (host minus coordinator) lies between `answered - heard` and
//! `received - asked`, however unequal the two ways were. The middle of the two is the estimate; half of the time under way
//! is its bound. Of the last readings the one with the smallest bound counts.
//!
//! Safety never depends on any of this: a wrong offset makes cuts less simultaneous, and nothing else.

use std::collections::VecDeque;

use crate::control::CutReport;

#[cfg(test)]
mod tests;

/// Readings that are kept.
const KEPT: usize = 16;
/// As many are asked for one after the other when a host has connected.
const FIRST: usize = 8;
/// How far two clocks may drift apart: quartz is good to 50 parts in a million, and there are two.
const DRIFT_PPM: u64 = 100;
/// A clock known worse than this, nanoseconds, is of no use for a common instant.
const MAX_BOUND_NS: u64 = 5_000_000;
/// Least and greatest time from the order to the common instant, nanoseconds. All of it delays the snapshot.
const AHEAD_NS: (u64, u64) = (2_000_000, 20_000_000);
/// What a host needs on top of the time under way until its members wait, nanoseconds.
const MARGIN_NS: u64 = 1_500_000;

/// One question and its answer, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The coordinator asked, by its clock.
    pub asked_ns: u64,
    /// The host received the question, by its own clock.
    pub received_ns: u64,
    /// The host answered, by its own clock.
    pub answered_ns: u64,
    /// The coordinator heard it, by its clock.
    pub heard_ns: u64,
}

impl Reading {
    /// Time that question and answer were under way; `None` if a clock ran backwards.
    fn under_way_ns(&self) -> Option<u64> {
        let whole = self.heard_ns.checked_sub(self.asked_ns)?;
        whole.checked_sub(self.answered_ns.checked_sub(self.received_ns)?)
    }

    /// As it was at `heard_ns`; `None` if a clock ran backwards or the offset is none that a clock can have.
    fn offset(&self) -> Option<Offset> {
        let bound_ns = self.under_way_ns()?.div_ceil(2);
        let least = i128::from(self.answered_ns) - i128::from(self.heard_ns);
        Some(Offset { ns: i64::try_from(least + i128::from(bound_ns)).ok()?, bound_ns })
    }

    /// With what the clocks may have drifted apart since.
    fn offset_at(&self, now_ns: u64) -> Option<Offset> {
        let offset = self.offset()?;
        let drift = now_ns.saturating_sub(self.heard_ns) / 1_000_000 * DRIFT_PPM;
        Some(Offset { bound_ns: offset.bound_ns.saturating_add(drift), ..offset })
    }
}

/// Where a host's clock stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offset {
    /// The host's clock minus the coordinator's, nanoseconds.
    pub ns: i64,
    /// The true offset is at most this far from `ns`, nanoseconds.
    pub bound_ns: u64,
}

impl Offset {
    /// The coordinator's instant on the host's clock.
    #[must_use]
    pub fn to_host(self, coordinator_ns: u64) -> u64 {
        coordinator_ns.saturating_add_signed(self.ns)
    }

    /// The host's instant on the coordinator's clock.
    #[must_use]
    pub fn to_coordinator(self, host_ns: u64) -> u64 {
        host_ns.saturating_sub_signed(self.ns)
    }

    /// The same cut by the coordinator's clock.
    #[must_use]
    pub fn translate(self, cut: CutReport) -> CutReport {
        CutReport {
            send_flipped_ns: self.to_coordinator(cut.send_flipped_ns),
            stopped_ns: self.to_coordinator(cut.stopped_ns),
            instant_ns: self.to_coordinator(cut.instant_ns),
            resumed_ns: self.to_coordinator(cut.resumed_ns),
            receive_flipped_ns: self.to_coordinator(cut.receive_flipped_ns),
            ..cut
        }
    }

    fn agrees_with(self, other: Self) -> bool {
        self.ns.abs_diff(other.ns) <= self.bound_ns.saturating_add(other.bound_ns)
    }
}

/// What is known of one host's clock over one connection.
#[derive(Debug, Clone, Default)]
pub struct HostClock {
    readings: VecDeque<Reading>,
}

impl HostClock {
    /// Takes a reading. One that cannot be is ignored. One that contradicts the others shows that a clock was set or
    /// stood still meanwhile (a host that was suspended): they are forgotten.
    pub fn add(&mut self, reading: Reading) {
        let Some(new) = reading.offset() else { return };
        if self.offset(reading.heard_ns).is_some_and(|known| !known.agrees_with(new)) {
            self.readings.clear();
        }
        if self.readings.len() == KEPT {
            self.readings.pop_front();
        }
        self.readings.push_back(reading);
    }

    /// Is the next question to follow at once, rather than in a second?
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.readings.len() < FIRST
    }

    /// The best that is known at `now_ns` of the coordinator's clock.
    #[must_use]
    pub fn offset(&self, now_ns: u64) -> Option<Offset> {
        let offsets = self.readings.iter().filter_map(|reading| reading.offset_at(now_ns));
        offsets.min_by_key(|offset| offset.bound_ns)
    }

    /// The time under way, nanoseconds, that three of four questions and answers lately did not exceed: to wait for every stray
    /// one would cost more than an order that comes late now and then.
    fn usual_ns(&self) -> u64 {
        let mut times: Vec<_> = self.readings.iter().filter_map(Reading::under_way_ns).collect();
        times.sort_unstable();
        times.get(times.len().saturating_sub(1) * 3 / 4).copied().unwrap_or(0)
    }
}

/// An instant by the coordinator's clock that an order sent at `now_ns` should reach all these hosts before; `None` if a
/// host's clock is not known well enough: then the order means "at once". A host that it reaches later obeys at once, too.
#[must_use]
pub fn common_instant<'a>(now_ns: u64, clocks: impl IntoIterator<Item = &'a HostClock>) -> Option<u64> {
    let mut slowest_ns = 0;
    for clock in clocks {
        clock.offset(now_ns).filter(|offset| offset.bound_ns <= MAX_BOUND_NS)?;
        slowest_ns = clock.usual_ns().max(slowest_ns);
    }
    let (least, greatest) = AHEAD_NS;
    // One way is about half of both.
    Some(now_ns.saturating_add((slowest_ns / 2).saturating_add(MARGIN_NS).clamp(least, greatest)))
}

/// When one member cut, by the coordinator's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberCut<'a, H> {
    /// Its host.
    pub host: &'a H,
    /// The snapshot instant, nanoseconds.
    pub ns: u64,
    /// How far the host's clock may be off; `None` when it was never compared.
    pub bound_ns: Option<u64>,
}

/// Last cut instant minus first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skew {
    /// When the first member cut, nanoseconds of the coordinator's clock.
    pub first_ns: u64,
    /// Nanoseconds.
    pub ns: u64,
    /// The true skew is at most this far from `ns`; `None` if it is not known how far the hosts' clocks are apart.
    pub bound_ns: Option<u64>,
}

/// The skew of these cuts; `None` if there are none. Members of one host share its clock, so that only hosts add to
/// the bound: the two worst, as any two may be the first and the last.
#[must_use]
pub fn skew<H: Ord>(cuts: &[MemberCut<'_, H>]) -> Option<Skew> {
    let first_ns = cuts.iter().map(|cut| cut.ns).min()?;
    let last_ns = cuts.iter().map(|cut| cut.ns).max()?;
    let mut hosts: Vec<_> = cuts.iter().map(|cut| (cut.host, cut.bound_ns)).collect();
    hosts.sort();
    hosts.dedup_by_key(|(host, _)| *host);
    let bound_ns = if hosts.len() == 1 { Some(0) } else { worst_two(hosts.iter().map(|(_, bound)| *bound)) };
    Some(Skew { first_ns, ns: last_ns - first_ns, bound_ns })
}

fn worst_two(bounds: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    let mut bounds: Vec<u64> = bounds.collect::<Option<_>>()?;
    bounds.sort_unstable_by(|one, other| other.cmp(one));
    Some(bounds.iter().take(2).fold(0, |sum, bound| sum.saturating_add(*bound)))
}

//! Offsets stay within their bounds whatever the network does, and a clock that was set is noticed.

use super::*;

const MS: u64 = 1_000_000;
const MINUTE: i64 = 60_000_000_000;
const NOW: u64 = 1_700_000_000_000_000_000;

/// The host's clock is `offset` ahead; the question takes `there`, the host a while, the answer `back`.
fn reading(offset: i64, asked_ns: u64, there: u64, back: u64) -> Reading {
    let received_ns = (asked_ns + there).saturating_add_signed(offset);
    Reading {
        asked_ns,
        received_ns,
        answered_ns: received_ns + MS / 3,
        heard_ns: asked_ns + there + MS / 3 + back,
    }
}

fn clock(readings: impl IntoIterator<Item = Reading>) -> HostClock {
    let mut clock = HostClock::default();
    readings.into_iter().for_each(|reading| clock.add(reading));
    clock
}

#[test]
fn the_offset_stays_within_its_bound_however_unequal_the_ways_are() {
    let delays = [0, 1, 90_000, 3 * MS, 400 * MS];
    for offset in [-90 * MINUTE, -1, 0, 12_345, 3 * MINUTE] {
        for there in delays {
            for back in delays {
                let found = reading(offset, NOW, there, back).offset().unwrap();
                assert_eq!(found.bound_ns, (there + back).div_ceil(2));
                assert!(found.ns.abs_diff(offset) <= found.bound_ns, "{offset} {there} {back}: {found:?}");
            }
        }
    }
}

#[test]
fn the_best_reading_counts_and_its_bound_grows_with_its_age() {
    let clock = clock([
        reading(MINUTE, NOW, MS, 9 * MS),
        reading(MINUTE, NOW + 100 * MS, 0, MS / 5),
        reading(MINUTE, NOW + 200 * MS, 3 * MS, 0),
    ]);
    let fresh = clock.offset(NOW + 203 * MS).unwrap();
    assert!(fresh.ns.abs_diff(MINUTE) <= fresh.bound_ns && fresh.bound_ns < MS / 5, "{fresh:?}");
    // After ten seconds of 100 parts in a million either way.
    let old = clock.offset(NOW + 10_203 * MS).unwrap();
    assert_eq!(old.bound_ns - fresh.bound_ns, MS);
}

#[test]
fn only_the_last_readings_are_kept() {
    let readings = (0..100).map(|second| reading(5, NOW + second * 1000 * MS, MS, MS));
    let clock = clock(readings);
    assert_eq!(clock.readings.len(), KEPT);
    assert!(!clock.is_new() && HostClock::default().is_new());
}

#[test]
fn a_clock_that_was_set_is_noticed_at_the_next_reading() {
    let mut clock = clock((0..16).map(|second| reading(0, NOW + second * 1000 * MS, MS / 10, MS / 10)));
    for step in [MINUTE, -MINUTE, 2 * MS as i64] {
        let at = NOW + 17_000 * MS;
        // A worse reading than those before, and yet the only one that is still true.
        clock.add(reading(step, at, MS / 5, MS / 4));
        let found = clock.offset(at + MS).unwrap();
        assert!(found.ns.abs_diff(step) <= found.bound_ns, "after a step of {step}: {found:?}");
        assert_eq!(clock.readings.len(), 1);
    }
}

#[test]
fn readings_that_cannot_be_are_ignored() {
    let good = reading(0, NOW, MS, MS);
    let bad = [
        Reading { heard_ns: NOW - 1, ..good },
        Reading { answered_ns: good.received_ns - 1, ..good },
        Reading { answered_ns: u64::MAX, ..good },
        Reading { received_ns: u64::MAX, answered_ns: u64::MAX, ..good },
    ];
    for reading in bad {
        assert!(clock([reading]).readings.is_empty(), "{reading:?}");
    }
}

#[test]
fn a_common_instant_needs_every_clock_and_waits_for_the_slowest_host() {
    let near = clock([reading(MINUTE, NOW, MS / 10, MS / 10)]);
    let far = clock([reading(-MINUTE, NOW, 4 * MS, 4 * MS)]);
    let vague = clock([reading(0, NOW, 30 * MS, 300 * MS)]);
    let now = NOW + 400 * MS;
    assert_eq!(common_instant(now, [&near]), Some(now + AHEAD_NS.0));
    assert_eq!(common_instant(now, [&near, &far]), Some(now + 4 * MS + MARGIN_NS));
    assert_eq!(common_instant(now, [&near, &vague]), None, "a clock that nobody knows within 5 ms");
    assert_eq!(common_instant(now, [&near, &HostClock::default()]), None);
    // Slow round trips among good ones: the offset is known, and the order will take as long as most did.
    let mut jittery = clock([reading(MINUTE, NOW, MS / 10, MS / 10); 3]);
    for (after, expected) in [(4, AHEAD_NS.0), (5, AHEAD_NS.1)] {
        jittery.add(reading(MINUTE, NOW + MS, 30 * MS, 300 * MS));
        assert_eq!(jittery.readings.len(), after);
        assert_eq!(common_instant(now, [&jittery]), Some(now + expected), "{after} readings");
    }
}

#[test]
fn instants_translate_there_and_back() {
    for ns in [-90 * MINUTE, 0, 77] {
        let offset = Offset { ns, bound_ns: 1 };
        assert_eq!(offset.to_coordinator(offset.to_host(NOW)), NOW);
        let cut = CutReport {
            colouring: crate::control::Colouring::Guest,
            send_flipped_ns: offset.to_host(NOW),
            stopped_ns: offset.to_host(NOW + 1),
            instant_ns: offset.to_host(NOW + 2),
            resumed_ns: offset.to_host(NOW + 3),
            receive_flipped_ns: offset.to_host(NOW + 4),
            parts: vec![("ram".to_owned(), 7)],
            outside_connections: None,
        };
        let here = offset.translate(cut);
        assert_eq!((here.send_flipped_ns, here.instant_ns, here.receive_flipped_ns), (NOW, NOW + 2, NOW + 4));
        assert_eq!((here.pause_ns(), here.parts.len()), (2, 1));
    }
    // What no host could mean saturates.
    assert_eq!(Offset { ns: i64::MIN, bound_ns: 0 }.to_host(5), 0);
}

#[test]
fn skew_is_as_uncertain_as_the_two_worst_clocks() {
    let cut = |host, ns, bound_ns| MemberCut { host, ns, bound_ns };
    let of = |cuts: &[MemberCut<'_, &str>]| skew(cuts).map(|skew| (skew.first_ns, skew.ns, skew.bound_ns));
    assert_eq!(of(&[]), None);
    let one_host = [cut(&"h1", 50, Some(9)), cut(&"h1", 20, Some(9))];
    assert_eq!(of(&one_host), Some((20, 30, Some(0))), "members of one host share its clock");
    let three =
        [cut(&"h1", 50, Some(9)), cut(&"h2", 20, Some(4)), cut(&"h2", 90, Some(4)), cut(&"h3", 40, Some(7))];
    assert_eq!(of(&three), Some((20, 70, Some(16))));
    assert_eq!(of(&[cut(&"h1", 5, None), cut(&"h2", 6, Some(1))]), Some((5, 1, None)));
    assert_eq!(of(&[cut(&"h1", 5, None), cut(&"h1", 6, None)]), Some((5, 1, Some(0))));
}

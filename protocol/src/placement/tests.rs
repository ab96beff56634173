//! What each algorithm does with small sets of hosts, and what all of them promise.

use proptest::prelude::*;

use super::*;

const ALL: [Algorithm; 7] = [
    Algorithm::Random,
    Algorithm::RoundRobin,
    Algorithm::FirstFit,
    Algorithm::FirstFitDecreasing,
    Algorithm::BestFit,
    Algorithm::Sorting,
    Algorithm::Singleton,
];

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn room(host: &str, cores: u32) -> Room {
    Room {
        host: name(host),
        cores,
        memory_mb: 1 << 20,
        disk_bytes: 1 << 50,
        vms: 0,
        bases: [name("deb")].into(),
    }
}

fn want(vm: &str, cores: u32) -> Want {
    Want { vm: name(vm), need: Need { cores, memory_mb: 1024, disk_bytes: 1 << 30 }, base: name("deb") }
}

fn wants(cores: &[u32]) -> Vec<Want> {
    cores.iter().enumerate().map(|(index, cores)| want(&format!("v{index}"), *cores)).collect()
}

/// Hosts in the order of the VMs.
fn hosts(algorithm: Algorithm, rooms: &[Room], cores: &[u32]) -> Vec<String> {
    let plan = place(algorithm, rooms, &wants(cores), 1).unwrap();
    plan.places.iter().map(|place| place.host.to_string()).collect()
}

#[test]
fn each_algorithm_has_its_own_order() {
    let rooms = [room("a", 8), room("b", 4), room("c", 6)];
    assert_eq!(hosts(Algorithm::RoundRobin, &rooms, &[1, 1, 1, 1]), ["a", "b", "c", "a"]);
    assert_eq!(hosts(Algorithm::FirstFit, &rooms, &[1, 1, 1, 1]), ["a", "a", "b", "b"]);
    // The largest, v1, comes first, and b is the smallest host.
    assert_eq!(hosts(Algorithm::FirstFitDecreasing, &rooms, &[1, 4, 2]), ["c", "b", "c"]);
    // After v0 (5 cores into c) c has the fewest cores left.
    assert_eq!(hosts(Algorithm::BestFit, &rooms, &[5, 1, 4]), ["c", "c", "b"]);
    assert_eq!(hosts(Algorithm::Singleton, &rooms, &[3, 4]), ["a", "a"]);
}

#[test]
fn sorting_prefers_what_is_used_already() {
    let used = Room { vms: 1, ..room("c", 6) };
    assert_eq!(
        hosts(Algorithm::Sorting, &[room("a", 9), room("b", 4), used], &[1, 1, 1, 1]),
        ["c", "b", "b", "a"]
    );
}

#[test]
fn random_reaches_every_host_and_depends_on_its_seed_only() {
    let rooms = [room("a", 8), room("b", 8), room("c", 8)];
    let at = |seed| place(Algorithm::Random, &rooms, &wants(&[1]), seed).unwrap().places[0].host.to_string();
    let seen: std::collections::BTreeSet<_> = (0..50).map(at).collect();
    assert_eq!(seen.len(), 3);
    assert_eq!(at(7), at(7));
}

#[test]
fn two_vms_on_a_host_are_preferred_and_more_are_warned_of() {
    let rooms = [room("a", 8), room("b", 8)];
    assert_eq!(hosts(Algorithm::FirstFit, &rooms, &[1, 1, 1, 1]), ["a", "a", "b", "b"]);
    let plan = place(Algorithm::FirstFit, &rooms, &wants(&[1; 5]), 1).unwrap();
    assert!(plan.warnings[0].contains("a will have 5 VMs"), "{:?}", plan.warnings);
    let room = Room { vms: 3, ..room("a", 8) };
    let plan = place(Algorithm::FirstFit, &[room, rooms[1].clone()], &wants(&[1]), 1).unwrap();
    assert_eq!((plan.places[0].host.as_str(), plan.warnings.len()), ("b", 0), "a was full before");
}

#[test]
fn no_host_has_more_than_two_vms_while_that_is_possible() {
    let rooms = [room("a", 64), room("b", 32), room("c", 16)];
    for algorithm in ALL.into_iter().filter(|algorithm| *algorithm != Algorithm::Singleton) {
        let mut found = hosts(algorithm, &rooms, &[1; 6]);
        found.sort();
        assert_eq!(found, ["a", "a", "b", "b", "c", "c"], "{algorithm:?}");
        assert_eq!(place(algorithm, &rooms, &wants(&[1; 6]), 1).unwrap().warnings.len(), 0, "{algorithm:?}");
        assert!(!place(algorithm, &rooms, &wants(&[1; 7]), 1).unwrap().warnings.is_empty(), "{algorithm:?}");
    }
}

#[test]
fn what_is_missing_is_said_of_each_host() {
    let dry = Room { memory_mb: 512, ..room("b", 8) };
    let full = Room { disk_bytes: 5 << 20, ..room("c", 8) };
    let strange = Room { bases: BTreeSet::new(), ..room("d", 8) };
    let error =
        place(Algorithm::BestFit, &[room("a", 1), dry, full, strange], &wants(&[1, 2]), 1).unwrap_err();
    let text = error.to_string();
    for words in [
        "v1 (2 cores",
        "a has 1 cores left",
        "b has 512 MiB of RAM left",
        "c has 5 MiB of disk left",
        "d has no usable base deb",
    ] {
        assert!(text.contains(words), "{text}");
    }
    let busy = Room { vms: 1, ..room("a", 64) };
    let error = place(Algorithm::Singleton, &[busy, room("b", 3)], &wants(&[2, 2]), 1).unwrap_err();
    assert!(error.to_string().contains("all 2 VMs together (4 cores"), "{error}");
    assert!(error.to_string().contains("a has VMs, b has 3 cores left"), "{error}");
    let many: Vec<_> = (0..30).map(|index| room(&format!("h{index}"), 1)).collect();
    let error = place(Algorithm::FirstFit, &many, &wants(&[2]), 1).unwrap_err();
    assert!(error.to_string().contains("22 more are no better"), "{error}");
    assert_eq!(place(Algorithm::FirstFit, &[], &wants(&[1]), 1), Err(PlacementError::NoHosts));
}

fn rooms() -> impl Strategy<Value = Vec<Room>> {
    let one = (0u32..16, 0u64..32_768, 0u64..64, 0u32..5, any::<bool>());
    let made = |(index, (cores, memory_mb, gib, vms, based)): (usize, (u32, u64, u64, u32, bool))| {
        let host = name(&format!("h{index}"));
        let bases = based.then(|| name("deb")).into_iter().collect();
        Room { host, cores, memory_mb, disk_bytes: gib << 30, vms, bases }
    };
    prop::collection::vec(one, 1..8).prop_map(move |all| all.into_iter().enumerate().map(made).collect())
}

fn needs() -> impl Strategy<Value = Vec<Want>> {
    let one = (1u32..5, 256u64..8192, 0u64..16);
    let made = |(index, (cores, memory_mb, gib)): (usize, (u32, u64, u64))| Want {
        vm: name(&format!("v{index}")),
        need: Need { cores, memory_mb, disk_bytes: gib << 30 },
        base: name("deb"),
    };
    prop::collection::vec(one, 1..12).prop_map(move |all| all.into_iter().enumerate().map(made).collect())
}

proptest! {
    /// Whatever the algorithm: every VM has one place, in the given order, and no host gives more than it has.
    #[test]
    fn a_plan_is_whole_and_fits(rooms in rooms(), wants in needs(), seed in any::<u64>()) {
        for algorithm in ALL {
            let Ok(plan) = place(algorithm, &rooms, &wants, seed) else { continue };
            let vms: Vec<_> = plan.places.iter().map(|place| &place.vm).collect();
            prop_assert_eq!(vms, wants.iter().map(|want| &want.vm).collect::<Vec<_>>());
            for room in &rooms {
                let here = |want: &&Want| plan.places.iter().any(|p| p.vm == want.vm && p.host == room.host);
                let here: Vec<_> = wants.iter().filter(here).cloned().collect();
                let sum = Need::sum(&here);
                prop_assert!(sum.cores <= room.cores, "{:?}", algorithm);
                prop_assert!(sum.memory_mb <= room.memory_mb, "{:?}", algorithm);
                prop_assert!(sum.disk_bytes <= room.disk_bytes, "{:?}", algorithm);
            }
        }
    }

    /// First fit finds room for one VM whenever there is any; so do all but singleton.
    #[test]
    fn one_vm_is_refused_only_if_nobody_has_room(rooms in rooms(), wants in needs(), seed in any::<u64>()) {
        let one = &wants[..1];
        let room = rooms.iter().any(|room| room.lacks(&one[0], None).is_none());
        for algorithm in ALL.into_iter().filter(|algorithm| *algorithm != Algorithm::Singleton) {
            prop_assert_eq!(place(algorithm, &rooms, one, seed).is_ok(), room, "{:?}", algorithm);
        }
    }
}

//! The proof itself on systems so small that a debug build goes through them in seconds; `cargo xtask prove` does the rest.

use unasnap_proof::budget::{Budget, Kind};
use unasnap_proof::explore::{Configuration, explore};
use unasnap_proof::setup::{Mistake, Setup};
use unasnap_proof::{diagram, invariants, simulate, variants};
use unasnap_protocol::control::Colouring::{Guest, Host};
use unasnap_protocol::fault::Fault;

fn smallest(mistake: Mistake) -> Configuration {
    let setup = Setup { mistake, ..Setup::new(&[Guest, Host], &[(0, 1)]) };
    Configuration { name: "smallest", setup, budget: Budget::of(&[(Kind::Takes, 1)]), breaks: None }
}

#[test]
fn an_honest_snapshot_has_no_violation_in_any_order() {
    let report = explore(&smallest(Mistake::Shipped(Fault::None)), 100_000);
    assert!(report.complete, "{report:?}");
    assert!(report.states > 1000, "{} states are not all", report.states);
}

#[test]
fn a_trace_leads_to_its_violation_and_no_prefix_of_it_does() {
    let configuration = smallest(Mistake::Shipped(Fault::NoBarrier));
    let (violation, trace) = explore(&configuration, 100_000).found.unwrap();
    assert_eq!(violation.invariant, "I1");
    let setup = &configuration.setup;
    let mut world = unasnap_proof::world::World::new(setup);
    for (number, event) in trace.iter().enumerate() {
        assert_eq!(invariants::always(setup, &world), Ok(()), "before step {number}");
        world.apply(&mut unasnap_proof::world::Context { setup, todo: &mut Vec::new() }, *event);
    }
    assert_eq!(invariants::always(setup, &world), Err(violation));
    let drawn = diagram::draw(setup, &trace);
    assert!(drawn.contains("|-- message 0, colour 2 --------->|"), "{drawn}");
}

#[test]
fn every_mistake_of_the_programs_is_among_the_variants() {
    let known = variants::mistaken();
    for (fault, label) in Fault::ALL {
        let found = known.iter().find(|one| one.name == label).unwrap();
        assert_eq!(found.setup.mistake, Mistake::Shipped(fault));
    }
}

#[test]
fn a_seed_has_one_run() {
    for seed in 1..20 {
        let run = || {
            simulate::run(seed, Mistake::Shipped(Fault::None))
                .map(|summary| (summary.events, summary.committed))
        };
        let (one, other) = (run().unwrap(), run().unwrap());
        assert_eq!(one, other, "seed {seed}");
        assert!(one.1 > 0, "seed {seed} has no snapshot");
    }
}

#[test]
fn a_mistake_is_found_at_random_too() {
    let breaks = |seed: &u64| simulate::run(*seed, Mistake::NoAdvance).is_err();
    assert!((1..500).any(|seed| breaks(&seed)));
}

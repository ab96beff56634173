//! The systems that are explored: honest ones, in which nothing may be found, and mistaken ones, in which something must be.

use unasnap_protocol::control::Colouring::{self, Guest, Host, Memory};
use unasnap_protocol::fault::Fault;

use crate::budget::Budget;
use crate::budget::Kind::{self, *};
use crate::explore::Configuration;
use crate::setup::{Mistake, Setup};

type Pairs = [(usize, usize)];

const BOTH: [(usize, usize); 2] = [(0, 1), (1, 0)];
const ONE: [(usize, usize); 1] = [(0, 1)];

fn system(
    name: &'static str,
    ways: &[Colouring],
    pairs: &Pairs,
    messages: usize,
    counts: &[(Kind, u8)],
) -> Configuration {
    let lossy = counts.iter().any(|(kind, _)| *kind == Lost);
    let setup = Setup { messages, lossy, ..Setup::new(ways, pairs) };
    Configuration { name, setup, budget: Budget::of(counts), breaks: None }
}

/// With a TCP that acknowledges and sends again.
fn acknowledged(mut configuration: Configuration) -> Configuration {
    configuration.setup.acknowledged = true;
    configuration
}

/// With frames that wait in the guests' cards.
fn with_ring(mut configuration: Configuration) -> Configuration {
    configuration.setup.ring = true;
    configuration
}

/// Honest systems.
#[must_use]
pub fn honest() -> Vec<Configuration> {
    // A name, ways, streams, messages on each, and what may happen.
    let pair = [Guest, Host];
    let hostile = [(Takes, 1), (Bleached, 1), (Duplicates, 1), (Advances, 1)];
    let lossy = [(Takes, 1), (Lost, 1), (Repeated, 1), (Timeouts, 1), (Leases, 1)];
    let breaking = [(Takes, 1), (Breaks, 2), (Timeouts, 1), (Leases, 1)];
    let failing = [(Takes, 1), (Failures, 2), (Advances, 1), (Duplicates, 1)];
    let crashing = [(Takes, 1), (Coordinators, 1), (Agents, 1), (Timeouts, 1), (Leases, 1)];
    let again = [(Takes, 2), (Coordinators, 1), (Agents, 1), (Timeouts, 1)];
    let restoring = [(Takes, 1), (Restores, 1), (Bleached, 1)];
    let resending = [(Takes, 1), (Restores, 1), (Resends, 1)];
    let unlucky = [(Takes, 1), (Restores, 2), (Agents, 1), (Hosts, 1), (Timeouts, 1)];
    let half_done = [(Takes, 1), (Restores, 1), (Coordinators, 1), (Failures, 1)];
    let deaf = [(Takes, 1), (Restores, 1), (Lost, 1), (Timeouts, 1)];
    vec![
        system("broken links", &pair, &[], 1, &breaking),
        system("control lost and repeated", &pair, &ONE, 1, &lossy),
        system("straddle", &[Guest, Guest], &BOTH, 1, &hostile),
        system("atomic cuts", &[Host, Memory], &BOTH, 1, &hostile),
        system("two messages", &pair, &ONE, 2, &hostile),
        system("three members", &[Guest, Host, Memory], &[(0, 1), (1, 2)], 1, &[(Takes, 1)]),
        system("failed jobs", &pair, &ONE, 1, &failing),
        system("crashes", &pair, &[], 1, &crashing),
        system("two rounds", &[Guest, Guest], &ONE, 1, &[(Takes, 2), (Failures, 1), (Bleached, 1)]),
        system(
            "two rounds, late packets",
            &[Guest, Guest],
            &ONE,
            2,
            &[(Takes, 2), (Duplicates, 1), (Advances, 1)],
        ),
        system("two rounds, crashes", &pair, &[], 1, &again),
        acknowledged(system("restore", &pair, &ONE, 1, &resending)),
        with_ring(system("restore, frames in the card", &[Memory, Guest], &ONE, 1, &restoring)),
        system("restore, hosts crash", &pair, &[], 1, &unlucky),
        system("restore, half done", &pair, &[], 1, &half_done),
        system("restore, control lost", &pair, &[], 1, &deaf),
    ]
}

/// Mistaken systems, with the invariant that each breaks.
#[must_use]
pub fn mistaken() -> Vec<Configuration> {
    let wrong = |mistake, breaks, configuration: Configuration| {
        let setup = Setup { mistake, ..configuration.setup };
        Configuration { setup, breaks: Some(breaks), ..configuration }
    };
    let pair = [Guest, Guest];
    let one = |name| system(name, &pair, &ONE, 1, &[(Takes, 1)]);
    let fault = |fault, name| wrong(Mistake::Shipped(fault), "I1", one(name));
    let advancing = [(Takes, 1), (Duplicates, 1), (Advances, 1)];
    vec![
        wrong(Mistake::Published, "I1", one("published steps")),
        fault(Fault::NoBarrier, "no-barrier"),
        fault(Fault::UncolouredTooEarly, "uncoloured-too-early"),
        fault(Fault::SendFlippedLate, "send-flipped-late"),
        fault(Fault::ReceiveFlippedEarly, "receive-flipped-early"),
        wrong(
            Mistake::Shipped(Fault::BleachedWithoutStrict),
            "I1",
            system("bleached-without-strict", &pair, &ONE, 1, &[(Takes, 1), (Bleached, 1)]),
        ),
        wrong(Mistake::LateCut, "I1", system("late cut", &pair, &ONE, 2, &advancing)),
        wrong(
            Mistake::RestoredColour,
            "I2",
            with_ring(system("restored colour", &pair, &ONE, 1, &[(Takes, 1), (Restores, 1)])),
        ),
        wrong(
            Mistake::IdleAtOnce,
            "I2",
            with_ring(system("idle at once", &pair, &ONE, 1, &[(Takes, 1), (Restores, 1), (Bleached, 1)])),
        ),
        wrong(
            Mistake::OpenTaps,
            "I2",
            system("open taps", &[Host, Host], &ONE, 1, &[(Takes, 1), (Restores, 1)]),
        ),
        wrong(Mistake::SentFirst, "I3", system("sent before durable", &pair, &[], 1, &[(Takes, 1)])),
        wrong(Mistake::SavedFirst, "I3", system("saved before durable", &pair, &[], 1, &[(Takes, 1)])),
        wrong(Mistake::NoAdvance, "I4", one("no self-advance")),
        wrong(Mistake::FilesLeft, "I5", system("files left", &pair, &[], 1, &[(Takes, 1), (Failures, 1)])),
        wrong(Mistake::LeftStanding, "I6", system("left standing", &[Guest, Host], &ONE, 1, &advancing)),
    ]
}

//! Every state that a configuration can reach, breadth first: the first violation found has a shortest trace.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::time::Instant;

use crate::budget::Budget;
use crate::invariants::{self, Violation};
use crate::setup::Setup;
use crate::step::{Came, Event};
use crate::world::{Context, World};

/// What is explored.
#[derive(Debug, Clone)]
pub struct Configuration {
    /// For reports.
    pub name: &'static str,
    /// What stays the same.
    pub setup: Setup,
    /// What may happen, and how often.
    pub budget: Budget,
    /// The invariant that must be found broken; `None` for the honest system.
    pub breaks: Option<&'static str>,
}

/// What an exploration came to.
#[derive(Debug, Clone)]
pub struct Report {
    /// Different states.
    pub states: u64,
    /// Steps between them.
    pub steps: u64,
    /// Longest shortest way to a state, steps.
    pub depth: u32,
    /// How long it took.
    pub seconds: f64,
    /// Was every reachable state seen? Not so after a violation, and when there are too many.
    pub complete: bool,
    /// The first violation, and a shortest way to it.
    pub found: Option<(Violation, Vec<Event>)>,
}

/// Two hashes of 64 bits, which two different states of a run share once in 10^24 pairs.
#[derive(Default)]
struct Wide {
    one: u64,
    other: u64,
}

fn fold(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    (product as u64) ^ ((product >> 64) as u64)
}

impl Hasher for Wide {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word) ^ ((chunk.len() as u64) << 56));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.one = fold(self.one ^ word ^ 0x2d35_8dcc_aa6c_78a5, 0x9e37_79b9_7f4a_7c15);
        self.other = fold(self.other.rotate_left(23) ^ word ^ 0x8bb8_4b93_962e_acc9, 0xd6e8_feb8_6659_fd93);
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(u64::from(byte));
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn finish(&self) -> u64 {
        self.one
    }
}

impl Wide {
    fn of(state: &impl Hash) -> u128 {
        let mut hasher = Self { one: 1, other: 2 };
        state.hash(&mut hasher);
        (u128::from(hasher.one) << 64) | u128::from(hasher.other)
    }
}

/// What is hashed already.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn write(&mut self, _: &[u8]) {}

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Where a state was first reached from, and by which of the events that were possible there.
struct Parent {
    state: u32,
    event: u16,
}

/// Explores all of it, or until `most` states are known.
///
/// # Panics
/// There are more states than a `u32` counts.
#[must_use]
pub fn explore(configuration: &Configuration, most: usize) -> Report {
    let setup = &configuration.setup;
    let begun = Instant::now();
    let first = (World::new(setup), configuration.budget);
    let mut known: HashSet<u128, BuildHasherDefault<Same>> = HashSet::default();
    known.insert(Wide::of(&first));
    let mut parents = vec![Parent { state: 0, event: 0 }];
    let mut frontier = vec![(0u32, first)];
    let mut report = Report { states: 1, steps: 0, depth: 0, seconds: 0.0, complete: true, found: None };
    let mut todo = Vec::new();
    while !frontier.is_empty() && report.found.is_none() && report.complete {
        let mut next = Vec::new();
        'level: for (place, (world, budget)) in frontier {
            for (number, event) in world.possible(setup).into_iter().enumerate() {
                let Some(budget) = budget.after(event) else { continue };
                let mut world = world.clone();
                todo.clear();
                if world.apply(&mut Context { setup, todo: &mut todo }, event) == Came::Nothing {
                    continue;
                }
                report.steps += 1;
                let state = (world, budget);
                if !known.insert(Wide::of(&state)) {
                    continue;
                }
                let index = u32::try_from(parents.len()).expect("fewer states than 2^32");
                parents.push(Parent { state: place, event: number as u16 });
                if let Err(violation) = invariants::always(setup, &state.0) {
                    report.found = Some((violation, way_to(configuration, &parents, index)));
                    break 'level;
                }
                next.push((index, state));
            }
            if parents.len() >= most {
                report.complete = false;
                break;
            }
        }
        frontier = next;
        report.depth += u32::from(!frontier.is_empty());
    }
    report.states = parents.len() as u64;
    report.complete &= report.found.is_none();
    report.seconds = begun.elapsed().as_secs_f64();
    report
}

/// The events that lead to a state: only their places are kept, so they are found again on the way.
fn way_to(configuration: &Configuration, parents: &[Parent], last: u32) -> Vec<Event> {
    let mut places = Vec::new();
    let mut state = last;
    while state != 0 {
        let parent = &parents[state as usize];
        places.push(parent.event);
        state = parent.state;
    }
    let setup = &configuration.setup;
    let mut world = World::new(setup);
    let mut todo = Vec::new();
    let follow = |place: u16| {
        let event = world.possible(setup)[usize::from(place)];
        world.apply(&mut Context { setup, todo: &mut todo }, event);
        event
    };
    places.into_iter().rev().map(follow).collect()
}

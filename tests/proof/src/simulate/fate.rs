//! What a seed decides about a run: how large the system is, how bad the network, and what goes wrong.

use unasnap_protocol::control::Colouring::{Guest, Host, Memory};

use super::random::Random;
use super::{MS, SECOND};
use crate::setup::{Mistake, Setup};

/// What may befall one system. All shares are of a thousand.
#[derive(Debug, Clone)]
pub struct Fate {
    /// Snapshots that are asked for before everything heals.
    pub rounds: u64,
    /// Disturbances around each.
    pub disturbances: u64,
    /// Packets lost.
    pub lost: u64,
    /// Packets doubled.
    pub doubled: u64,
    /// Packets whose mark is cleared.
    pub bleached: u64,
    /// Packets, messages and jobs that take long.
    pub slow: u64,
    /// Jobs that fail.
    pub failing: u64,
    /// How long a frame may lie in a guest's card, ns: while the guest has other things to do, packets wait there.
    pub in_card: u64,
}

impl Fate {
    /// Nothing more goes wrong.
    pub fn heal(&mut self) {
        (self.lost, self.doubled, self.bleached, self.slow, self.failing) = (0, 0, 0, 0, 0);
    }
}

/// Most small systems, where most that can go wrong goes wrong; sometimes one of up to 50 hosts and 200 VMs.
fn members(random: &mut Random) -> u64 {
    match random.below(10_000) {
        0..9_700 => random.from(2, 4),
        9_700..9_970 => random.from(5, 12),
        9_970..9_998 => random.from(13, 50),
        _ => random.from(51, 200),
    }
}

/// The system and its fate.
#[must_use]
pub fn draw(random: &mut Random, mistake: Mistake) -> (Setup, Fate) {
    let count = members(random);
    let way = random.below(4);
    let ways: Vec<_> = (0..count)
        .map(|_| match way {
            0 => Guest,
            1 => Host,
            2 => Memory,
            _ => random.one(&[Guest, Host, Memory]),
        })
        .collect();
    let mut pairs: Vec<(usize, usize)> =
        (0..count as usize).map(|one| (one, (one + 1) % count as usize)).collect();
    for _ in 0..random.below(count) {
        let (one, other) = (random.below(count) as usize, random.below(count) as usize);
        if one != other {
            pairs.push((one, other));
        }
    }
    let mut setup = Setup::new(&ways, &pairs);
    let hosts = random.from(1, count.min(50));
    setup.host_of = (0..count).map(|member| (member % hosts) as usize).collect();
    setup.messages = if count <= 4 { 24 } else { 8 };
    setup.acknowledged = true;
    setup.ring = random.permille(300);
    setup.mistake = mistake;
    let fate = Fate {
        rounds: random.from(1, 3),
        disturbances: random.below(4),
        lost: random.one(&[0, 10, 100]),
        doubled: random.one(&[0, 10, 100]),
        bleached: random.one(&[0, 0, 100, 1000]),
        slow: random.one(&[0, 20, 100]),
        failing: random.one(&[0, 0, 5, 30]),
        in_card: random.one(&[MS, MS, 50 * MS]),
    };
    (setup, fate)
}

impl Fate {
    /// How long a packet travels.
    pub fn travel(&self, random: &mut Random) -> u64 {
        if random.permille(self.slow) { random.below(6 * SECOND) } else { random.from(MS / 10, 2 * MS) }
    }

    /// How long a control message travels.
    pub fn message(&self, random: &mut Random) -> u64 {
        if random.permille(self.slow) { random.below(SECOND) } else { random.from(MS / 10, 5 * MS) }
    }

    /// How long a part of a job takes.
    pub fn work(&self, random: &mut Random) -> u64 {
        if random.permille(self.slow) { random.below(SECOND) } else { random.from(MS / 10, 20 * MS) }
    }

    /// How long a local snapshot takes to become durable.
    pub fn save(&self, random: &mut Random) -> u64 {
        if random.permille(100) { random.below(30 * SECOND) } else { random.from(10 * MS, 500 * MS) }
    }
}

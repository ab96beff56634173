//! Our programs on both ends of a pair, and their state word.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, TestRun as _, TestRunOptions};
use unasnap_guest_ebpf::{StateWord, layout};
use unasnap_loader::maps::Maps;
use unasnap_loader::programs::{self, Hook};
use unasnap_loader::{Pins, Side};
use unasnap_protocol::guest::{Prefix, SetMembers};
use unasnap_tests::sample::sample;

use super::pair::{DEVICE, Pair};

/// The epoch in which everything is measured.
const EPOCH: u32 = 4;
/// Code points of the three colours.
const CODE_POINTS: [u8; 3] = [3, 5, 7];
/// Stores per measurement, and system calls.
const STORES: u32 = 100_000;
const UPDATES: u32 = 5_000;
/// Runs of a program per measurement.
const RUNS: u32 = 20_000;
/// `TC_ACT_SHOT` of the kernel's `pkt_cls.h`: drop the packet.
const SHOT: i32 = 2;

/// States in which packets are measured.
pub const STATES: [(&str, StateWord); 3] = [
    ("idle", StateWord::new(EPOCH, EPOCH, false, false)),
    ("colouring", StateWord::new(EPOCH, EPOCH, true, false)),
    ("strict", StateWord::new(EPOCH, EPOCH, true, true)),
];

/// Both programs, attached to both ends; they share one word, as two members outside a cut have equal ones.
pub struct Programs {
    programs: programs::Programs,
    maps: Maps,
    state: Array<MapData, u64>,
}

impl Programs {
    /// Loads and attaches them; the ends are each other's members.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach(pair: &Pair) -> Result<Self> {
        let pins = Pins::of_guest();
        pins.prepare()?;
        let mut programs = programs::Programs::load(&pins, false)?;
        let mut maps = Maps::open(&pins)?;
        let prefixes = Pair::V4.map(|address| Prefix::V4(address, 32)).into_iter();
        let prefixes = prefixes.chain(Pair::V6.map(|address| Prefix::V6(address, 128))).collect();
        // No lease ends while drops are measured.
        maps.set_members(&SetMembers { prefixes, code_points: CODE_POINTS, future_lease_ms: 3_600_000 })?;
        for end in [&pair.near, &pair.far] {
            end.within(|| attach_both(&mut programs))?;
        }
        let state = Array::try_from(Map::from_map_data(MapData::from_pin(pins.map(layout::STATE))?)?)?;
        Ok(Self { programs, maps, state })
    }

    /// Sets the word.
    ///
    /// # Errors
    /// A system call fails.
    pub fn set_word(&mut self, word: StateWord) -> Result<()> {
        self.maps.set_word(word)
    }

    /// Nanoseconds of one switch by a store into the mapped word.
    pub fn store_ns(&self) -> f64 {
        let words = STATES.map(|(_, word)| word);
        let start = Instant::now();
        for turn in 0..STORES as usize {
            self.maps.word.store(words[turn % words.len()]);
        }
        start.elapsed().as_nanos() as f64 / f64::from(STORES)
    }

    /// Nanoseconds of one switch by the bpf() system call.
    ///
    /// # Errors
    /// The system call fails.
    pub fn update_ns(&mut self) -> Result<f64> {
        let words = STATES.map(|(_, word)| word.bits());
        let start = Instant::now();
        for turn in 0..UPDATES as usize {
            self.state.set(layout::STATE_WORD, words[turn % words.len()], 0)?;
        }
        Ok(start.elapsed().as_nanos() as f64 / f64::from(UPDATES))
    }

    /// `BPF_PROG_TEST_RUN` of each case. The kernel repeats the run on the same packet, which after the first time is as the
    /// program left it: what rewriting costs is seen on the wire only.
    ///
    /// # Errors
    /// A program cannot be run, or does not answer as the case says.
    pub fn test_runs(&mut self) -> Result<()> {
        for case in &CASES {
            self.maps.set_word(STATES[case.state].1)?;
            let frame = frame(case.from, case.dscp);
            let options = TestRunOptions { data_in: Some(&frame), repeat: RUNS, ..TestRunOptions::default() };
            let result = self.programs.get(case.hook)?.test_run(options).context(case.name)?;
            let drops = result.return_value.cast_signed() == SHOT;
            ensure!(drops == case.drops, "{}: the program answered {}", case.name, result.return_value);
            sample(&format!("colour.test_run_ns.{}", case.name), result.duration.as_nanos() as f64);
        }
        Ok(())
    }
}

fn attach_both(programs: &mut programs::Programs) -> Result<()> {
    for hook in Hook::ALL {
        // The link lives as long as the program.
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        programs
            .get(hook)?
            .attach_with_options(DEVICE, hook.attach_type(Side::Guest), options)
            .with_context(|| format!("the {} program", hook.name()))?;
    }
    Ok(())
}

/// Source or destination of a made-up packet: the far end's address, or one that nobody knows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Peer {
    Member,
    Stranger,
}

/// One case of `BPF_PROG_TEST_RUN`.
struct Case {
    name: &'static str,
    hook: Hook,
    /// Index into [`STATES`].
    state: usize,
    from: Peer,
    dscp: u8,
    drops: bool,
}

const fn case(name: &'static str, hook: Hook, state: usize, from: Peer, dscp: u8, drops: bool) -> Case {
    Case { name, hook, state, from, dscp, drops }
}

/// Colours of this epoch and the next one.
const PRE: u8 = CODE_POINTS[EPOCH as usize % 3];
const POST: u8 = CODE_POINTS[(EPOCH as usize + 1) % 3];

const CASES: [Case; 8] = [
    case("egress_stranger", Hook::Egress, 1, Peer::Stranger, 0, false),
    case("egress_idle", Hook::Egress, 0, Peer::Member, 0, false),
    case("egress_coloured_already", Hook::Egress, 1, Peer::Member, PRE, false),
    case("ingress_stranger", Hook::Ingress, 1, Peer::Stranger, 0, false),
    case("ingress_idle", Hook::Ingress, 0, Peer::Member, 0, false),
    case("ingress_uncoloured", Hook::Ingress, 1, Peer::Member, 0, false),
    case("ingress_future_dropped", Hook::Ingress, 1, Peer::Member, POST, true),
    case("ingress_strict_dropped", Hook::Ingress, 2, Peer::Member, 0, true),
];

/// An Ethernet frame of 64 bytes with an IPv4 header, its address at both ends the peer's.
fn frame(peer: Peer, dscp: u8) -> Vec<u8> {
    let address = if peer == Peer::Member { Pair::V4[1] } else { [192, 0, 2, 1] };
    let ethernet = [0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x08, 0x00];
    let head = [0x45, dscp << 2, 0, 50, 0, 0, 0, 0, 64, 17, 0, 0];
    [&ethernet[..], &head, &address, &address, &[0; 30]].concat()
}

//! What it costs to switch the colour, and what colouring costs per packet, against doing the same by rules.
//!
//! Each candidate has a pair of network namespaces of its own, joined by veth devices, so that no candidate's rules
//! slow another's packets: a netfilter table that was used once stays hooked for as long as its namespace lives. All are set
//! up first and then measured in turn, round after round.
//!
//! | module | what is in it |
//! |---|---|
//! | `pair` | two namespaces and the wire between them |
//! | `empty` | programs that do nothing: what the hooks themselves cost |
//! | `programs` | our programs on both ends |
//! | `rules` | the published rules: iptables (legacy and nft) and native nft |
//! | `traffic` | UDP datagrams across the wire |

mod empty;
mod pair;
mod programs;
mod rules;
mod traffic;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use unasnap_tests::sample::{median, missing, sample};

use empty::Empty;
use pair::Pair;
use programs::{Programs, STATES};
use rules::{Rules, Tool};
use traffic::{Family, Traffic};

/// Batches of packets per candidate and round.
const TURNS: u32 = 60;

/// Everything set up, ready to be measured.
struct Stage {
    plain: Pair,
    hooked: Pair,
    _empty: Empty,
    coloured: Pair,
    programs: Programs,
    ruled: Vec<(Rules, Pair)>,
}

/// Measures everything `rounds` times.
///
/// # Errors
/// Our own programs cannot be loaded, or packets that must arrive do not. A rule-based alternative that this machine
/// lacks is only reported.
pub fn run(rounds: u32) -> Result<()> {
    stay_on_one_cpu()?;
    let mut stage = set_up()?;
    for round in 1..=rounds {
        eprintln!("colour: round {round} of {rounds}");
        switches(&mut stage)?;
        for family in Family::ALL {
            packets(&mut stage, family)?;
        }
        stage.programs.test_runs()?;
    }
    Ok(())
}

/// A packet is delivered on the processor that sent it; a thread that wanders would pay for cold caches.
fn stay_on_one_cpu() -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).context("asking for the processors")?;
    let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.context("no processor")?).context("choosing a processor")?;
    sched_setaffinity(this, &one).context("staying on one processor")
}

fn set_up() -> Result<Stage> {
    let (plain, hooked, coloured) = (Pair::new()?, Pair::new()?, Pair::new()?);
    let empty = Empty::attach(&hooked)?;
    let programs = Programs::attach(&coloured).context("attaching our programs")?;
    let mut ruled = Vec::new();
    for tool in Tool::ALL {
        let pair = Pair::new()?;
        match Rules::install(tool, &pair) {
            Ok(rules) => ruled.push((rules, pair)),
            Err(error) => {
                for figure in ["switch_ns", "per_packet_ns"] {
                    missing(&format!("colour.{figure}.{}", tool.key()), &format!("{error:#}"));
                }
            }
        }
    }
    Ok(Stage { plain, hooked, _empty: empty, coloured, programs, ruled })
}

fn switches(stage: &mut Stage) -> Result<()> {
    sample("colour.switch_ns.mapped_store", stage.programs.store_ns());
    sample("colour.switch_ns.map_update", stage.programs.update_ns()?);
    for (rules, pair) in &stage.ruled {
        sample(&format!("colour.switch_ns.{}", rules.tool().key()), rules.switch_ns(pair)?);
    }
    Ok(())
}

/// One round of one family. The candidates take turns batch by batch, and what one adds is taken within a turn: a machine
/// that is slower for a while is slower for both terms of the difference.
fn packets(stage: &mut Stage, family: Family) -> Result<()> {
    let mut candidates = vec![
        ("none", None, Traffic::open(&stage.plain, family)?),
        ("empty_program", None, Traffic::open(&stage.hooked, family)?),
    ];
    for (name, word) in STATES {
        candidates.push((name, Some(word), Traffic::open(&stage.coloured, family)?));
    }
    for (rules, pair) in &stage.ruled {
        candidates.push((rules.tool().key(), None, Traffic::open(pair, family)?));
    }
    let mut found = vec![Vec::new(); candidates.len()];
    for _ in 0..TURNS {
        for (times, (name, word, traffic)) in found.iter_mut().zip(&candidates) {
            if let Some(word) = word {
                stage.programs.set_word(*word)?;
            }
            times.push(traffic.packet_ns().with_context(|| format!("candidate {name}"))?);
        }
    }
    let plain = found[0].clone();
    for (times, (name, ..)) in found.into_iter().zip(&candidates) {
        let added = times.iter().zip(&plain).map(|(with, without)| with - without).collect::<Vec<_>>();
        let say = |what: &str, times: &[f64]| {
            let key = format!("colour.{what}{}_ns.{name}", family.suffix());
            median(times).into_iter().for_each(|middle| sample(&key, middle));
        };
        say("per_packet", &times);
        if *name != "none" {
            say("added", &added);
        }
    }
    Ok(())
}

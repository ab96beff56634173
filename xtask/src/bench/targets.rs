//! What was to be reached, as ratios within one run, and what was.

use serde::Serialize;

use super::figures::Figures;
use super::pages::round;

/// One target that this run can say something about.
#[derive(Debug, Clone, Serialize)]
pub struct Target {
    /// What is asked.
    pub name: &'static str,
    /// At most this.
    pub goal: f64,
    /// What was measured.
    pub reached: f64,
    /// Is it?
    pub met: bool,
    /// What limits it; empty where nothing is to be said.
    pub remark: String,
}

/// A target and how it is computed.
struct Rule {
    name: &'static str,
    goal: f64,
    /// `None` when its figures were not measured.
    reached: fn(&Figures) -> Option<f64>,
    remark: fn(&Figures) -> Option<String>,
}

const RULES: [Rule; 12] = [
    Rule {
        name: "colour switch, mapped store / iptables-legacy",
        goal: 0.001,
        reached: |figures| {
            ratio(figures, "colour.switch_ns.mapped_store", "colour.switch_ns.iptables_legacy")
        },
        remark: nothing,
    },
    Rule {
        name: "added per packet, colouring / cheapest rules",
        goal: 0.25,
        reached: |figures| added(figures, "colouring"),
        remark: hooks,
    },
    Rule {
        name: "added per packet, idle / cheapest rules",
        goal: 0.1,
        reached: |figures| added(figures, "idle"),
        remark: hooks,
    },
    Rule {
        name: "longest pause of any size, idle, ms",
        goal: 10.0,
        reached: |figures| Some(best_way(figures, "idle")?.1),
        remark: |figures| Some(format!("by {}", best_way(figures, "idle")?.0)),
    },
    Rule {
        name: "longest pause of any size, writing a quarter of the RAM as fast as it goes, ms",
        goal: 10.0,
        reached: |figures| Some(best_way(figures, "dirty")?.1),
        remark: |figures| Some(format!("by {}", best_way(figures, "dirty")?.0)),
    },
    Rule {
        name: "pause at the largest size / at the smallest",
        goal: 1.5,
        reached: flatness,
        remark: |_| Some("\"the same\", within what a busy machine allows".to_owned()),
    },
    Rule {
        name: "restore of a VM of 512 MiB until it runs, ms",
        goal: 200.0,
        reached: |figures| Some(quickest(figures)?.1),
        remark: |figures| Some(format!("by {}", quickest(figures)?.0)),
    },
    Rule {
        name: "skew between two hosts, ms",
        goal: 3.0,
        reached: |figures| worst(figures, &["host", "memory", "guest"], "skew_ms"),
        remark: nothing,
    },
    Rule {
        name: "stream's gap beyond pause and skew, host and memory, ms",
        goal: 20.0,
        reached: |figures| worst(figures, &["host", "memory"], "beyond_ms"),
        remark: |figures| Some(format!("at rest the stream has gaps of {} ms", at_rest(figures)?)),
    },
    Rule {
        name: "retransmission time-outs, host and memory, per snapshot",
        goal: 0.0,
        reached: |figures| worst(figures, &["host", "memory"], "timeouts"),
        remark: nothing,
    },
    Rule {
        name: "global minus slowest local at 4 VMs, ms",
        goal: 5.0,
        reached: |figures| figures.median("global.4_vms.2_per_host.unasnap.coordination_ms"),
        remark: |_| Some("on two hosts".to_owned()),
    },
    Rule {
        name: "total disturbance / published method",
        goal: 0.05,
        reached: disturbance,
        remark: |_| Some("the ring's gaps of all shapes together".to_owned()),
    },
];

/// All targets whose figures are there.
pub fn all(figures: &Figures) -> Vec<Target> {
    let target = |rule: &Rule| {
        let reached = (rule.reached)(figures)?;
        let remark = (rule.remark)(figures).unwrap_or_default();
        Some(Target { name: rule.name, goal: rule.goal, reached, met: reached <= rule.goal, remark })
    };
    RULES.iter().filter_map(target).collect()
}

fn nothing(_: &Figures) -> Option<String> {
    None
}

/// What a TC program cannot do anything about.
fn hooks(figures: &Figures) -> Option<String> {
    let empty = round(added(figures, "empty_program")?);
    let published = |state| {
        ratio(figures, &format!("colour.added_ns.{state}"), "colour.added_ns.iptables_legacy").map(round)
    };
    let (idle, colouring) = (published("idle")?, published("colouring")?);
    Some(format!(
        "a program that does nothing: {empty}; against the published iptables-legacy rules: idle {idle}, colouring {colouring}"
    ))
}

/// The way whose longest pause under a load is the shortest, and that pause.
fn best_way<'a>(figures: &'a Figures, load: &str) -> Option<(&'a str, f64)> {
    let mut longest: Vec<(&str, f64)> = Vec::new();
    for (candidate, pause) in figures.fitting("pause.*.pause_ms").filter(|(row, _)| row.ends_with(load)) {
        let way = candidate.split('.').next()?;
        match longest.iter_mut().find(|(known, _)| *known == way) {
            Some((_, most)) => *most = most.max(pause),
            None => longest.push((way, pause)),
        }
    }
    longest.into_iter().min_by(|a, b| a.1.total_cmp(&b.1))
}

/// Of the best way while idle.
fn flatness(figures: &Figures) -> Option<f64> {
    let (way, _) = best_way(figures, "idle")?;
    let pattern = format!("pause.{way}.*.idle.pause_ms");
    let sizes =
        figures.fitting(&pattern).filter_map(|(size, pause)| Some((size.parse::<u64>().ok()?, pause)));
    let sizes: Vec<_> = sizes.collect();
    let (least, most) = (sizes.iter().min_by_key(|size| size.0)?, sizes.iter().max_by_key(|size| size.0)?);
    (least.0 < most.0).then_some(most.1 / least.1)
}

fn quickest(figures: &Figures) -> Option<(&str, f64)> {
    figures.fitting("restore.*.512.running_ms").min_by(|a, b| a.1.total_cmp(&b.1))
}

/// The largest median of a figure of `stall` among these ways of colouring.
fn worst(figures: &Figures, modes: &[&str], figure: &str) -> Option<f64> {
    let medians = modes.iter().filter_map(|mode| figures.median(&format!("stall.{mode}.{figure}")));
    medians.reduce(f64::max)
}

fn at_rest(figures: &Figures) -> Option<String> {
    worst(figures, &["host", "memory"], "undisturbed_gap_ms").map(round)
}

fn disturbance(figures: &Figures) -> Option<f64> {
    let sum = |method: &str| {
        let pattern = format!("global.*.{method}.disturbance_ms");
        figures.fitting(&pattern).map(|(_, ms)| ms).reduce(|sum, ms| sum + ms)
    };
    Some(sum("unasnap")? / sum("published")?)
}

fn ratio(figures: &Figures, above: &str, below: &str) -> Option<f64> {
    Some(figures.median(above)? / figures.median(below)?)
}

/// What a state adds to an IPv4 packet, over what the cheapest rules add.
fn added(figures: &Figures, state: &str) -> Option<f64> {
    let rules = ["iptables_legacy", "iptables_nft", "nft"];
    let costs = rules.iter().filter_map(|rule| figures.median(&format!("colour.added_ns.{rule}")));
    let cheapest = costs.reduce(f64::min)?;
    Some(figures.median(&format!("colour.added_ns.{state}"))? / cheapest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_compare_with_the_cheapest_alternative() {
        let mut figures = Figures::default();
        for (key, value) in [("colouring", 60.0), ("iptables_legacy", 400.0), ("nft", 300.0)] {
            figures.add(&format!("colour.added_ns.{key}"), value);
        }
        let found = all(&figures);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].met && (found[0].reached - 0.2).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn the_best_way_is_judged_by_its_worst_pause() {
        let mut figures = Figures::default();
        for (key, value) in [
            ("a.128.idle", 5.0),
            ("a.2048.idle", 30.0),
            ("b.128.idle", 8.0),
            ("b.2048.idle", 9.0),
            ("b.128.dirty", 99.0),
        ] {
            figures.add(&format!("pause.{key}.pause_ms"), value);
        }
        assert_eq!(best_way(&figures, "idle"), Some(("b", 9.0)));
        assert_eq!(flatness(&figures), Some(9.0 / 8.0));
    }
}

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

const RULES: [Rule; 3] = [
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
}

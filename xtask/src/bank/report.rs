//! What came out.

use std::fmt::Write;

use anyhow::{Result, ensure};
use serde::Serialize;
use unasnap_tests::bank::check::{Verdict, Violation};

/// One snapshot, restored and checked.
#[derive(Debug, Clone, Serialize)]
pub struct Round {
    /// Its name.
    pub snapshot: String,
    /// Did the network clear the marks while it was taken?
    pub bleached: bool,
    /// How long the first VM ran on after its cut before the late one's cut, in milliseconds.
    pub apart_ms: u64,
    /// From the request until every VM ran.
    pub restore_ms: f64,
    /// What the check found.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// A mistake and how it was found.
#[derive(Debug, Clone, Serialize)]
pub struct Hunt {
    /// Its label.
    pub fault: &'static str,
    /// Snapshots that were taken, restored and checked, or aborted.
    pub runs: u32,
    /// Was a violation found?
    pub found: bool,
    /// The violations of the last run, in words.
    pub violations: Vec<String>,
}

/// Everything.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Version of this object.
    pub schema: u32,
    /// VMs that pay each other.
    pub vms: u32,
    /// How late one VM's cuts begin on purpose, in milliseconds.
    pub late_ms: u32,
    /// The honest system; none of these has a violation.
    pub honest: Vec<Round>,
    /// The mistakes.
    pub faults: Vec<Hunt>,
}

impl Outcome {
    /// Is it what it must be?
    ///
    /// # Errors
    /// A mistake was not found.
    pub fn judge(&self) -> Result<()> {
        let hidden = self.faults.iter().filter(|hunt| !hunt.found);
        let hidden: Vec<_> =
            hidden.map(|hunt| format!("{} was not found in {} runs", hunt.fault, hunt.runs)).collect();
        ensure!(hidden.is_empty(), "{}: the workload is too weak", hidden.join("; "));
        Ok(())
    }
}

/// Violations in words.
pub fn words(violations: &[Violation]) -> Vec<String> {
    violations.iter().map(ToString::to_string).collect()
}

/// The outcome as one line.
pub fn json(outcome: &Outcome) -> String {
    serde_json::to_string(outcome).unwrap_or_default()
}

/// The outcome for people.
pub fn table(outcome: &Outcome) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    for Round { snapshot, bleached, apart_ms, restore_ms, verdict } in &outcome.honest {
        let network = if *bleached { " in a bleached network" } else { "" };
        let _ = writeln!(
            text,
            "{:<24} {snapshot}: cuts {apart_ms} ms apart{network}, restored in {restore_ms:.0} ms, {} transfers and {} \
             datagrams compared: no violation",
            "honest", verdict.transfers, verdict.datagrams
        );
    }
    for Hunt { fault, runs, violations, .. } in &outcome.faults {
        let found = violations.first().map_or("NOT FOUND", String::as_str);
        let _ = writeln!(text, "{fault:<24} {runs} run(s): {found}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_that_stays_hidden_is_a_failure() {
        let verdict = Verdict { violations: vec![], transfers: 7, datagrams: 8 };
        let round = Round { snapshot: "s".into(), bleached: true, apart_ms: 9, restore_ms: 1.0, verdict };
        let hunt = Hunt { fault: "no-barrier", runs: 5, found: true, violations: vec!["I1".into()] };
        let mut outcome = Outcome { schema: 1, vms: 3, late_ms: 1, honest: vec![round], faults: vec![hunt] };
        assert!(outcome.judge().is_ok());
        assert!(json(&outcome).contains("\"transfers\":7"));
        assert!(table(&outcome).contains("5 run(s): I1"));
        outcome.faults[0].found = false;
        let hidden = outcome.judge().unwrap_err().to_string();
        assert!(hidden.contains("no-barrier was not found in 5 runs"), "{hidden}");
    }
}

//! What explorations and simulations came to, for people and for programs.

use serde::Serialize;

use crate::diagram;
use crate::explore::{Configuration, Report};

/// One exploration.
#[derive(Debug, Clone, Serialize)]
pub struct Explored {
    /// The configuration.
    pub name: &'static str,
    /// What could happen in it, and how often.
    pub bounds: String,
    /// The invariant that had to be found broken.
    pub breaks: Option<&'static str>,
    /// Different states.
    pub states: u64,
    /// Steps between them.
    pub steps: u64,
    /// Steps to the state that is farthest.
    pub depth: u32,
    /// How long it took.
    pub seconds: f64,
    /// Was every reachable state seen?
    pub complete: bool,
    /// The invariant that was found broken.
    pub broken: Option<&'static str>,
    /// How it was.
    pub what: Option<String>,
    /// The shortest trace, one line each.
    pub trace: Vec<String>,
    /// Is it as it should be?
    pub good: bool,
}

impl Explored {
    /// Of a configuration.
    #[must_use]
    pub fn new(configuration: &Configuration, report: &Report) -> Self {
        let found = report.found.as_ref();
        let broken = found.map(|(violation, _)| violation.invariant);
        let trace = found.map(|(_, events)| diagram::draw(&configuration.setup, events));
        let good = match configuration.breaks {
            None => report.complete,
            Some(_) => broken == configuration.breaks,
        };
        Self {
            name: configuration.name,
            bounds: format!("{} members, {}", configuration.setup.members(), configuration.budget.words()),
            breaks: configuration.breaks,
            states: report.states,
            steps: report.steps,
            depth: report.depth,
            seconds: report.seconds,
            complete: report.complete,
            broken,
            what: found.map(|(violation, _)| violation.what.clone()),
            trace: trace.map(|text| text.lines().map(str::to_owned).collect()).unwrap_or_default(),
            good,
        }
    }

    /// One line, and the trace of what was found.
    #[must_use]
    pub fn text(&self) -> String {
        let verdict = match (&self.broken, self.good) {
            (None, true) => "nothing found".to_owned(),
            (None, false) if self.breaks.is_some() => "NOT FOUND".to_owned(),
            (None, false) => "TOO MANY STATES".to_owned(),
            (Some(broken), true) => format!("{broken} broken, as it must be"),
            (Some(broken), false) => format!("{broken} BROKEN"),
        };
        let mut text = format!(
            "{:<28} {:>9} states {:>10} steps {:>3} deep {:>6.1} s  {verdict}  ({})",
            self.name, self.states, self.steps, self.depth, self.seconds, self.bounds
        );
        if let Some(what) = &self.what {
            text += &format!("\n  {what}; the shortest trace:\n  {}\n", self.trace.join("\n  "));
        }
        text
    }
}

/// Simulated runs of the honest system, or until a mistake is found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Simulated {
    /// The mistake that was put back.
    pub mistake: Option<&'static str>,
    /// Seed of the first run; the others follow it.
    pub first_seed: u64,
    /// Runs.
    pub runs: u64,
    /// Their events.
    pub events: u64,
    /// Snapshots that were committed.
    pub committed: u64,
    /// Restores.
    pub restored: u64,
    /// Virtual time, hours.
    pub hours: f64,
    /// Members of the largest system.
    pub largest: usize,
    /// How long it took.
    pub seconds: f64,
    /// The seed of the first run that broke something, and what.
    pub broken: Option<(u64, &'static str, String)>,
    /// The end of that run.
    pub trace: Vec<String>,
    /// Is it as it should be?
    pub good: bool,
}

impl Simulated {
    /// One line, and what to do about a violation.
    #[must_use]
    pub fn text(&self) -> String {
        let name = self.mistake.unwrap_or("honest");
        let mut text = format!(
            "{name:<28} {:>9} runs {:>12} events {:>8} snapshots {:>7} restores {:>9.0} h {:>6.1} s  up to {} VMs",
            self.runs, self.events, self.committed, self.restored, self.hours, self.seconds, self.largest
        );
        match (&self.broken, self.mistake) {
            (None, None) => text += "  nothing found",
            (None, Some(_)) => text += "  NOT FOUND",
            (Some((seed, invariant, _)), Some(_)) => text += &format!("  {invariant} broken by seed {seed}"),
            (Some((seed, invariant, what)), None) => {
                text += &format!(
                    "\n  {invariant} BROKEN: {what}\n  repeat it: cargo xtask prove simulate --seed {seed} --runs 1\n  its end:\n  {}",
                    self.trace.join("\n  ")
                );
            }
        }
        text
    }
}

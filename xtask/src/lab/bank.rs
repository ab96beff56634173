//! The workload that every VM pays every other with, asked from outside.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use unasnap_tests::bank::book::State;
use unasnap_tests::bank::check::{Breach, Verdict, check};

use super::console::address;
use super::namespaces::Lab;
use crate::process::text;

/// Where members listen for each other and for requests.
const PORT: u16 = 9002;
const CONTROL_PORT: u16 = 9003;

/// TCP's longest pause between two tries is a few seconds so soon after a restore: what has not arrived then never will.
const SETTLE: Duration = Duration::from_secs(25);

/// Longest time for one answer of a member.
const ANSWER: Duration = Duration::from_secs(60);

/// What VM number `vm` runs.
pub fn command(vm: u32, vms: u32) -> String {
    let members: Vec<_> = (1..=vms).map(|member| format!("{}:{PORT}", address(member))).collect();
    format!(
        "unasnap-ring bank run --member {vm} --members {} --control {}:{CONTROL_PORT}",
        members.join(","),
        address(vm)
    )
}

/// All members, as somebody who is none of them reaches them.
#[derive(Debug)]
pub struct Members<'a> {
    /// Where they are.
    pub lab: &'a Lab,
    /// `unasnap-ring`.
    pub program: PathBuf,
    /// How many there are.
    pub vms: u32,
}

impl Members<'_> {
    /// Asks all of them the same.
    ///
    /// # Errors
    /// One does not answer.
    pub fn ask_all(&self, request: &str) -> Result<Vec<State>> {
        (1..=self.vms).map(|vm| self.ask(vm, request)).collect()
    }

    fn ask(&self, vm: u32, request: &str) -> Result<State> {
        let mut command = self.lab.coordinator.command(&self.program);
        command.args(["bank", "ask", &format!("{}:{CONTROL_PORT}", address(vm)), request]);
        let answer = text(&format!("asking vm{vm} for {request}"), &mut command, ANSWER)?;
        serde_json::from_str(&answer).with_context(|| format!("the answer of vm{vm}"))
    }

    /// Freezes all members and reads them out until everything has arrived, or something is certainly wrong, or too
    /// much time has passed: then what is missing is lost. `keep` gets what was read out.
    ///
    /// # Errors
    /// A member does not answer, or `keep` fails.
    pub fn settle(&self, mut keep: impl FnMut(&State) -> Result<()>) -> Result<Verdict> {
        self.ask_all("freeze")?;
        let start = Instant::now();
        loop {
            let states = self.ask_all("state")?;
            states.iter().try_for_each(&mut keep)?;
            let verdict = check(&states)?;
            let missing = |breach: &Breach| *breach == Breach::NeverReceived;
            let waits = verdict.violations.iter().all(|violation| missing(&violation.breach));
            if verdict.violations.is_empty() || !waits || start.elapsed() > SETTLE {
                return Ok(verdict);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

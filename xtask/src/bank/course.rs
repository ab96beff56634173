//! Snapshots under full traffic, restores, read-outs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use unasnap_tests::bank::book::State;
use unasnap_tests::bank::check::Verdict;

use super::Options;
use super::faults::Mistake;
use super::moving::Moves;
use super::report::{Hunt, Outcome, Round, words};
use crate::build::Artifacts;
use crate::lab::bank::{Members, command};
use crate::lab::cluster::{Cluster, DEPLOYMENT, Scene};
use crate::lab::console::Console;
use crate::lab::namespaces::Lab;
use crate::lab::record::{Restored, Snapshot, Taken};
use crate::lab::waiting::{Talk, wait, wait_for_hosts, wait_for_vms};
use crate::layout::Layout;

/// How many there are.
pub(super) const HOSTS: u32 = 2;

/// The VM whose cuts begin late. Of the VMs that cut before, one is on its host and one on the other.
const LATE_VM: u32 = 2;

/// How late, in milliseconds: longer than the pauses of the others, far shorter than the members' lease.
const LATE_MS: u32 = 150;

/// How late it is prepared where there is no barrier, in milliseconds: longer than the others take to copy their RAM and
/// cut, shorter than the lease after which it would advance by itself.
const PREPARE_LATE_MS: u32 = 1500;

/// Transfers that every channel must have passed before a snapshot is taken.
const WARM: u64 = 50;
const WARM_UP: Duration = Duration::from_secs(90);

/// How long restored VMs go on before they are frozen: contents of an undone future are then overtaken by new ones.
const GO_ON: Duration = Duration::from_secs(1);

/// So many snapshots of the honest system may be aborted.
const ABORTED: u32 = 3;

struct Bank<'a> {
    talk: Talk,
    lab: &'a Lab,
    cluster: Cluster<'a>,
    consoles: Vec<Console>,
    members: Members<'a>,
    /// Where states are kept.
    states: PathBuf,
    /// When vm1 is to change its host with each restore.
    moves: Option<Moves>,
}

/// Carries everything out. The lab is gone when this returns; on failure the state is kept for a look.
///
/// # Errors
/// It could not be carried out. A violation is no error here.
pub fn run(layout: &Layout, artifacts: &Artifacts, options: &Options) -> Result<Outcome> {
    let folder = layout.target.join("bank");
    let lab = Lab::new(HOSTS)?;
    let scene = Scene {
        commands: (1..=options.vms).map(|vm| command(vm, options.vms)).collect(),
        colouring: options.colouring,
        late: Some((LATE_VM, LATE_MS)),
        faults: options.migrate,
    };
    let cluster = Cluster::create(&lab, artifacts, &folder, &scene)?;
    let consoles = cluster.consoles();
    let program = artifacts.programs.join("unasnap-ring");
    let states = folder.join("states");
    remake(&states)?;
    let talk = Talk::begin("bank");
    let members = Members { lab: &lab, program, vms: options.vms };
    let moves = options.migrate.then(Moves::new);
    let mut bank = Bank { talk, lab: &lab, cluster, consoles, members, states, moves };
    let outcome = bank.steps(options);
    bank.cluster.end("the bank", &bank.consoles, outcome)
}

/// An empty folder.
fn remake(folder: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("emptying {}", folder.display()))?;
    }
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))
}

impl Bank<'_> {
    fn steps(&mut self, options: &Options) -> Result<Outcome> {
        self.talk.say(&format!("starting the daemons, which boot {} VMs", self.members.vms));
        self.cluster.start()?;
        wait_for_vms(&mut self.cluster)?;
        let honest = self.honest(options.snapshots)?;
        let clean = honest.last().map(|round| round.snapshot.clone()).context("no snapshot")?;
        let mut faults = Vec::new();
        for mistake in options.fault.iter().flat_map(|choice| &choice.0) {
            faults.push(self.hunt(*mistake, &clean, options.runs)?);
        }
        Ok(Outcome { schema: 1, vms: self.members.vms, late_ms: LATE_MS, honest, faults })
    }

    /// The system as it is. The last of its snapshots is taken in a network that clears the marks.
    fn honest(&mut self, snapshots: u32) -> Result<Vec<Round>> {
        let (mut rounds, mut aborted) = (Vec::new(), 0);
        for left in (0..snapshots).rev() {
            let round = loop {
                match self.snapshot(left == 0)? {
                    Ok(round) => break round,
                    // A busy machine may miss a time limit; a snapshot that is aborted harms nothing.
                    Err(_) if aborted < ABORTED => aborted += 1,
                    Err(error) => return Err(error.context("too many snapshots were aborted")),
                }
            };
            let found = words(&round.verdict.violations);
            ensure!(found.is_empty(), "the honest system: {}", found.join("; "));
            rounds.push(round);
            self.members.ask_all("go")?;
        }
        Ok(rounds)
    }

    /// Puts a mistake back and takes snapshots until one of them shows it. Each run begins with a restore of a clean
    /// snapshot, since the run before has broken channels perhaps.
    fn hunt(&mut self, mistake: Mistake, clean: &str, runs: u32) -> Result<Hunt> {
        self.talk.say(&format!("{}: restarting the daemons with this mistake", mistake.label));
        let late = format!("vm{LATE_VM}={PREPARE_LATE_MS}");
        let mut switches = vec![("UNASNAP_TEST_FAULT", mistake.label)];
        if mistake.prepares_late {
            switches.push(("UNASNAP_TEST_PREPARE_DELAY_MS", late.as_str()));
        }
        self.cluster.restart(&switches)?;
        wait_for_hosts(&mut self.cluster)?;
        let mut hunt = Hunt { fault: mistake.label, runs: 0, found: false, violations: Vec::new() };
        while hunt.runs < runs && !hunt.found {
            hunt.runs += 1;
            self.restore(clean)?;
            if let Ok(round) = self.snapshot(mistake.bleached)? {
                hunt.found = !round.verdict.violations.is_empty();
                hunt.violations = words(&round.verdict.violations);
            }
        }
        Ok(hunt)
    }

    /// Takes a snapshot under full traffic, restores it and checks it. The inner error is the snapshot's, which a
    /// mistake may keep from being taken.
    fn snapshot(&mut self, bleached: bool) -> Result<Result<Round>> {
        self.warm_up()?;
        self.lab.bleach(bleached)?;
        let taken = self.cluster.ask::<Taken>(&["snapshot", "take", DEPLOYMENT]);
        self.lab.bleach(false)?;
        match taken {
            Ok(taken) => self.restore_and_check(&taken.snapshot, bleached).map(Ok),
            Err(error) => {
                self.talk.say(&format!("no snapshot: {error:#}"));
                Ok(Err(error))
            }
        }
    }

    /// Waits until every channel has passed some more transfers.
    fn warm_up(&mut self) -> Result<()> {
        let mut before: Option<Vec<u64>> = None;
        wait(WARM_UP, || {
            self.cluster.check_daemons()?;
            if let Some(failure) = self.consoles.iter().find_map(Console::failure) {
                bail!("a VM failed: {failure}");
            }
            let Ok(states) = self.members.ask_all("look") else { return Ok(Some("the members".into())) };
            let received =
                |state: &State| state.peers.iter().map(|peer| peer.received.tcp.last).collect::<Vec<_>>();
            let now: Vec<_> = states.iter().flat_map(received).collect();
            let before = before.get_or_insert_with(|| now.clone());
            let cold = now.iter().zip(before).any(|(now, before)| *now < *before + WARM);
            Ok(cold.then(|| format!("{WARM} transfers on every channel")))
        })
    }

    fn restore(&mut self, snapshot: &str) -> Result<f64> {
        let restore = match &mut self.moves {
            Some(moves) => moves.restore(&self.talk, &mut self.cluster, snapshot)?,
            None => self.cluster.ask::<Restored>(&["restore", snapshot])?.restore,
        };
        Ok(restore.restore_ms)
    }

    fn restore_and_check(&mut self, snapshot: &Snapshot, bleached: bool) -> Result<Round> {
        let restore_ms = self.restore(&snapshot.id)?;
        std::thread::sleep(GO_ON);
        let verdict = self.settle(&snapshot.id)?;
        let apart_ms = apart_ms(snapshot)?;
        let found = match &verdict.violations[..] {
            [] => "no violation".to_owned(),
            [first, others @ ..] => format!("{first}, and on {} other channels", others.len()),
        };
        self.talk.say(&format!("{}: cuts {apart_ms} ms apart; restored: {found}", snapshot.id));
        Ok(Round { snapshot: snapshot.id.clone(), bleached, apart_ms, restore_ms, verdict })
    }

    /// What was read out is kept, as `unasnap-ring check` takes it.
    fn settle(&self, snapshot: &str) -> Result<Verdict> {
        self.members.settle(|state| {
            let path = self.states.join(format!("{snapshot}-vm{}.json", state.member));
            let text = serde_json::to_string(state).context("encoding a state")?;
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
        })
    }
}

/// How long the first VM to cut ran on before the late one was stopped.
fn apart_ms(snapshot: &Snapshot) -> Result<u64> {
    let late = format!("vm{LATE_VM}");
    let (late, others): (Vec<_>, Vec<_>) = snapshot.members.iter().partition(|member| member.vm == late);
    ensure!(late.len() == 1 && !others.is_empty(), "the snapshot {} has not all members", snapshot.id);
    let first = others.iter().map(|member| member.resumed_ns).min().unwrap_or_default();
    Ok(late[0].stopped_ns.saturating_sub(first) / 1_000_000)
}

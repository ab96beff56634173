//! The course of one row: arm, act, strike, look what becomes of the traffic with nobody's help, mend, check.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::check::poor_words;
use super::stage::{Asking, Stage};
use super::table::{Blow, Course, Row, Victim};
use super::traffic::Gap;
use crate::lab::cluster::DEPLOYMENT;

/// For the armed point to be reached.
const REACHED: Duration = Duration::from_secs(60);
/// How long what was struck is left alone: the lease of 2 s and a second for TCP.
const ALONE: Duration = Duration::from_secs(3);
/// After so long a link is mended although nobody has complained.
const UNHEARD: Duration = Duration::from_secs(30);
/// A bound that only a defect exceeds, however busy this machine is. What it took is measured and printed.
const TRAFFIC: Duration = Duration::from_secs(25);
/// Snapshots that are kept from row to row: the newest is what is restored.
const KEPT: usize = 2;
/// Snapshots until layers are merged.
const MERGE_AFTER: usize = 14;

/// What came out of a row.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The row.
    pub row: String,
    /// What the operator did meanwhile.
    pub course: String,
    /// What is wrong; `None` when nothing is.
    pub violation: Option<String>,
    /// Did a VM stand still until the agent of its host was started again?
    pub stood_still: bool,
    /// Traffic after the blow; with nobody's help, unless a VM stood still.
    pub gap: Option<Gap>,
    /// Traffic after the restore, where one was needed.
    pub after_restore: Option<Gap>,
    /// What the operator was told; empty when the command was carried out.
    pub words: String,
    /// For the whole row.
    pub seconds: f64,
}

/// What is known so far.
#[derive(Default)]
struct Findings {
    stood_still: bool,
    gap: Option<Gap>,
    after_restore: Option<Gap>,
    words: String,
}

/// Plays a row. A violation is no error: the cluster may be of no use afterwards.
pub fn play(stage: &mut Stage<'_>, row: &Row) -> Outcome {
    let start = Instant::now();
    let mut findings = Findings::default();
    let played = steps(stage, row, &mut findings);
    let Findings { stood_still, gap, after_restore, words } = findings;
    Outcome {
        row: row.to_string(),
        course: format!("{:?}", row.course).to_lowercase(),
        violation: played.err().map(|error| format!("{error:#}")),
        stood_still,
        gap,
        after_restore,
        words,
        seconds: start.elapsed().as_secs_f64(),
    }
}

fn steps(stage: &mut Stage<'_>, row: &Row, findings: &mut Findings) -> Result<()> {
    stage.watch.forget();
    let mark = stage.mark(row.victim);
    prepare(stage, row)?;
    stage.arm(row.victim, &format!("{}={}", row.point, row.blow.action()))?;
    let asking = act(stage, row)?;
    let struck = wait_for_point(stage, row, mark, asking.as_ref())?;
    stage.strike(row.blow)?;
    let struck = struck.max(if row.blow.silences().is_empty() { struck } else { Instant::now() });
    stage.disarm(row.victim)?;
    wait_alone(row.blow, asking.as_ref(), struck);
    // A restore stops all VMs by intention.
    let watched = !matches!(row.course, Course::Restore | Course::RestoreArmed);
    if watched {
        // A host agent that dies in the pause of a cut leaves that VM stopped until it is started again.
        let may_stand = matches!((row.victim, row.blow), (Victim::Host(_), Blow::Kill));
        let limit = if may_stand { Duration::ZERO } else { TRAFFIC };
        match stage.wait_for_traffic(row.blow.silences(), struck, limit) {
            Err(error) if !may_stand => return Err(error),
            flows => findings.stood_still = flows.is_err(),
        }
    }
    stage.mend(row.blow)?;
    if findings.stood_still {
        stage.wait_for_traffic(row.blow.silences(), struck, TRAFFIC)?;
    }
    findings.gap = watched.then(|| stage.watch.gap(row.blow.silences(), struck));
    let said = asking.map_or(Ok(Ok(())), Asking::end)?;
    let done = said.is_ok();
    findings.words = said.err().unwrap_or_default();
    if !done && let Some(poor) = poor_words(row, &findings.words) {
        bail!("the report is no help: {poor} in {:?}", findings.words);
    }
    recover(stage, row, done, findings)?;
    stage.wait_until_settled()?;
    let next = stage.take().context("the next snapshot")?;
    let whole = stage.begin(&["snapshot", "verify", &next]).end()?;
    ensure!(whole.is_ok(), "I3: {whole:?}");
    stage.wait_for_traffic(&[], struck, TRAFFIC)?;
    tidy(stage)
}

/// Nobody helps what was struck for some seconds. What died is started again soon, as a service manager would; a link or a
/// hypervisor comes back when the operator has heard of it, or much later.
fn wait_alone(blow: Blow, asking: Option<&Asking>, struck: Instant) {
    std::thread::sleep(ALONE.saturating_sub(struck.elapsed()));
    let restarts = matches!(blow, Blow::Kill | Blow::KillGuestAgent(_) | Blow::Reboot(_));
    while !restarts && struck.elapsed() < UNHEARD && asking.is_some_and(|asking| !asking.has_ended()) {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What has to be so before.
fn prepare(stage: &mut Stage<'_>, row: &Row) -> Result<()> {
    match row.course {
        Course::Refused => stage.disk.fill(20 << 20),
        Course::Delete => stage.take().map(drop),
        Course::RestoreArmed => {
            stage.arm(row.victim, &format!("{}={}", row.point, row.blow.action()))?;
            stage.take().map(drop)
        }
        Course::Begin if row.point.starts_with("store.collect") => stage.leave_half_a_snapshot(),
        _ => Ok(()),
    }
}

fn act(stage: &mut Stage<'_>, row: &Row) -> Result<Option<Asking>> {
    let snapshots = stage.snapshots()?;
    let (oldest, newest) = snapshots.first().zip(snapshots.last()).context("there is no snapshot")?;
    Ok(Some(match row.course {
        Course::Take | Course::Refused => stage.begin(&["snapshot", "take"]),
        Course::Restore | Course::RestoreArmed => stage.begin(&["restore", newest]),
        Course::Delete => stage.begin(&["snapshot", "delete", oldest]),
        Course::Verify => stage.begin(&["snapshot", "verify", newest]),
        Course::Pause => stage.begin(&["pause", DEPLOYMENT]),
        Course::Control => stage.begin(&["vm", "resume", "*"]),
        Course::Exec => stage.begin(&["vm", "exec", "vm3", "--", "true"]),
        Course::Console => stage.begin(&["vm", "console", "vm3"]),
        Course::Begin => {
            stage.restart(row.victim)?;
            return Ok(None);
        }
        Course::Merge => {
            for _ in 0..MERGE_AFTER {
                let mark = stage.mark(row.victim);
                // The one in which the point is reached may fail.
                if stage.take().is_err() || stage.has_reached(row.victim, mark, &row.point) {
                    break;
                }
                tidy(stage)?;
            }
            return Ok(None);
        }
    }))
}

/// When the point was reached.
fn wait_for_point(stage: &Stage<'_>, row: &Row, mark: u64, asking: Option<&Asking>) -> Result<Instant> {
    let start = Instant::now();
    let mut ended: Option<Instant> = None;
    while !stage.has_reached(row.victim, mark, &row.point) {
        if asking.is_some_and(Asking::has_ended) {
            ended.get_or_insert_with(Instant::now);
        }
        let late = ended.is_some_and(|ended| ended.elapsed() > ALONE);
        ensure!(!late && start.elapsed() < REACHED, "the point was never reached: the table is wrong");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(Instant::now())
}

/// What is left to the operator: a deployment whose VMs died, or whose restore broke off, is restored.
fn recover(stage: &mut Stage<'_>, row: &Row, done: bool, findings: &mut Findings) -> Result<()> {
    let restores = matches!(row.course, Course::Restore | Course::RestoreArmed);
    let broke_off = restores && !done;
    if row.victim == Victim::Coordinator && row.course == Course::Begin {
        stage.raise_the_dead()?;
    }
    if !row.blow.is_deadly() && !broke_off && !restores {
        return Ok(());
    }
    if row.blow.is_deadly() || broke_off {
        stage.restore_newest().context("the restore")?;
    }
    let restored = Instant::now();
    stage.wait_for_traffic(&[], restored, TRAFFIC).context("after the restore")?;
    findings.after_restore = Some(stage.watch.gap(&[], restored));
    let verdict = stage.members.settle(|_| Ok(()))?;
    let found: Vec<_> = verdict.violations.iter().map(ToString::to_string).collect();
    ensure!(found.is_empty(), "the restored books: {}", found.join("; "));
    stage.members.ask_all("go")?;
    stage.wait_for_traffic(&[], Instant::now(), TRAFFIC)
}

/// Deletes all snapshots but the newest ones.
fn tidy(stage: &Stage<'_>) -> Result<()> {
    let snapshots = stage.snapshots()?;
    for old in &snapshots[..snapshots.len().saturating_sub(KEPT)] {
        let said = stage.begin(&["snapshot", "delete", old]).end()?;
        if let Err(words) = said {
            bail!("deleting {old}: {words}");
        }
    }
    Ok(())
}

impl Outcome {
    /// One line for people.
    pub fn line(&self) -> String {
        let verdict = self.violation.as_ref().map_or("ok", |_| "VIOLATION");
        let traffic = match (self.gap, self.after_restore) {
            (Some(gap), None) => format!("traffic after {:.0} ms (TCP {:.0})", gap.any_ms, gap.tcp_ms),
            (None, Some(gap)) => format!("restored, traffic after {:.0} ms", gap.any_ms),
            (Some(gap), Some(after)) => {
                format!("others after {:.0} ms, restored after {:.0}", gap.any_ms, after.any_ms)
            }
            (None, None) => "no traffic".to_owned(),
        };
        let traffic = if self.stood_still { format!("{traffic}, with its agent back") } else { traffic };
        let words = self.violation.as_deref().unwrap_or(&self.words).replace('\n', " ");
        format!("{verdict:<9} {:<44} {:<8} {traffic}; {:.0} s; {words}", self.row, self.course, self.seconds)
    }
}

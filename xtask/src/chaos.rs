//! `cargo xtask chaos`: programs that die, links that break, disks that fill up, hypervisors that hang, on real VMs.
//!
//! Three VMs on two hosts pay each other and are coloured in three different ways. Each row of a table arms one fault point
//! of a program that ships, lets the operator do something, and strikes where the point is reached. Then it is looked at what
//! becomes of the traffic with nobody's help; what was struck is started again; and invariants I3 to I6 must hold, the next
//! snapshot succeed, and the words of the failure name who and where.
//!
//! | module | what is in it |
//! |---|---|
//! | `table` | the rows |
//! | `stage` | the cluster: arming, striking, mending |
//! | `course` | what is done in a row |
//! | `check` | what must hold afterwards |
//! | `traffic` | what flows between the VMs |

mod check;
mod course;
mod stage;
mod table;
mod traffic;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use self::course::{Outcome, play};
use self::stage::Stage;
use self::table::Row;
use self::traffic::Watch;
use crate::build::{self, Artifacts};
use crate::lab::bank::{self, Members};
use crate::lab::cluster::{Cluster, Colouring, Scene};
use crate::lab::disk::SmallDisk;
use crate::lab::namespaces::Lab;
use crate::lab::shell;
use crate::lab::waiting::{Talk, wait_for_vms};
use crate::layout::Layout;
use crate::setup;

const HOSTS: u32 = 2;
const VMS: u32 = 3;

/// Between two transfers of a stream, microseconds: dense enough to see gaps, and little for emulated guests.
const PAUSE_US: u32 = 40_000;

/// Of the disk that can fill up.
const DISK_MB: u32 = 700;

/// For the first traffic after the boot.
const WARM_UP: Duration = Duration::from_secs(120);

/// After so many violations nothing more can be learnt.
const GIVE_UP: usize = 8;

/// What the user chose.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Only rows that cover every program, every course and every kind of blow
    #[arg(long)]
    sample: bool,
    /// Only rows whose name contains this
    #[arg(long, value_name = "PATTERN")]
    rows: Option<String>,
    /// How often the table is gone through
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Another order of the rows; 0 is the table's own
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print the rows and do nothing
    #[arg(long)]
    list: bool,
    /// Print one JSON object on stdout instead of the last lines
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    schema: u32,
    seed: u64,
    runs: usize,
    violations: usize,
    outcomes: Vec<Outcome>,
}

/// Installs what is missing, builds, plays the rows.
///
/// # Errors
/// It could not be carried out, or something was violated.
pub fn run(layout: &Layout, options: &Options) -> Result<()> {
    let rows = chosen(options);
    if options.list {
        rows.iter().for_each(|row| println!("{row}"));
        return Ok(());
    }
    ensure!(!rows.is_empty(), "no row has such a name; --list shows them");
    ensure!(nix::unistd::geteuid().is_root(), "it needs root: network namespaces, tap devices, guests' RAM");
    setup::run(layout, false)?;
    let artifacts = build::build(layout)?;
    let (mut outcomes, mut rest) = (Vec::new(), rows.as_slice());
    // A violation may leave a cluster of no use: the rows behind it get another one.
    while !rest.is_empty() && failures(&outcomes) < GIVE_UP {
        let played = on_one_cluster(layout, &artifacts, rest, &mut outcomes)?;
        rest = &rest[played..];
    }
    let violations = failures(&outcomes);
    let stood = outcomes.iter().filter(|outcome| outcome.stood_still).count();
    let helpless =
        || outcomes.iter().filter(|outcome| !outcome.stood_still).filter_map(|outcome| outcome.gap);
    let slowest = |gaps: &mut dyn Iterator<Item = f64>| gaps.fold(0.0, f64::max);
    let any = slowest(&mut helpless().map(|gap| gap.any_ms));
    let tcp = slowest(&mut helpless().map(|gap| gap.tcp_ms));
    let report = Report { schema: 1, seed: options.seed, runs: outcomes.len(), violations, outcomes };
    if options.json {
        println!("{}", serde_json::to_string(&report).context("the report")?);
    }
    eprintln!(
        "chaos: {} runs, {violations} violations; traffic flowed again after {any:.0} ms at most (TCP {tcp:.0} ms); \
         in {stood} runs a VM stood still until its host agent was back",
        report.runs
    );
    ensure!(violations == 0, "{violations} of {} runs violated something; see above", report.runs);
    Ok(())
}

fn failures(outcomes: &[Outcome]) -> usize {
    outcomes.iter().filter(|outcome| outcome.violation.is_some()).count()
}

fn chosen(options: &Options) -> Vec<Row> {
    let table = if options.sample { table::sample() } else { table::all() };
    let wanted = |row: &Row| options.rows.as_ref().is_none_or(|part| row.to_string().contains(part));
    let mut rows: Vec<_> = table.into_iter().filter(wanted).collect();
    if options.seed != 0 {
        shuffle(&mut rows, options.seed);
    }
    std::iter::repeat_n(rows, options.rounds as usize).flatten().collect()
}

/// Fisher and Yates, with the numbers of xorshift64.
fn shuffle(rows: &mut [Row], seed: u64) {
    let mut state = seed;
    for last in (1..rows.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        rows.swap(last, usize::try_from(state % (last as u64 + 1)).unwrap_or(0));
    }
}

/// Plays rows until one is violated; returns how many that were.
fn on_one_cluster(
    layout: &Layout,
    artifacts: &Artifacts,
    rows: &[Row],
    outcomes: &mut Vec<Outcome>,
) -> Result<usize> {
    let folder = layout.target.join("chaos");
    let lab = Lab::new(HOSTS)?;
    let scene = Scene {
        commands: (1..=VMS).map(command).collect(),
        colouring: Colouring::Mixed,
        late: None,
        faults: true,
    };
    let cluster = Cluster::create(&lab, artifacts, &folder, &scene)?;
    let consoles = cluster.consoles();
    let disk = SmallDisk::mount(&cluster.state().join("h2/snapshots"), DISK_MB)?;
    let members = Members { lab: &lab, program: cluster.program("unasnap-ring"), vms: VMS };
    let watch = Watch::start(&lab, VMS)?;
    let talk = Talk::begin("chaos");
    let mut stage = Stage { talk, lab: &lab, cluster, consoles, watch, members, disk };
    let played = play_all(&mut stage, rows, outcomes);
    let Stage { cluster, consoles, disk, .. } = stage;
    let clean = played.as_ref().is_ok_and(|_| outcomes.last().is_none_or(|last| last.violation.is_none()));
    lab.kill_everything()?;
    if clean {
        drop(disk);
        return cluster.end("chaos", &consoles, played);
    }
    let logs = folder.with_extension(format!("violation-{}", outcomes.len()));
    let _ = std::fs::remove_dir_all(&logs);
    std::fs::rename(cluster.logs(), &logs).with_context(|| format!("keeping logs in {}", logs.display()))?;
    eprintln!("chaos: its logs are in {}", logs.display());
    std::fs::create_dir_all(cluster.logs()).context("making a folder for logs")?;
    drop(disk);
    cluster.end("chaos", &consoles, played)
}

fn command(vm: u32) -> String {
    let watch = format!("{}:{}", Lab::WATCH, traffic::PORT);
    format!("{} {} --pause-us {PAUSE_US} --show {watch}", shell::server(), bank::command(vm, VMS))
}

fn play_all(stage: &mut Stage<'_>, rows: &[Row], outcomes: &mut Vec<Outcome>) -> Result<usize> {
    stage.talk.say(&format!("starting the daemons, which boot {VMS} VMs"));
    stage.count_colours()?;
    let begun = Instant::now();
    stage.cluster.start()?;
    wait_for_vms(&mut stage.cluster)?;
    stage.wait_for_traffic(&[], begun, WARM_UP)?;
    for _ in 0..2 {
        stage.take().context("the first snapshots")?;
    }
    for (number, row) in (1..).zip(rows) {
        let outcome = play(stage, row);
        stage.talk.say(&outcome.line());
        let violated = outcome.violation.is_some();
        outcomes.push(outcome);
        if violated {
            return Ok(number);
        }
    }
    Ok(rows.len())
}

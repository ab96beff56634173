//! The course of the demo, step by step.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::Options;
use super::report::{Outcome, Ring, Verdict};
use super::ring;
use crate::build::Artifacts;
use crate::lab::cluster::{Cluster, DEPLOYMENT, Scene};
use crate::lab::console::Console;
use crate::lab::namespaces::Lab;
use crate::lab::record::{Restored, Snapshot, Taken};
use crate::lab::waiting::{Talk, wait_for_hosts, wait_for_vms};
use crate::layout::Layout;

/// A ring that passes no token for so long hangs. TCP's own retries are at most some seconds apart by then.
const HANG: Duration = Duration::from_secs(45);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// For how long the idle daemons' processor time is measured.
const IDLE: Duration = Duration::from_secs(2);

/// Snapshots are taken when the ring has come so far: parts of the whole run.
const SNAPSHOTS_AT: [f64; 3] = [0.15, 0.3, 0.45];

/// How the ring ended.
enum End {
    Result(Ring),
    Broken(String),
}

/// Carries out the demo. The lab is gone when this returns; on failure the state is kept for a look.
///
/// # Errors
/// The demo could not be carried out. A ring that broke is no error but a verdict.
pub fn run(layout: &Layout, artifacts: &Artifacts, options: &Options) -> Result<Outcome> {
    let folder = layout.target.join("demo");
    let talk = Talk::begin("demo");
    talk.say(&format!("{} hosts and the coordinator as network namespaces", options.hosts));
    let lab = Lab::new(options.hosts)?;
    let scene = Scene {
        commands: (1..=options.vms).map(|vm| ring::command(vm, options.vms, options.tokens)).collect(),
        colouring: options.colouring(),
        late: None,
        faults: false,
    };
    let mut cluster = Cluster::create(&lab, artifacts, &folder, &scene)?;
    let mut consoles = cluster.consoles();
    let outcome = steps(&talk, &lab, &mut cluster, &mut consoles, options);
    cluster.end("the demo", &consoles, outcome)
}

fn steps(
    talk: &Talk,
    lab: &Lab,
    cluster: &mut Cluster<'_>,
    consoles: &mut [Console],
    options: &Options,
) -> Result<Outcome> {
    talk.say(&format!("starting the daemons, which boot {} VMs", options.vms));
    cluster.start()?;
    wait_for_vms(cluster)?;
    talk.say("all VMs run and their guest agents answer");
    let mut snapshots = Vec::new();
    let mut idle_cpu_percent = None;
    for part in SNAPSHOTS_AT {
        let token = (options.tokens as f64 * part) as u64;
        wait_for_token(cluster, consoles, token)?;
        if idle_cpu_percent.is_none() {
            idle_cpu_percent = Some(cpu_percent(&cluster.daemons(), IDLE));
        }
        let taken: Taken = cluster.ask(&["snapshot", "take", DEPLOYMENT])?;
        talk.say(&describe(&taken.snapshot, newest(consoles)));
        check_colouring(&taken.snapshot, options)?;
        snapshots.push(taken.snapshot);
    }
    ensure!(consoles[0].result()?.is_none(), "the ring ended before it was killed: choose more --tokens");
    let killed = lab.kill_everything()?;
    cluster.forget_daemons();
    talk.say(&format!(
        "killed all {killed} processes at token {}: QEMUs, host agents, coordinator",
        newest(consoles)
    ));
    for console in consoles.iter_mut() {
        console.skip();
    }

    cluster.start()?;
    wait_for_hosts(cluster)?;
    let restored = snapshots[1].id.clone();
    talk.say(&format!("daemons are back; restoring the second snapshot, {restored}"));
    let places = options.places.join(",");
    let mut command = vec!["restore", &restored];
    if !places.is_empty() {
        command.extend(["--place", &places]);
    }
    let restore = cluster.ask::<Restored>(&command)?.restore;
    for member in &restore.fetched {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let (sent, total) = (mb(member.sent), mb(member.total));
        talk.say(&format!(
            "{} now lives on {}: moved {sent:.0} of {total:.0} MB from {}",
            member.vm, member.to, member.from
        ));
    }
    for (vm, host) in options.places.iter().filter_map(|place| place.split_once('=')) {
        if let Some(console) = consoles.iter_mut().find(|console| console.vm == vm) {
            *console = cluster.console_at(vm, host);
        }
    }
    talk.say(&format!("restored in {:.0} ms", restore.restore_ms));
    let end = wait_for_end(talk, cluster, consoles, options)?;
    let (verdict, explanation, ring) = judge(end, options);
    talk.say(&format!("verdict {verdict}: {explanation}"));
    Ok(Outcome {
        verdict,
        explanation,
        coloured: !options.no_colour,
        vms: options.vms,
        hosts: options.hosts,
        ram_way: snapshots[1].ram_way.clone(),
        snapshots,
        restore,
        ring,
        guest_agent_kib: consoles
            .iter()
            .filter_map(|console| Some((console.vm.clone(), console.agent_kib()?)))
            .collect(),
        idle_cpu_percent: idle_cpu_percent.unwrap_or_default(),
    })
}

fn newest(consoles: &[Console]) -> u64 {
    consoles.iter().filter_map(|console| console.tokens().last().copied()).max().unwrap_or(0)
}

fn wait_for_token(cluster: &mut Cluster<'_>, consoles: &[Console], token: u64) -> Result<()> {
    let mut moved = (0, Instant::now());
    loop {
        cluster.check_daemons()?;
        if let Some(failure) = consoles.iter().find_map(Console::failure) {
            bail!("the ring broke before anything was killed: {failure}");
        }
        let now = newest(consoles);
        if now >= token {
            return Ok(());
        }
        if now > moved.0 {
            moved = (now, Instant::now());
        }
        ensure!(moved.1.elapsed() < HANG, "the ring stood still at token {now} for {} s", HANG.as_secs());
        std::thread::sleep(LOOK);
    }
}

fn wait_for_end(
    talk: &Talk,
    cluster: &mut Cluster<'_>,
    consoles: &[Console],
    options: &Options,
) -> Result<End> {
    let mut moved = (0, Instant::now());
    let mut began = false;
    loop {
        cluster.check_daemons()?;
        if let Some(failure) = consoles.iter().find_map(Console::failure) {
            return Ok(End::Broken(failure));
        }
        if let Some(result) = consoles[0].result()? {
            let (tokens, expected, last) = (result.tokens, result.expected, result.last);
            let ring = Ring {
                tokens,
                expected,
                last,
                longest_gap_ms: result.longest_gap_ms,
                seconds: result.seconds,
            };
            wait_for_agents(consoles, options);
            return Ok(End::Result(ring));
        }
        let now = newest(consoles);
        if now > moved.0 {
            if !began {
                talk.say(&format!("the ring goes on at token {now}"));
                began = true;
            }
            moved = (now, Instant::now());
        }
        if moved.1.elapsed() >= HANG {
            let what =
                format!("no token was passed for {} s after the restore (last: {now})", HANG.as_secs());
            return Ok(End::Broken(what));
        }
        std::thread::sleep(LOOK);
    }
}

/// The agents' sizes come right after the end of the ring; without them the demo is no worse.
fn wait_for_agents(consoles: &[Console], options: &Options) {
    let start = Instant::now();
    let all = options.vms as usize;
    while consoles.iter().filter(|console| console.agent_kib().is_some()).count() < all {
        if start.elapsed() > Duration::from_secs(5) {
            return;
        }
        std::thread::sleep(LOOK);
    }
}

fn judge(end: End, options: &Options) -> (Verdict, String, Option<Ring>) {
    match end {
        End::Result(ring) if ring.last == ring.expected => {
            let luck = if options.no_colour { " without colouring, by luck" } else { "" };
            (Verdict::Ok, format!("the restored ring finished with the right result{luck}"), Some(ring))
        }
        End::Result(ring) => (
            Verdict::Wrong,
            format!("the ring ended with {} instead of {}", ring.last, ring.expected),
            Some(ring),
        ),
        End::Broken(what) if what.contains("no token") => (Verdict::Hung, what, None),
        End::Broken(what) => (Verdict::Wrong, what, None),
    }
}

/// Processor time of processes, in percent of one core, over a while.
fn cpu_percent(pids: &[u32], during: Duration) -> f64 {
    let before: u64 = pids.iter().filter_map(|pid| cpu_ticks(*pid)).sum();
    std::thread::sleep(during);
    let after: u64 = pids.iter().filter_map(|pid| cpu_ticks(*pid)).sum();
    // USER_HZ is 100 on every Linux there is.
    after.saturating_sub(before) as f64 / 100.0 / during.as_secs_f64() * 100.0
}

/// utime + stime, fields 14 and 15 of proc(5)'s stat.
fn cpu_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks: Vec<u64> = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    Some(ticks.iter().sum())
}

/// A host that fell back to another way of colouring would hide that the one asked for does not work.
fn check_colouring(snapshot: &Snapshot, options: &Options) -> Result<()> {
    for (number, member) in (1..).zip(&snapshot.members) {
        let wanted = options.colouring().of(number);
        ensure!(
            wanted == "auto" || member.colouring == wanted,
            "{} was coloured by {} instead of {wanted}; the hosts' logs say why",
            member.vm,
            member.colouring
        );
    }
    Ok(())
}

fn describe(snapshot: &Snapshot, token: u64) -> String {
    let pauses: BTreeMap<_, _> =
        snapshot.members.iter().map(|member| (&member.vm, member.pause_ms)).collect();
    let longest = pauses.values().copied().fold(0.0, f64::max);
    format!(
        "snapshot {} near token {token}: longest pause {longest:.1} ms, skew {} ms, all saved in {:.0} ms",
        snapshot.id,
        snapshot.skew(),
        snapshot.global_ms
    )
}

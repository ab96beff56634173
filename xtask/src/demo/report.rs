//! Results of the demo: table, JSON, CSV, picture.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::timeline;
use crate::lab::cluster::MEMORY_MB;
use crate::lab::record::{Restore, Snapshot};

/// What became of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It finished with the right result.
    Ok,
    /// It did not go on.
    Hung,
    /// It noticed that something was lost or doubled, or ended wrongly.
    Wrong,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Hung => "hung",
            Self::Wrong => "wrong",
        })
    }
}

/// The ring's result.
#[derive(Debug, Clone)]
pub struct Ring {
    /// Tokens of the run.
    pub tokens: u64,
    /// What the last token's number must be.
    pub expected: u64,
    /// What it was.
    pub last: u64,
    /// The longest gap that a node saw, milliseconds of the guests' clocks.
    pub longest_gap_ms: f64,
    /// START to end, seconds of the first VM's clock.
    pub seconds: f64,
}

/// Everything that the demo found out.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What became of the ring.
    pub verdict: Verdict,
    /// The same in words.
    pub explanation: String,
    /// Were packets coloured?
    pub coloured: bool,
    /// VMs.
    pub vms: u32,
    /// Hosts.
    pub hosts: u32,
    /// How RAM was taken.
    pub ram_way: String,
    /// The snapshots, in order.
    pub snapshots: Vec<Snapshot>,
    /// What was restored, and how long that took.
    pub restore: Restore,
    /// The ring's result, if it came to one.
    pub ring: Option<Ring>,
    /// Resident memory of the guest agents, KiB.
    pub guest_agent_kib: BTreeMap<String, u64>,
    /// Coordinator and host agents together while nothing is asked of them, percent of one core.
    pub idle_cpu_percent: f64,
}

impl Outcome {
    fn longest_pause_ms(&self) -> f64 {
        let pauses =
            self.snapshots.iter().flat_map(|snapshot| &snapshot.members).map(|member| member.pause_ms);
        pauses.fold(0.0, f64::max)
    }

    /// What the coordination costs: global time without the slowest local snapshot, at worst.
    fn coordination_ms(&self) -> f64 {
        self.snapshots.iter().map(|snapshot| snapshot.global_ms - snapshot.save_ms).fold(0.0, f64::max)
    }

    /// Each VM with its way of colouring, in the snapshot that was taken last.
    fn colouring(&self) -> BTreeMap<&str, &str> {
        let members = self.snapshots.last().map(|snapshot| snapshot.members.as_slice()).unwrap_or_default();
        members.iter().map(|member| (member.vm.as_str(), member.colouring.as_str())).collect()
    }

    fn agent_mib(&self) -> Option<f64> {
        self.guest_agent_kib.values().max().map(|kib| *kib as f64 / 1024.0)
    }
}

/// One JSON object with the results.
pub fn json(outcome: &Outcome) -> Value {
    let snapshots = outcome.snapshots.iter().map(|snapshot| {
        let pauses: BTreeMap<_, _> =
            snapshot.members.iter().map(|member| (&member.vm, member.pause_ms)).collect();
        json!({
            "id": snapshot.id, "epoch": snapshot.epoch, "pause_ms": pauses,
            "skew_ms": snapshot.skew_ms, "skew_bound_ms": snapshot.skew_bound_ms,
            "save_ms": snapshot.save_ms, "global_ms": snapshot.global_ms,
        })
    });
    let ring = outcome.ring.as_ref().map(|ring| {
        json!({
            "tokens": ring.tokens, "expected": ring.expected, "final": ring.last,
            "longest_gap_ms": ring.longest_gap_ms, "seconds": ring.seconds,
        })
    });
    json!({
        "schema": 1, "verdict": outcome.verdict.to_string(), "explanation": outcome.explanation,
        "coloured": outcome.coloured, "colouring": outcome.colouring(), "vms": outcome.vms, "hosts": outcome.hosts, "ram_way": outcome.ram_way,
        "snapshots": snapshots.collect::<Vec<_>>(), "restored": outcome.restore.snapshot,
        "restore_ms": outcome.restore.restore_ms, "restore_poll_ms": outcome.restore.poll_ms,
        "restore_load_ms": outcome.restore.load_ms, "restore_start_ms": outcome.restore.start_ms,
        "ring": ring, "coordination_ms": outcome.coordination_ms(), "guest_agent_kib": outcome.guest_agent_kib,
        "idle_cpu_percent": outcome.idle_cpu_percent,
    })
}

/// The results for a reader.
pub fn table(outcome: &Outcome) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["SNAPSHOT", "EPOCH", "PAUSE ms (min-max)", "SKEW ms", "SAVE ms", "GLOBAL ms", ""]);
    for snapshot in &outcome.snapshots {
        let pauses = snapshot.members.iter().map(|member| member.pause_ms);
        let (least, most) =
            pauses.fold((f64::INFINITY, 0.0_f64), |(a, b), pause| (a.min(pause), b.max(pause)));
        table.add_row([
            snapshot.id.clone(),
            snapshot.epoch.to_string(),
            format!("{least:.1}-{most:.1}"),
            snapshot.skew(),
            format!("{:.0}", snapshot.save_ms),
            format!("{:.0}", snapshot.global_ms),
            if snapshot.id == outcome.restore.snapshot { "restored" } else { "" }.to_owned(),
        ]);
    }
    let mut text = table.lines().map(|line| format!("{}\n", line.trim_end())).collect::<String>();
    let mut add = |name: &str, value: String| text.push_str(&format!("{name:<22} {value}\n"));
    add(
        "\nVMs",
        format!(" {} of {MEMORY_MB} MiB on {} hosts, RAM by {}", outcome.vms, outcome.hosts, outcome.ram_way),
    );
    let ways = outcome.colouring().iter().map(|(vm, way)| format!("{vm} {way}")).collect::<Vec<_>>();
    add("coloured by", ways.join(", "));
    add("longest pause", format!("{:.1} ms (goal: below 30)", outcome.longest_pause_ms()));
    add("global minus local", format!("{:.1} ms (goal: below 20)", outcome.coordination_ms()));
    let Restore { restore_ms, poll_ms, load_ms, start_ms, .. } = &outcome.restore;
    add(
        "restore",
        format!("{restore_ms:.0} ms: verify {poll_ms:.0}, load {load_ms:.0}, start {start_ms:.0}"),
    );
    if let Some(ring) = &outcome.ring {
        add("ring", format!("token {} of {} after {:.1} s", ring.last, ring.expected, ring.seconds));
        add("longest gap in ring", format!("{:.1} ms", ring.longest_gap_ms));
    }
    if let Some(mib) = outcome.agent_mib() {
        add("guest agent", format!("{mib:.1} MiB resident (goal: below 10)"));
    }
    add("idle daemons", format!("{:.1} % of a core, all together (goal: below 1)", outcome.idle_cpu_percent));
    add("verdict", format!("{}: {}", outcome.verdict, outcome.explanation));
    text
}

/// One line per VM and snapshot. Names are of letters, digits and dashes, so nothing needs quotes.
fn csv(outcome: &Outcome) -> String {
    let mut text =
        "snapshot,epoch,vm,host,colouring,pause_ms,straddle_ms,local_ms,skew_ms,save_ms,global_ms,after_first_ms\n"
            .to_owned();
    let ms = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
    for snapshot in &outcome.snapshots {
        for member in &snapshot.members {
            text.push_str(&format!(
                "{},{},{},{},{},{:.3},{:.3},{:.3},{:.3},{:.3},{:.3},{:.3}\n",
                snapshot.id,
                snapshot.epoch,
                member.vm,
                member.host,
                member.colouring,
                member.pause_ms,
                ms(member.send_flipped_ns, member.receive_flipped_ns),
                ms(member.send_flipped_ns, member.saved_ns),
                snapshot.skew_ms,
                snapshot.save_ms,
                snapshot.global_ms,
                member.after_first_ms
            ));
        }
    }
    text
}

/// Writes `result.json`, `snapshots.json` (all times), `snapshots.csv` and `timeline.svg`.
///
/// # Errors
/// A file cannot be written.
pub fn write(folder: &Path, outcome: &Outcome) -> Result<()> {
    let records = serde_json::to_string_pretty(&outcome.snapshots).context("encoding the snapshots")?;
    let files = [
        ("result.json", format!("{:#}\n", json(outcome))),
        ("snapshots.json", format!("{records}\n")),
        ("snapshots.csv", csv(outcome)),
        ("timeline.svg", timeline::svg(&outcome.snapshots)),
    ];
    for (name, text) in files {
        std::fs::write(folder.join(name), text).with_context(|| format!("writing {name}"))?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::lab::record::{Member, Phases};

    /// A snapshot of two VMs; times are milliseconds from its PREPARE.
    pub fn example() -> Snapshot {
        let at = |ms: u64| 1_000_000_000 + ms * 1_000_000;
        let member = |vm: &str, start: u64| Member {
            vm: vm.into(),
            host: "h1".into(),
            colouring: "host".into(),
            pause_ms: 10.0,
            after_first_ms: (start - 9) as f64,
            send_flipped_ns: at(start),
            stopped_ns: at(start + 1),
            resumed_ns: at(start + 11),
            receive_flipped_ns: at(start + 12),
            saved_ns: at(start + 90),
        };
        let phases = Phases {
            prepare_ns: at(0),
            arm_ns: at(5),
            take_ns: at(8),
            cut_at_ns: Some(at(9)),
            clear_ns: at(25),
            commit_ns: at(105),
        };
        Snapshot {
            id: "ring-000001".into(),
            epoch: 7,
            ram_way: "live".into(),
            skew_ms: 2.0,
            skew_bound_ms: Some(0.25),
            save_ms: 90.0,
            global_ms: 97.0,
            members: vec![member("vm1", 9), member("vm2", 11)],
            phases,
        }
    }

    fn outcome() -> Outcome {
        Outcome {
            verdict: Verdict::Ok,
            explanation: "fine".into(),
            coloured: true,
            vms: 2,
            hosts: 1,
            ram_way: "live".into(),
            snapshots: vec![example()],
            restore: Restore {
                snapshot: "ring-000001".into(),
                restore_ms: 321.0,
                fetch_ms: 0.0,
                poll_ms: 100.0,
                load_ms: 200.0,
                start_ms: 21.0,
                fetched: vec![],
            },
            ring: Some(Ring { tokens: 9, expected: 9, last: 9, longest_gap_ms: 44.0, seconds: 1.5 }),
            guest_agent_kib: BTreeMap::from([("vm1".into(), 4096)]),
            idle_cpu_percent: 0.5,
        }
    }

    #[test]
    fn the_json_has_the_promised_fields() {
        let value = json(&outcome());
        assert_eq!(value["schema"], 1);
        assert_eq!(value["verdict"], "ok");
        assert_eq!(value["snapshots"][0]["pause_ms"]["vm1"], 10.0);
        assert_eq!(value["ring"]["final"], 9);
        assert_eq!(value["colouring"]["vm2"], "host");
        assert_eq!(value["coordination_ms"], 7.0);
        assert_eq!((&value["restored"], &value["restore_load_ms"]), (&"ring-000001".into(), &200.0.into()));
    }

    #[test]
    fn table_and_csv_tell_the_times() {
        let text = table(&outcome());
        assert!(text.contains("ring-000001  7      10.0-10.0"), "{text}");
        assert!(text.contains("guest agent            4.0 MiB"), "{text}");
        let csv = csv(&outcome());
        assert!(
            csv.contains("ring-000001,7,vm2,h1,host,10.000,12.000,90.000,2.000,90.000,97.000,2.000"),
            "{csv}"
        );
    }
}

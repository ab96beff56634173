//! What snapshots cost a ring in time: the published figure 6.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Workshop;
use super::figures::Figures;
use super::stage::{self, Method, Setting, Stage};
use super::workload;
use crate::lab::cluster::Colouring;

const VMS: u32 = 4;
const HOSTS: u32 = 2;
const TOKENS: [u64; 2] = [100_000, 200_000];
const QUICK_TOKENS: [u64; 2] = [2_000, 4_000];

/// Between two snapshots.
const INTERVAL: Duration = Duration::from_secs(10);
const QUICK_INTERVAL: Duration = Duration::from_millis(500);

/// Between two looks at the ring.
const LOOK: Duration = Duration::from_millis(100);
/// The longest that a ring may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Rings without and with snapshots in turn, in one cluster.
pub fn measure(workshop: &Workshop<'_>, figures: &mut Figures) -> Result<()> {
    let setting = Setting { method: Method::Ours(Colouring::Auto), vms: VMS, hosts: HOSTS };
    let (sizes, interval) = if workshop.quick { (QUICK_TOKENS, QUICK_INTERVAL) } else { (TOKENS, INTERVAL) };
    stage::with(workshop, setting, |stage| {
        for tokens in sizes {
            let key = format!("overhead.{tokens}");
            let (plain, _) = run(stage, tokens, None)?;
            let (with, snapshots) = run(stage, tokens, Some(interval))?;
            figures.add(&format!("{key}.plain_s"), plain);
            figures.add(&format!("{key}.with_snapshots_s"), with);
            figures.add(&format!("{key}.snapshots"), f64::from(snapshots));
            figures.add(&format!("{key}.relative"), with / plain);
        }
        Ok(())
    })
}

/// One ring to its end: its seconds, and how many snapshots were taken meanwhile.
fn run(stage: &mut Stage<'_>, tokens: u64, interval: Option<Duration>) -> Result<(f64, u32)> {
    stage.start(&workload::ring(VMS, tokens))?;
    let (start, mut snapshots) = (Instant::now(), 0);
    let mut next = interval;
    loop {
        if let Some(seconds) = stage.ring_seconds()? {
            return Ok((seconds, snapshots));
        }
        ensure!(start.elapsed() < PATIENCE, "a ring of {tokens} tokens did not end within {PATIENCE:?}");
        if next.is_some_and(|due| start.elapsed() >= due) {
            stage.snapshot()?;
            snapshots += 1;
            next = interval.map(|interval| start.elapsed() + interval);
        }
        std::thread::sleep(LOOK);
    }
}

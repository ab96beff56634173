//! What a TCP stream and a ring feel of a snapshot: two VMs on two hosts, by way of colouring.

use anyhow::Result;

use super::Workshop;
use super::figures::Figures;
use super::stage::{self, Method, Setting, Stage};
use super::workload;
use crate::lab::cluster::Colouring;

const MODES: [(&str, Method); 4] = [
    ("host", Method::Ours(Colouring::Host)),
    ("memory", Method::Ours(Colouring::Memory)),
    ("guest", Method::Ours(Colouring::Guest)),
    ("baseline", Method::Published),
];

const VMS: u32 = 2;
/// More tokens than will ever be passed: the ring is ended.
const ENDLESS: u64 = 1 << 40;

/// A cluster per way of colouring.
pub fn measure(workshop: &Workshop<'_>, figures: &mut Figures) -> Result<()> {
    for (mode, method) in MODES {
        let setting = Setting { method, vms: VMS, hosts: VMS };
        stage::with(workshop, setting, |stage| one(stage, mode, workshop.rounds(7), figures))?;
    }
    Ok(())
}

fn one(stage: &mut Stage<'_>, mode: &str, snapshots: u32, figures: &mut Figures) -> Result<()> {
    let mut add = |name: &str, value: f64| figures.add(&format!("stall.{mode}.{name}"), value);
    stage.start(&workload::stream())?;
    stage.settle();
    let (gap, ()) = stage.gap_ms(|_| Ok(()))?;
    add("undisturbed_gap_ms", gap);
    for _ in 0..snapshots {
        let before = stage.tcp()?;
        let (gap, global) = stage.gap_ms(Stage::snapshot)?;
        let after = stage.tcp()?;
        add("gap_ms", gap);
        add("retransmissions", (after.retransmissions - before.retransmissions) as f64);
        add("timeouts", (after.timeouts - before.timeouts) as f64);
        add("pause_ms", global.pause_ms);
        add("skew_ms", global.skew_ms);
        add("beyond_ms", gap - global.pause_ms - global.skew_ms);
    }
    stage.stop()?;
    stage.start(&workload::ring(VMS, ENDLESS))?;
    stage.settle();
    let (gap, ()) = stage.gap_ms(|_| Ok(()))?;
    add("ring_undisturbed_gap_ms", gap);
    for _ in 0..snapshots {
        let (gap, _) = stage.gap_ms(Stage::snapshot)?;
        add("ring_gap_ms", gap);
    }
    Ok(())
}

//! Global snapshots of more VMs on fewer hosts, against the published method, while a ring runs through all of them.

use anyhow::Result;

use super::Workshop;
use super::figures::Figures;
use super::stage::{self, Method, Setting, Stage};
use super::workload;
use crate::lab::cluster::Colouring;

/// VMs, and how many of them share a host.
const SHAPES: [(u32, u32); 6] = [(4, 1), (4, 2), (4, 4), (8, 1), (8, 2), (8, 4)];
const QUICK_SHAPES: [(u32, u32); 1] = [(2, 1)];

const METHODS: [(&str, Method); 2] =
    [("unasnap", Method::Ours(Colouring::Auto)), ("published", Method::Published)];

/// More tokens than will ever be passed.
const ENDLESS: u64 = 1 << 40;

/// Both methods, shape by shape.
pub fn measure(workshop: &Workshop<'_>, figures: &mut Figures) -> Result<()> {
    let shapes = if workshop.quick { &QUICK_SHAPES[..] } else { &SHAPES };
    for (vms, per_host) in shapes.iter().copied() {
        for (name, method) in METHODS {
            let setting = Setting { method, vms, hosts: vms / per_host };
            let key = format!("global.{vms}_vms.{per_host}_per_host.{name}");
            stage::with(workshop, setting, |stage| one(stage, vms, &key, workshop.rounds(3), figures))?;
        }
    }
    Ok(())
}

fn one(stage: &mut Stage<'_>, vms: u32, key: &str, snapshots: u32, figures: &mut Figures) -> Result<()> {
    let mut add = |name: &str, value: f64| figures.add(&format!("{key}.{name}"), value);
    stage.start(&workload::ring(vms, ENDLESS))?;
    stage.settle();
    let (undisturbed, ()) = stage.gap_ms(|_| Ok(()))?;
    add("undisturbed_gap_ms", undisturbed);
    for _ in 0..snapshots {
        let (gap, global) = stage.gap_ms(Stage::snapshot)?;
        add("pause_ms", global.pause_ms);
        add("skew_ms", global.skew_ms);
        add("save_ms", global.save_ms);
        add("global_ms", global.global_ms);
        add("coordination_ms", global.global_ms - global.save_ms);
        add("gap_ms", gap);
        add("disturbance_ms", (gap - undisturbed).max(0.0));
    }
    Ok(())
}

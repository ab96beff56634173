//! `cargo xtask demo`: the main job on real VMs.
//!
//! Two "hosts" (network namespaces on one bridge) run two VMs each. A token goes round the ring of VMs over TCP. Three
//! global snapshots are taken meanwhile. Then every QEMU, host agent and the coordinator are killed with SIGKILL,
//! the daemons are started again, the second snapshot is restored, and the ring must finish with the right result.
//!
//! | module | what is in it |
//! |---|---|
//! | `ring` | what the VMs run |
//! | `course` | the course of the demo |
//! | `control` | the control experiment: one TCP stream, cuts apart, with colouring and without |
//! | `report`, `timeline` | table, JSON, CSV, SVG |

pub mod control;
mod course;
mod report;
mod ring;
mod timeline;

use std::time::Instant;

use anyhow::{Result, bail, ensure};

use crate::build;
use crate::lab::cluster::Colouring;
use crate::layout::Layout;
use crate::setup;

/// What the user chose.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// VMs in the ring
    #[arg(long, default_value_t = 4)]
    vms: u32,
    /// Hosts; VMs are dealt out in turn
    #[arg(long, default_value_t = 2)]
    hosts: u32,
    /// Number of the ring's last token
    #[arg(long, default_value_t = 20_000)]
    tokens: u64,
    /// Restore these VMs on these hosts, e.g. vm2=h1; the ring goes on across the new places
    #[arg(long = "place", value_name = "VM=HOST", value_delimiter = ',')]
    places: Vec<String>,
    /// Print one JSON object on stdout instead of a table
    #[arg(long)]
    json: bool,
    /// How packets are coloured
    #[arg(long, value_enum, default_value_t = Colouring::Mixed)]
    colouring: Colouring,
    /// The control experiment: the same without colouring. The verdict says what became of the ring
    #[arg(long, conflicts_with = "colouring")]
    no_colour: bool,
}

impl Options {
    fn colouring(&self) -> Colouring {
        if self.no_colour { Colouring::None } else { self.colouring }
    }

    fn check(&self) -> Result<()> {
        ensure!((2..=32).contains(&self.vms), "--vms: a ring has 2 to 32 VMs here");
        ensure!((1..=self.vms).contains(&self.hosts), "--hosts: 1 to as many as there are VMs");
        ensure!(self.tokens >= 1000, "--tokens: at least 1000, or the ring ends before it was snapshotted");
        Ok(())
    }
}

/// Installs what is missing, builds, runs the demo, prints and writes its results.
///
/// # Errors
/// The demo could not be carried out, or its verdict is not "ok" although packets were coloured.
pub fn run(layout: &Layout, options: &Options) -> Result<()> {
    options.check()?;
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the demo needs root: network namespaces, tap devices, guests' RAM"
    );
    setup::run(layout, false)?;
    let artifacts = build::build(layout)?;
    let start = Instant::now();
    let outcome = course::run(layout, &artifacts, options)?;
    let folder = layout.target.join("demo");
    report::write(&folder, &outcome)?;
    if options.json {
        println!("{}", report::json(&outcome));
    } else {
        print!("{}", report::table(&outcome));
    }
    eprintln!("demo: {:.0} s; results in {}", start.elapsed().as_secs_f64(), folder.display());
    if outcome.verdict != report::Verdict::Ok && !options.no_colour {
        bail!("the demo's verdict is {}: {}", outcome.verdict, outcome.explanation);
    }
    Ok(())
}

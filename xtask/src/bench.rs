//! `cargo xtask bench`: what unasnap costs, against every alternative, side by side in one run.
//!
//! The candidates of a part are measured in turn, round after round, and a figure is the median of its rounds: a machine
//! that is slow for a while is slow for all. No figure makes the run fail. What is asked of the figures is the targets' ratios,
//! which are printed with what was reached.
//!
//! | module | what is in it |
//! |---|---|
//! | `program` | `unasnap-bench`, which measures what needs no cluster |
//! | `stage` | a cluster that takes snapshots our way or the published one, with a hand in every guest |
//! | `workload` | what its guests run |
//! | `global`, `stall`, `overhead`, `guest_agent` | the parts that need a cluster |
//! | `figures` | medians and spread of all rounds, by key |
//! | `targets` | what was to be reached, and what was |
//! | `machine` | where it was measured |
//! | `pages` | which figures are shown together |
//! | `report`, `plot` | JSON, CSV, tables; pictures |

mod figures;
mod global;
mod guest_agent;
mod machine;
mod overhead;
mod pages;
mod plot;
mod program;
mod report;
mod stage;
mod stall;
mod targets;
mod workload;

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use self::figures::Figures;
use self::program::Program;
use crate::build;
use crate::layout::Layout;
use crate::setup;

/// What the user chose.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Parts to measure; all when none is named
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Few rounds: shows that everything can be measured, not how much it is
    #[arg(long)]
    quick: bool,
    /// Print one JSON object on stdout instead of tables
    #[arg(long)]
    json: bool,
    /// Write the report to docs/benchmarks.md as well
    #[arg(long, conflicts_with = "quick")]
    write_docs: bool,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The colour switch, and the cost per packet
    Colour,
    /// How long a cut stops a VM
    Pause,
    /// How soon a restored VM runs
    Restore,
    /// What a TCP stream and a ring of VMs feel of a snapshot, by way of colouring
    Stall,
    /// Global snapshots of more VMs on fewer hosts, against the published method
    Global,
    /// What snapshots cost a ring in time
    Overhead,
    /// What a guest agent at rest costs
    GuestAgent,
}

impl Part {
    /// Its name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Colour => "colour",
            Self::Pause => "pause",
            Self::Restore => "restore",
            Self::Stall => "stall",
            Self::Global => "global",
            Self::Overhead => "overhead",
            Self::GuestAgent => "guest-agent",
        }
    }

    /// Keys that its users rely on.
    fn promised(self) -> &'static [&'static str] {
        match self {
            Self::Colour => &[
                "colour.switch_ns.mapped_store",
                "colour.switch_ns.map_update",
                "colour.switch_ns.iptables_legacy",
                "colour.switch_ns.iptables_nft",
                "colour.switch_ns.nft",
                "colour.per_packet_ns.none",
                "colour.per_packet_ns.idle",
                "colour.per_packet_ns.colouring",
                "colour.per_packet_ns.strict",
                "colour.per_packet_ns.iptables_legacy",
                "colour.per_packet_ns.iptables_nft",
                "colour.per_packet_ns.nft",
            ],
            // Which ways there are is the driver's affair; this one there always is.
            Self::Pause => &[
                "pause.stop-and-save.128.idle.pause_ms",
                "pause.stop-and-save.128.idle.gap_ms",
                "pause.stop-and-save.128.dirty.total_ms",
                "pause_at_once.stop-and-save.4.pause_ms",
            ],
            Self::Restore => &["restore.stop-and-save.128.running_ms"],
            Self::Stall => &[
                "stall.host.gap_ms",
                "stall.memory.gap_ms",
                "stall.guest.gap_ms",
                "stall.baseline.gap_ms",
                "stall.host.retransmissions",
                "stall.host.timeouts",
                "stall.baseline.timeouts",
                "stall.host.ring_gap_ms",
            ],
            Self::Global => &[],
            Self::Overhead => &[],
            Self::GuestAgent => &["guest_agent.rss_kib", "guest_agent.pss_kib", "guest_agent.cpu_percent"],
        }
    }
}

/// Measures, prints and writes the results below `target/bench`.
///
/// # Errors
/// A part could not be measured; the others are, and are reported.
pub fn run(layout: &Layout, options: &Options) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the benchmark needs root: network namespaces, packet filters, guests' RAM"
    );
    setup::run(layout, false)?;
    let start = Instant::now();
    let workshop = Workshop { layout, program: Program::build(layout)?, quick: options.quick };
    let machine = machine::facts();
    let mut figures = Figures::default();
    let mut failures = Vec::new();
    let parts = if options.parts.is_empty() { Part::value_variants() } else { &options.parts };
    for part in parts {
        eprintln!("bench {:6.1} s  {}", start.elapsed().as_secs_f64(), part.name());
        if let Err(error) = workshop.measure(*part, &mut figures) {
            eprintln!("error: {}: {error:#}", part.name());
            failures.push(part.name());
        }
    }
    let report = report::Report { figures, machine, parts, quick: options.quick };
    let folder = layout.target.join("bench");
    report.write(&folder)?;
    if options.write_docs {
        let page = layout.root.join("docs/benchmarks.md");
        std::fs::write(&page, report.markdown()).with_context(|| format!("writing {}", page.display()))?;
    }
    if options.json {
        println!("{}", report.json());
    } else {
        print!("{}", report.markdown());
    }
    eprintln!("bench: {:.0} s; results in {}", start.elapsed().as_secs_f64(), folder.display());
    if !failures.is_empty() {
        bail!("could not be measured: {}", failures.join(", "));
    }
    Ok(())
}

/// What parts measure with.
struct Workshop<'a> {
    layout: &'a Layout,
    program: Program,
    quick: bool,
}

impl Workshop<'_> {
    fn measure(&self, part: Part, figures: &mut Figures) -> Result<()> {
        match part {
            Part::Colour => self.program.run("colour", self.rounds(25), &[], figures)?,
            Part::Pause => self.with_vms("pause", 5, figures)?,
            Part::Restore => self.with_vms("restore", 7, figures)?,
            Part::Stall => stall::measure(self, figures)?,
            Part::Global => global::measure(self, figures)?,
            Part::Overhead => overhead::measure(self, figures)?,
            Part::GuestAgent => guest_agent::measure(self, figures)?,
        }
        let lacking: Vec<_> = part.promised().iter().filter(|key| !figures.accounts_for(key)).collect();
        ensure!(lacking.is_empty(), "nothing was said about {lacking:?}");
        Ok(())
    }

    fn rounds(&self, full: u32) -> u32 {
        if self.quick { 1 } else { full }
    }

    /// A command of the measuring program that wants VMs.
    fn with_vms(&self, command: &str, rounds: u32, figures: &mut Figures) -> Result<()> {
        let artifacts = build::build(self.layout)?;
        let state = self.layout.target.join("bench/state");
        let sizes = if self.quick { "128" } else { "128,512,2048" };
        let arguments = [
            ("--kernel", artifacts.kernel.as_os_str()),
            ("--initramfs", artifacts.initramfs.as_os_str()),
            ("--state", state.as_os_str()),
            ("--memory-mb", sizes.as_ref()),
        ];
        let arguments: Vec<_> =
            arguments.into_iter().flat_map(|(name, value)| [name.into(), value.to_owned()]).collect();
        let measured = self.program.run(command, self.rounds(rounds), &arguments, figures);
        // RAM and disks; what is left of a failure is told by its error.
        if measured.is_ok() {
            std::fs::remove_dir_all(&state).with_context(|| format!("removing {}", state.display()))?;
        }
        measured
    }
}

//! `cargo xtask bench`: what unasnap costs, against every alternative, side by side in one run.
//!
//! The candidates of a part are measured in turn, round after round, and a figure is the median of its rounds: a machine
//! that is slow for a while is slow for all. No figure makes the run fail. What is asked of the figures is the targets' ratios,
//! which are printed with what was reached.
//!
//! | module | what is in it |
//! |---|---|
//! | `program` | `unasnap-bench`, which measures what needs no cluster |
//! | `figures` | medians and spread of all rounds, by key |
//! | `targets` | what was to be reached, and what was |
//! | `machine` | where it was measured |
//! | `pages` | which figures are shown together |
//! | `report`, `plot` | JSON, CSV, tables; pictures |

mod figures;
mod machine;
mod pages;
mod plot;
mod program;
mod report;
mod targets;

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use self::figures::Figures;
use self::program::Program;
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
}

impl Part {
    /// Its name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Colour => "colour",
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
    let program = Program::build(layout)?;
    let machine = machine::facts();
    let mut figures = Figures::default();
    let mut failures = Vec::new();
    let parts = if options.parts.is_empty() { Part::value_variants() } else { &options.parts };
    for part in parts {
        eprintln!("bench {:6.1} s  {}", start.elapsed().as_secs_f64(), part.name());
        if let Err(error) = measure(*part, &program, options, &mut figures) {
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

fn measure(part: Part, program: &Program, options: &Options, figures: &mut Figures) -> Result<()> {
    let rounds = |full: u32| if options.quick { 2 } else { full };
    match part {
        Part::Colour => program.run("colour", rounds(25), &[], figures)?,
    }
    let lacking: Vec<_> = part.promised().iter().filter(|key| !figures.accounts_for(key)).collect();
    ensure!(lacking.is_empty(), "nothing was said about {lacking:?}");
    Ok(())
}

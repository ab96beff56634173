//! `cargo xtask bank`: proof on real VMs that restored snapshots are consistent, and that the proof is worth something.
//!
//! Every VM pays every other over TCP and UDP as fast as it is let (`tests/src/bank`). Snapshots are taken under full traffic,
//! the cuts driven apart on purpose. Each is restored, the books of the restored VMs are read out and checked: there must
//! be no violation. Then the mistakes of the published protocol are put back, one after the other, and snapshots are taken
//! and restored until the checker finds a violation: there must be one within a bounded number of runs.
//!
//! | module | what is in it |
//! |---|---|
//! | `course` | snapshots, restores and read-outs |
//! | `faults` | the mistakes, and what each needs to show |
//! | `moving` | restores on other hosts, in which host agents die |
//! | `report` | JSON and table |

mod course;
mod faults;
pub mod moving;
mod report;

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::build;
use crate::lab::cluster::Colouring;
use crate::layout::Layout;
use crate::setup;

/// What the user chose.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// VMs; all pay each other
    #[arg(long, default_value_t = 3)]
    vms: u32,
    /// Snapshots of the honest system that are restored and checked
    #[arg(long, default_value_t = 3)]
    snapshots: u32,
    /// Restore each snapshot with vm1 on the other host than before; from the second on a host agent dies, elsewhere each time
    #[arg(long)]
    migrate: bool,
    /// How packets are coloured; the mistakes are those of `guest`
    #[arg(long, value_enum, default_value_t = Colouring::Guest)]
    colouring: Colouring,
    /// Then put this mistake back, or `all` of them
    #[arg(long, value_name = "NAME", value_parser = faults::parse)]
    fault: Option<faults::Choice>,
    /// Snapshots in which a mistake must have been found
    #[arg(long, default_value_t = 12)]
    runs: u32,
    /// Print one JSON object on stdout instead of a table
    #[arg(long)]
    json: bool,
}

/// Installs what is missing, builds, runs, prints.
///
/// # Errors
/// It could not be carried out, the honest system showed a violation, or a mistake was not found.
pub fn run(layout: &Layout, options: &Options) -> Result<()> {
    ensure!((2..=8).contains(&options.vms), "--vms: 2 to 8 VMs pay each other here");
    ensure!(options.snapshots >= 1 && options.runs >= 1, "--snapshots and --runs: at least 1");
    ensure!(
        options.fault.is_none() || options.colouring == Colouring::Guest,
        "--fault: mistakes are put back where packets are coloured by the guest agent; leave --colouring out"
    );
    ensure!(nix::unistd::geteuid().is_root(), "it needs root: network namespaces, tap devices, guests' RAM");
    setup::run(layout, false)?;
    let artifacts = build::build(layout)?;
    let start = Instant::now();
    let outcome = course::run(layout, &artifacts, options)?;
    if options.json {
        println!("{}", report::json(&outcome));
    } else {
        print!("{}", report::table(&outcome));
    }
    eprintln!("bank: {:.0} s", start.elapsed().as_secs_f64());
    outcome.judge()
}

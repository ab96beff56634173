//! `unasnap-proof`: run by `cargo xtask prove`.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use unasnap_proof::explore::{Configuration, explore};
use unasnap_proof::report::{Explored, Simulated};
use unasnap_proof::setup::Mistake;
use unasnap_proof::{diagram, simulate, variants};
use unasnap_protocol::fault::Fault;

/// Most states of one exploration.
const MOST_STATES: usize = 6_000_000;
/// Most runs in which a mistake must be found.
const MOST_RUNS: u64 = 100_000;
/// Lines of a broken run that are shown.
const SHOWN: usize = 60;

/// Explores and simulates the state machines that ship
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Part>,
    #[command(flatten)]
    everything: Everything,
}

#[derive(Args)]
struct Everything {
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
    /// Simulated runs of the honest system
    #[arg(long, default_value_t = 20_000)]
    runs: u64,
}

#[derive(Subcommand)]
enum Part {
    /// Only explore
    Explore {
        /// Print one JSON object instead of tables
        #[arg(long)]
        json: bool,
        /// Only configurations whose name contains this
        #[arg(default_value = "")]
        name: String,
    },
    /// Only simulate
    Simulate {
        /// Print one JSON object instead of tables
        #[arg(long)]
        json: bool,
        /// Seed of the first run
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Runs; each has the next seed
        #[arg(long, default_value_t = 20_000)]
        runs: u64,
        /// Put back this mistake (the name of a mistaken configuration), and stop when it is found
        #[arg(long)]
        mistake: Option<String>,
    },
}

#[derive(Default, Serialize)]
struct Outcome {
    explored: Vec<Explored>,
    simulated: Vec<Simulated>,
    good: bool,
}

fn main() -> ExitCode {
    match work(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn work(arguments: Arguments) -> Result<bool> {
    let mut outcome = Outcome::default();
    let json = match arguments.command {
        None => {
            let Everything { json, runs } = arguments.everything;
            outcome.explored = explore_all("", json);
            outcome.simulated.push(shown(simulate_all(1, runs, None), json));
            for mistaken in variants::mistaken() {
                outcome.simulated.push(shown(simulate_all(1, MOST_RUNS, Some(&mistaken)), json));
            }
            json
        }
        Some(Part::Explore { json, name }) => {
            outcome.explored = explore_all(&name, json);
            json
        }
        Some(Part::Simulate { json, seed, runs, mistake }) => {
            let mistaken = mistake.map(|name| find(&name)).transpose()?;
            outcome.simulated.push(shown(simulate_all(seed, runs, mistaken.as_ref()), json));
            json
        }
    };
    outcome.good =
        outcome.explored.iter().all(|one| one.good) && outcome.simulated.iter().all(|one| one.good);
    if json {
        println!("{}", serde_json::to_string_pretty(&outcome)?);
    } else {
        let states: u64 = outcome.explored.iter().map(|one| one.states).sum();
        let verdict = if outcome.good { "all as it should be" } else { "SOMETHING IS WRONG; see above" };
        println!("{} explorations with {states} states: {verdict}", outcome.explored.len());
    }
    Ok(outcome.good)
}

fn find(name: &str) -> Result<Configuration> {
    let all = variants::mistaken();
    let names = all.iter().map(|one| one.name).collect::<Vec<_>>().join(", ");
    let found = all.into_iter().find(|one| one.name == name);
    found.with_context(|| format!("there is no mistake {name:?}; there are: {names}"))
}

fn shown(simulated: Simulated, json: bool) -> Simulated {
    if !json {
        println!("{}", simulated.text());
    }
    simulated
}

/// All configurations, the largest first, on two processors.
fn explore_all(name: &str, json: bool) -> Vec<Explored> {
    let all: Vec<_> = variants::honest().into_iter().chain(variants::mistaken()).collect();
    let all: Vec<_> = all.into_iter().filter(|one| one.name.contains(name)).collect();
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let worker = || {
        while let Some((place, configuration)) = {
            let place = next.fetch_add(1, Ordering::Relaxed);
            all.get(place).map(|one| (place, one))
        } {
            let explored = Explored::new(configuration, &explore(configuration, MOST_STATES));
            if !json {
                println!("{}", explored.text());
            }
            done.lock().expect("no worker panics").push((place, explored));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(worker);
        scope.spawn(worker);
    });
    let mut done = done.into_inner().expect("no worker panics");
    done.sort_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, explored)| explored).collect()
}

/// Runs of the honest system on two processors; or of a mistaken one until the mistake is found.
fn simulate_all(first: u64, runs: u64, mistaken: Option<&Configuration>) -> Simulated {
    let begun = Instant::now();
    let mistake = mistaken.map_or(Mistake::Shipped(Fault::None), |one| one.setup.mistake);
    let (next, stop) = (AtomicU64::new(first), AtomicBool::new(false));
    let total = Mutex::new(Simulated {
        mistake: mistaken.map(|one| one.name),
        first_seed: first,
        ..Simulated::default()
    });
    let worker = || {
        let mut own = Simulated::default();
        let mut broken = None;
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first.saturating_add(runs) {
                break;
            }
            own.runs += 1;
            match simulate::run(seed, mistake) {
                Ok(summary) => {
                    own.events += summary.events;
                    own.committed += summary.committed as u64;
                    own.restored += summary.restored;
                    own.hours += summary.seconds / 3600.0;
                    own.largest = own.largest.max(summary.members);
                }
                // Some break more than what they are put back for.
                Err(found) if mistaken.is_some_and(|one| one.breaks != Some(found.violation.invariant)) => {}
                Err(found) => {
                    stop.store(true, Ordering::Relaxed);
                    broken = Some((seed, found));
                }
            }
        }
        let mut total = total.lock().expect("no worker panics");
        total.runs += own.runs;
        total.events += own.events;
        total.committed += own.committed;
        total.restored += own.restored;
        total.hours += own.hours;
        total.largest = total.largest.max(own.largest);
        if let Some((seed, found)) = broken
            && total.broken.as_ref().is_none_or(|(known, _, _)| seed < *known)
        {
            total.broken = Some((seed, found.violation.invariant, found.violation.what));
            let trace = diagram::draw(&found.setup, &found.events);
            let lines: Vec<_> = trace.lines().map(str::to_owned).collect();
            total.trace = lines[lines.len().saturating_sub(SHOWN)..].to_vec();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(worker);
        scope.spawn(worker);
    });
    let mut total = total.into_inner().expect("no worker panics");
    total.seconds = begun.elapsed().as_secs_f64();
    total.good = match mistaken {
        None => total.broken.is_none(),
        Some(_) => total.broken.is_some(),
    };
    total
}

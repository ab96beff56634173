//! The published method on the same hypervisor, as the baseline: what one host does.
//!
//! The six steps of the publication, one after the other: colour what leaves PRESNAPSHOT; drop what arrives POSTSNAPSHOT; take
//! the local snapshot; colour POSTSNAPSHOT; accept POSTSNAPSHOT; end colouring. There is no barrier between the hosts.
//! The colours are iptables rules, changed by commands in the guest; the local snapshot stops the VM, switches its disks,
//! saves everything and lets it go on, by our own driver. In favour of the method, all VMs of a host take each step at the
//! same time, and a command reaches its guest over a connection that is open already.
//!
//! Orders come over a unix socket: a line with the snapshot's name; the answer is one JSON line.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use unasnap_host::definition::{VmDefinition, load_folder};
use unasnap_host::hypervisor::CutTimes;
use unasnap_host::store::manifest::RamWay;

use crate::namespace::run as command;
use crate::vm::guest::{Guest, Settings, Taken};

/// One host of the baseline.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Folder of VM definitions
    #[arg(long)]
    vms: PathBuf,
    /// Folder for VMs and snapshots
    #[arg(long)]
    state: PathBuf,
    /// Socket to make once all VMs run
    #[arg(long)]
    socket: PathBuf,
    /// Our address beside the VMs', with its length, for `br0`
    #[arg(long)]
    address: String,
}

// The published code points, 16 before the cut and 32 after it.
const COLOUR_PRE: &str = "iptables -t mangle -A POSTROUTING -j DSCP --set-dscp 16";
const DROP_POST: &str = "iptables -A INPUT -m dscp --dscp 32 -j DROP";
const COLOUR_POST: &str = "iptables -t mangle -R POSTROUTING 1 -j DSCP --set-dscp 32";
const ACCEPT_POST: &str = "iptables -D INPUT 1";
const END_COLOURING: &str = "iptables -t mangle -D POSTROUTING 1";

/// Starts the VMs, and takes snapshots until it is killed.
///
/// # Errors
/// A VM does not come up, or a step fails.
pub fn run(options: &Options, runtime: &Runtime) -> Result<()> {
    command(&format!("ip address add {} dev br0", options.address))?;
    let (definitions, wrong) = load_folder(&options.vms)?;
    ensure!(wrong.is_empty(), "wrong definitions: {wrong:?}");
    let mut guests = runtime.block_on(boot(options, definitions))?;
    let listener = UnixListener::bind(&options.socket).context("making the socket")?;
    loop {
        let (stream, _) = listener.accept().context("waiting for orders")?;
        let mut stream = BufReader::new(stream);
        let mut name = String::new();
        stream.read_line(&mut name).context("reading an order")?;
        let answer = take(&mut guests, name.trim(), runtime)?;
        writeln!(stream.get_mut(), "{answer}").context("answering an order")?;
    }
}

async fn boot(options: &Options, definitions: Vec<VmDefinition>) -> Result<Vec<Guest>> {
    let mut guests = Vec::new();
    for definition in definitions {
        let settings = Settings { state_dir: options.state.clone(), accel: None, way: RamWay::StopAndSave };
        guests.push(Guest::launch(settings, definition).await?);
    }
    for guest in &mut guests {
        guest.wait_for_gauge()?;
    }
    Ok(guests)
}

/// One global snapshot, as far as this host is concerned.
fn take(guests: &mut [Guest], name: &str, runtime: &Runtime) -> Result<Value> {
    let start = Instant::now();
    let rules = |guests: &mut [Guest], line: &str| {
        let step = Instant::now();
        at_once(guests.iter_mut().collect(), |guest| guest.gauge()?.run(line).map(drop))?;
        Ok::<_, anyhow::Error>(step.elapsed())
    };
    let colouring = rules(guests, COLOUR_PRE)? + rules(guests, DROP_POST)?;
    let cuts = at_once(guests.iter_mut().collect(), |guest| runtime.block_on(guest.cut(name)))?;
    let resumed = Instant::now();
    let ending = rules(guests, COLOUR_POST)?;
    let wrong_colour = resumed.elapsed();
    let ending = ending + rules(guests, ACCEPT_POST)? + rules(guests, END_COLOURING)?;
    let saves = guests.iter_mut().zip(cuts).collect();
    let taken = at_once(saves, |(guest, cut)| runtime.block_on(guest.save(cut)))?;
    let total = start.elapsed();
    for guest in guests.iter() {
        guest.delete(name)?;
    }
    let longest = |time: fn(&Taken) -> Duration| ms(taken.iter().map(time).max().unwrap_or_default());
    let instants: Vec<_> = taken.iter().map(|taken| taken.times.instant).collect();
    Ok(json!({
        "pause_ms": longest(|taken| CutTimes::pause(&taken.times)),
        "save_ms": longest(|taken| taken.before + taken.total),
        "total_ms": ms(total), "rules_ms": ms(colouring + ending), "wrong_colour_ms": ms(wrong_colour),
        "instants_ns": instants,
    }))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The same for all, at the same time.
fn at_once<T: Send, R: Send>(all: Vec<T>, action: impl Fn(T) -> Result<R> + Sync) -> Result<Vec<R>> {
    std::thread::scope(|scope| {
        let action = &action;
        let threads: Vec<_> = all.into_iter().map(|one| scope.spawn(move || action(one))).collect();
        let results =
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a step panicked"))?);
        results.collect()
    })
}

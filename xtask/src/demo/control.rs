//! `cargo xtask control`: why colours are needed, and that they are enough.
//!
//! Two VMs keep one TCP stream busy in which every byte is known in advance. A global snapshot is taken whose second cut
//! begins some milliseconds late on purpose; everything is killed and restored. Without colouring the receiver's snapshot
//! holds bytes that the sender's has not sent: the restored stream hangs, both ends established. With colouring
//! it goes on with every byte in order (I1 and I2 of docs/protocol.md).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::ring;
use crate::build::{self, Artifacts};
use crate::lab::cluster::{Cluster, Colouring, DEPLOYMENT, Scene};
use crate::lab::console::Console;
use crate::lab::namespaces::Lab;
use crate::lab::record::{Restored, Taken};
use crate::lab::waiting::{Talk, wait, wait_for_hosts, wait_for_vms};
use crate::layout::Layout;
use crate::setup;

/// What the user chose.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How long the first VM runs on before the second one's cut, at least, in milliseconds
    #[arg(long, default_value_t = 40)]
    apart_ms: u32,
}

/// Blocks that must have passed before the snapshot is taken.
const WARM: u64 = 200;

/// What the first VM's own pause takes away from the delay of the second, in milliseconds, and a margin.
const FIRST_PAUSE_MS: u32 = 60;

/// On a busy machine the first VM's pause may swallow the whole delay; then another snapshot is taken.
const TRIES: u32 = 8;

/// How long the stream may take to warm up.
const WARM_UP: Duration = Duration::from_secs(60);

/// TCP's longest pause between two tries is a few seconds so soon after a restore; a stream that passed no block for so
/// long hangs for ever.
const HANG: Duration = Duration::from_secs(25);

/// Blocks that a restored stream must pass to count as going on.
const ENOUGH: u64 = 200;

/// What became of the restored stream.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    GoesOn,
    Hangs,
}

/// Runs the experiment without and with colouring and checks both outcomes.
///
/// # Errors
/// An outcome is not what it must be, or the experiment could not be carried out.
pub fn run(layout: &Layout, options: &Options) -> Result<()> {
    setup::run(layout, false)?;
    let artifacts = build::build(layout)?;
    for (coloured, expected) in [(false, Fate::Hangs), (true, Fate::GoesOn)] {
        let word = if coloured { "on " } else { "off" };
        let fate = experiment(layout, &artifacts, coloured, options)?;
        println!(
            "colouring {word}: cuts at least {} ms apart, the restored stream {}",
            options.apart_ms,
            describe(&fate)
        );
        ensure!(
            fate == expected,
            "with colouring {word} the restored stream must be one that {}",
            describe(&expected)
        );
    }
    println!("control ok");
    Ok(())
}

fn describe(fate: &Fate) -> &'static str {
    match fate {
        Fate::GoesOn => "goes on with every byte in order",
        Fate::Hangs => "hangs",
    }
}

fn experiment(layout: &Layout, artifacts: &Artifacts, coloured: bool, options: &Options) -> Result<Fate> {
    let scene = Scene {
        commands: ring::stream_commands(),
        colouring: if coloured { Colouring::Auto } else { Colouring::None },
        late: Some((2, options.apart_ms + FIRST_PAUSE_MS)),
        faults: false,
    };
    let folder = layout.target.join("control");
    let talk = Talk::begin("control");
    let lab = Lab::new(2)?;
    let mut cluster = Cluster::create(&lab, artifacts, &folder, &scene)?;
    let mut consoles = cluster.consoles();
    let fate = steps(&talk, &lab, &mut cluster, &mut consoles, options);
    cluster.end("the control experiment", &consoles, fate)
}

fn steps(
    talk: &Talk,
    lab: &Lab,
    cluster: &mut Cluster<'_>,
    consoles: &mut [Console],
    options: &Options,
) -> Result<Fate> {
    cluster.start()?;
    wait_for_vms(cluster)?;
    wait(WARM_UP, || {
        let warm = consoles.iter().all(|console| console.blocks().last() >= Some(&WARM));
        Ok((!warm).then(|| format!("{WARM} blocks of the stream")))
    })?;
    let snapshot = cuts_apart(talk, cluster, options)?;
    lab.kill_everything()?;
    cluster.forget_daemons();
    for console in consoles.iter_mut() {
        console.skip();
    }
    cluster.start()?;
    wait_for_hosts(cluster)?;
    let restored = cluster.ask::<Restored>(&["restore", &snapshot])?.restore;
    talk.say(&format!("restored in {:.0} ms", restored.restore_ms));
    watch(cluster, consoles)
}

/// Takes snapshots until the first VM ran on for long enough before the second one's cut, and returns the last one's name.
fn cuts_apart(talk: &Talk, cluster: &Cluster<'_>, options: &Options) -> Result<String> {
    for _ in 0..TRIES {
        let snapshot = cluster.ask::<Taken>(&["snapshot", "take", DEPLOYMENT])?.snapshot;
        let [first, second] = &snapshot.members[..] else { bail!("the snapshot has not two members") };
        let apart_ms = second.stopped_ns.saturating_sub(first.resumed_ns) / 1_000_000;
        talk.say(&format!(
            "snapshot {}: the first VM ran on for {apart_ms} ms before the second cut",
            snapshot.id
        ));
        if apart_ms >= u64::from(options.apart_ms) {
            return Ok(snapshot.id);
        }
    }
    bail!("in {TRIES} snapshots the cuts were never {} ms apart: this machine is too busy", options.apart_ms)
}

/// Looks at the client's console until the stream has gone on far enough or stood still for too long.
fn watch(cluster: &mut Cluster<'_>, consoles: &[Console]) -> Result<Fate> {
    let client = consoles.last().context("the client's console")?;
    let mut first = None;
    let mut moved = (0, Instant::now());
    while moved.1.elapsed() < HANG {
        cluster.check_daemons()?;
        if let Some(failure) = consoles.iter().find_map(Console::failure) {
            bail!("a byte was lost, doubled or foreign: {failure}");
        }
        if let Some(&now) = client.blocks().last() {
            let first = *first.get_or_insert(now);
            if now >= first + ENOUGH {
                return Ok(Fate::GoesOn);
            }
            if now > moved.0 {
                moved = (now, Instant::now());
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(first.is_some(), "the restored guests print nothing: they do not run");
    Ok(Fate::Hangs)
}

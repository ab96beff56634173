//! A node of the ring.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::walk::{Place, Step, Walk};
use super::wire::{Frame, FromManager, FromNode, Kind, Lines, NodeStatistics};
use crate::meter::{Meter, Reporter};
use crate::net::{PATIENCE, accept, connect};

/// How a node is started.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Where the manager listens.
    pub manager: SocketAddr,
    /// Where this node listens for its predecessor; port 0 takes any.
    pub listen: SocketAddr,
    /// Unique name; the ring's order is the order of the names.
    pub name: String,
    /// Who is shown each token.
    pub observer: Option<SocketAddr>,
}

/// A node that has its place and its neighbours and waits for START.
#[derive(Debug)]
pub struct Joined {
    /// The node's name.
    pub name: String,
    /// The manager's connection.
    pub manager: Lines,
    /// Tokens come from here.
    pub predecessor: TcpStream,
    /// Tokens go there.
    pub successor: TcpStream,
    /// Which frame must come next.
    pub walk: Walk,
}

/// Registers, takes a place, and connects to both neighbours.
///
/// # Errors
/// Names the peer that did not come up within [`PATIENCE`] or said something wrong.
pub fn join(config: &NodeConfig) -> Result<Joined> {
    let name = config.name.clone();
    let listener =
        TcpListener::bind(config.listen).with_context(|| format!("listening on {}", config.listen))?;
    let port = listener.local_addr().context("listening socket")?.port();
    let mut manager = Lines::new("the manager", connect("the manager", config.manager, PATIENCE)?);
    manager.send(&FromNode::Register { name: name.clone(), port })?;
    manager.stream().set_read_timeout(Some(PATIENCE)).context("setting a time limit")?;
    let assigned = manager.receive().context("waiting for a place in the ring")?;
    let FromManager::Assign { position, nodes, tokens, work, successor, address } = assigned else {
        bail!("the manager said START before it gave this node a place");
    };
    let place = Place { position, nodes, tokens, work };
    let mut successor = connect(&successor, address, PATIENCE)?;
    Frame { kind: Kind::Hello, number: position, value: 0.0 }.write(&mut successor)?;
    let predecessor = meet_predecessor(&listener, place)?;
    Ok(Joined { name, manager, predecessor, successor, walk: Walk::new(place) })
}

fn meet_predecessor(listener: &TcpListener, place: Place) -> Result<TcpStream> {
    let expected = (place.position + place.nodes - 1) % place.nodes;
    let (mut stream, peer) = accept(&format!("node {expected} of the ring"), listener, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE)).context("setting a time limit")?;
    let hello = Frame::read(&mut stream)?;
    if hello.kind != Kind::Hello || hello.number != expected {
        bail!("{peer} is not the predecessor (node {expected}): it said {hello:?}");
    }
    stream.set_read_timeout(None).context("clearing the time limit")?;
    Ok(stream)
}

impl Joined {
    /// Tells the manager that both neighbours are there, and waits for START.
    ///
    /// # Errors
    /// Names the manager if it does not say START within [`PATIENCE`].
    pub fn wait_for_start(&mut self) -> Result<()> {
        self.manager.send(&FromNode::Ready)?;
        match self.manager.receive().context("waiting for START")? {
            FromManager::Start => Ok(()),
            FromManager::Assign { .. } => bail!("the manager assigned a second place"),
        }
    }
}

/// Runs one node from registration to the end of the run.
///
/// # Errors
/// What was wrong with the ring; the manager has been told.
pub fn run(config: &NodeConfig) -> Result<NodeStatistics> {
    let mut joined = join(config)?;
    joined.wait_for_start()?;
    match walk_ring(&mut joined, config.observer) {
        Ok(statistics) => {
            joined.manager.send(&FromNode::Done(statistics.clone()))?;
            Ok(statistics)
        }
        Err(error) => {
            // Without the manager there is nobody to tell but the console, which the caller does.
            let _ = joined.manager.send(&FromNode::Failed { reason: format!("{error:#}") });
            Err(error)
        }
    }
}

/// The run itself. It has no time limit: how long a VM sleeps between a snapshot and its restore is not the
/// workload's business.
fn walk_ring(joined: &mut Joined, observer: Option<SocketAddr>) -> Result<NodeStatistics> {
    let meter = Arc::new(Meter::observed(observer)?);
    let last = Arc::new(AtomicU64::new(0));
    let _reporter = {
        let (name, meter, last) = (joined.name.clone(), Arc::clone(&meter), Arc::clone(&last));
        Reporter::spawn(
            "RING-PROGRESS",
            Duration::from_secs(1),
            move || json!({"name": name, "token": last.load(Ordering::Relaxed), "longest_gap_ms": meter.take_recent_gap_ms()}),
        )
    };
    meter.start();
    if let Some(frame) = joined.walk.opening() {
        frame.write(&mut joined.successor)?;
    }
    let end = loop {
        let frame = Frame::read(&mut joined.predecessor)?;
        if frame.kind == Kind::Token {
            meter.event();
            last.store(frame.number, Ordering::Relaxed);
        }
        match joined.walk.receive(frame)? {
            Step::Pass(next) => next.write(&mut joined.successor)?,
            Step::PassAndEnd(next) => {
                next.write(&mut joined.successor)?;
                break frame;
            }
            Step::End => break frame,
        }
    };
    Ok(NodeStatistics {
        name: joined.name.clone(),
        received: meter.count(),
        longest_gap_ms: meter.longest_gap_ms(),
        last: end.number,
        value: format!("{:016x}", end.value.to_bits()),
    })
}

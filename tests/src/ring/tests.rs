//! Whole rings on loopback, good ones and broken ones.

use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;

use anyhow::Result;

use super::manager::{self, RunConfig, RunResult};
use super::node::{self, NodeConfig};
use super::walk::Step;
use super::wire::{Frame, FromNode, Kind, NodeStatistics};

fn start_manager(nodes: u64, tokens: u64) -> (SocketAddr, JoinHandle<Result<RunResult>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let config = RunConfig { nodes, tokens, work: 20, label: "test".into(), csv: None };
    (address, std::thread::spawn(move || manager::run(&listener, &config)))
}

fn config(manager: SocketAddr, name: &str) -> NodeConfig {
    NodeConfig { manager, listen: "127.0.0.1:0".parse().unwrap(), name: name.into(), observer: None }
}

fn start_node(manager: SocketAddr, name: &str) -> JoinHandle<Result<NodeStatistics>> {
    let config = config(manager, name);
    std::thread::spawn(move || node::run(&config))
}

fn whole_ring(names: &[&str], tokens: u64) -> RunResult {
    let (address, manager) = start_manager(names.len() as u64, tokens);
    let nodes: Vec<_> = names.iter().map(|name| start_node(address, name)).collect();
    let result = manager.join().unwrap().unwrap();
    for node in nodes {
        node.join().unwrap().unwrap();
    }
    result
}

#[test]
fn three_nodes_end_with_the_right_value_in_the_order_of_their_names() {
    let result = whole_ring(&["c", "a", "b"], 1000);
    assert_eq!((result.last, result.expected), (1000, 1000));
    let seen: Vec<_> = result.nodes.iter().map(|node| (node.name.as_str(), node.received)).collect();
    assert_eq!(seen, [("a", 333), ("b", 334), ("c", 333)]);
    assert!(result.longest_gap_ms > 0.0);
}

#[test]
fn four_nodes_and_two_runs_give_the_same_value() {
    let values: Vec<_> = (0..2).map(|_| whole_ring(&["n1", "n2", "n3", "n4"], 402).value).collect();
    assert_eq!(values[0], values[1]);
}

/// A ring whose last node does `fault` instead of passing token `at`.
fn broken_ring(at: u64, fault: fn(Frame, &mut Vec<Frame>)) -> String {
    let (address, manager) = start_manager(3, 100);
    let _nodes: Vec<_> = ["a", "b"].map(|name| start_node(address, name)).into();
    let broken = config(address, "c");
    std::thread::spawn(move || -> Result<()> {
        let mut joined = node::join(&broken)?;
        joined.wait_for_start()?;
        loop {
            let frame = Frame::read(&mut joined.predecessor)?;
            let (next, ended) = match joined.walk.receive(frame)? {
                Step::Pass(next) => (Some(next), false),
                Step::PassAndEnd(next) => (Some(next), true),
                Step::End => (None, true),
            };
            let mut out = Vec::from_iter(next);
            if let Some(token) = next.filter(|next| next.kind == Kind::Token && next.number == at) {
                out.clear();
                fault(token, &mut out);
            }
            for frame in out {
                frame.write(&mut joined.successor)?;
            }
            if ended {
                let value = format!("{:016x}", frame.value.to_bits());
                let last = frame.number;
                let statistics =
                    NodeStatistics { name: "c".into(), received: 33, longest_gap_ms: 0.0, last, value };
                return joined.manager.send(&FromNode::Done(statistics));
            }
        }
    });
    format!("{:#}", manager.join().unwrap().unwrap_err())
}

#[test]
fn a_doubled_token_is_noticed_by_the_next_node() {
    let error = broken_ring(33, |frame, out| out.extend([frame, frame]));
    assert!(error.contains("node a: expected token 36, got 33: a token was doubled"), "{error}");
}

#[test]
fn a_token_that_skips_a_round_is_noticed_as_lost() {
    let error = broken_ring(33, |frame, out| out.push(Frame { number: frame.number + 3, ..frame }));
    assert!(error.contains("node a: expected token 33, got 36: a token was lost"), "{error}");
}

#[test]
fn a_changed_value_is_noticed_at_the_end() {
    let error = broken_ring(33, |frame, out| out.push(Frame { value: frame.value * 0.5, ..frame }));
    assert!(error.contains("expected 100 and"), "{error}");
}

#[test]
fn two_nodes_of_one_name_are_refused() {
    let (address, manager) = start_manager(2, 10);
    let _nodes = [start_node(address, "a"), start_node(address, "a")];
    let error = manager.join().unwrap().unwrap_err();
    assert!(error.to_string().contains("names must be unique"), "{error}");
}

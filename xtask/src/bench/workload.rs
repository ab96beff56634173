//! What guests run while they are snapshotted. Each shows its events to the observer outside.

use crate::lab::console::address;

/// The observer's address.
pub const OBSERVER: &str = "10.77.1.254:9005";

/// TCP ports of the ring's manager, of its nodes, and of the stream's server.
const MANAGER_PORT: u16 = 9000;
const NODE_PORT: u16 = 9001;
const STREAM_PORT: u16 = 9004;

/// Commands of all VMs, and the words that begin their lines of progress.
#[derive(Debug, Clone)]
pub struct Workload {
    /// The first VM's first.
    pub commands: Vec<String>,
    /// Before the JSON.
    pub tag: &'static str,
}

/// A token around all VMs.
pub fn ring(vms: u32, tokens: u64) -> Workload {
    let manager = format!("{}:{MANAGER_PORT}", address(1));
    let node = |vm| {
        format!(
            "unasnap-ring node --manager {manager} --listen {}:{NODE_PORT} --name vm{vm:02} --show {OBSERVER}",
            address(vm)
        )
    };
    let first = format!(
        "unasnap-ring manager --listen {manager} --nodes {vms} --tokens {tokens} & {}; wait $!",
        node(1)
    );
    let commands = std::iter::once(first).chain((2..=vms).map(node)).collect();
    Workload { commands, tag: "RING-PROGRESS " }
}

/// A busy TCP stream from the second VM to the first.
pub fn stream() -> Workload {
    let server = format!("{}:{STREAM_PORT}", address(1));
    let commands = vec![
        format!("unasnap-ring stream serve --listen {server}"),
        format!("unasnap-ring stream run --connect {server} --block 4096 --show {OBSERVER}"),
    ];
    Workload { commands, tag: "STREAM-PROGRESS " }
}

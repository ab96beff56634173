//! What the VMs of the demo and of the control experiment run.

use crate::lab::console::address;

/// TCP port of the ring's manager, in the first VM.
const MANAGER_PORT: u16 = 9000;
/// TCP port of every node.
const NODE_PORT: u16 = 9001;

/// What VM number `vm` runs: a node, and in the first VM the manager as well.
pub fn command(vm: u32, vms: u32, tokens: u64) -> String {
    let manager = format!("{}:{MANAGER_PORT}", address(1));
    let node = format!(
        "unasnap-ring node --manager {manager} --listen {}:{NODE_PORT} --name vm{vm:02}",
        address(vm)
    );
    let end = "grep VmRSS /proc/$(pidof unasnap-guest)/status";
    if vm > 1 {
        return format!("{node}; {end}");
    }
    format!(
        "unasnap-ring manager --listen {manager} --nodes {vms} --tokens {tokens} --label demo & {node}; wait $!; {end}"
    )
}

/// What the two VMs of the control experiment run: one busy TCP stream between them.
pub fn stream_commands() -> Vec<String> {
    let server = format!("{}:{NODE_PORT}", address(1));
    vec![
        format!("unasnap-ring stream serve --listen {server}"),
        format!("unasnap-ring stream run --connect {server} --block 4096"),
    ]
}

//! The units of docs/units: what they allow is enough, and nothing that is running has more.

use std::fs;

use crate::cluster::{Cluster, capabilities, privileges};

/// Numbers of capabilities (linux/capability.h), as far as our units name them.
const NUMBERS: [(&str, u32); 5] =
    [("net_admin", 12), ("sys_ptrace", 19), ("sys_nice", 23), ("perfmon", 38), ("bpf", 39)];
const UNIT: &str = "unasnap-host.service";

/// The capabilities that a process or its children can have.
fn bounds(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
    u64::from_str_radix(value.trim(), 16).unwrap()
}

fn mask(names: &[String]) -> u64 {
    let number = |name: &String| NUMBERS.iter().find(|(known, _)| known == name).unwrap().1;
    names.iter().map(|name| 1 << number(name)).sum()
}

/// Names of the links that keep the programs on the taps of the VM that its host colours.
fn links() -> Vec<String> {
    let agents = fs::read_dir("/sys/fs/bpf/unasnap-host").unwrap().map(|entry| entry.unwrap().path());
    let pins = agents.flat_map(|agent| fs::read_dir(agent.join("vm1")).unwrap());
    let names = pins.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("link-")).collect()
}

/// Programs on taps, a word in a guest's RAM, a snapshot, a restore, another agent: all of it with what the units allow.
#[test]
fn what_the_units_allow_is_enough() {
    let mut cluster = Cluster::start(&privileges(UNIT), &["host", "memory"]);
    let listed = mask(&capabilities(UNIT));
    let expected = [0, listed, listed, listed];
    assert_eq!(cluster.processes().into_iter().map(bounds).collect::<Vec<_>>(), expected);

    let taken = cluster.json(&["snapshot", "take"]);
    let members = taken["snapshot"]["members"].as_array().unwrap();
    let used: Vec<_> = members.iter().map(|member| member["colouring"].as_str().unwrap()).collect();
    assert_eq!(used, ["host", "memory"], "{taken}");
    let restored = cluster.json(&["restore"]);
    assert_eq!(restored["restore"]["warnings"].as_array().unwrap().len(), 0, "{restored}");
    cluster.json(&["snapshot", "verify", "test-000001"]);
    let hanging = links();
    cluster.restart_host(&privileges(UNIT));
    cluster.json(&["snapshot", "take"]);
    assert_eq!(links(), hanging, "the next agent found another way to hang them than the one before");
    cluster.json(&["snapshot", "delete", "test-000001"]);
    // Also where something is done without, such as the priority of a cut.
    let words = cluster.words();
    let refused: Vec<_> = words.lines().filter(|line| line.contains("not permitted")).collect();
    assert!(refused.is_empty(), "{refused:?}");
}

//! Keeps the invariants of ARCHITECTURE.md true that a program can check.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Longest file of Rust code, lines.
const LONGEST_FILE: usize = 500;

/// Folder of each package of ours and the packages of ours that it may depend on.
const ARROWS: [(&str, &[&str]); 14] = [
    ("protocol", &[]),
    ("protocol/channel", &["unasnap-protocol"]),
    ("protocol/fault-points", &["unasnap-protocol"]),
    ("guest-ebpf", &[]),
    ("guest-ebpf/loader", &["unasnap-protocol", "unasnap-guest-ebpf"]),
    ("guest-agent", &["unasnap-protocol", "unasnap-fault-points", "unasnap-guest-ebpf", "unasnap-loader"]),
    (
        "host-agent",
        &[
            "unasnap-protocol",
            "unasnap-fault-points",
            "unasnap-channel",
            "unasnap-guest-ebpf",
            "unasnap-loader",
            "unasnap-files",
        ],
    ),
    ("host-agent/files", &["unasnap-protocol"]),
    ("coordinator", &["unasnap-protocol", "unasnap-fault-points", "unasnap-channel", "unasnap-files"]),
    (
        "tests/bench",
        &["unasnap-protocol", "unasnap-guest-ebpf", "unasnap-loader", "unasnap-host", "unasnap-tests"],
    ),
    ("tests/proof", &["unasnap-protocol", "unasnap-guest-ebpf"]),
    ("tests/fuzz", &["unasnap-protocol", "unasnap-channel", "unasnap-files"]),
    ("xtask", &["unasnap-tests", "unasnap-fault-points"]),
    ("tests", &["unasnap-protocol", "unasnap-channel"]),
];

/// What would make the state machines impure.
const IMPURE: [&str; 9] = [
    "tokio",
    "std::net",
    "std::fs",
    "std::thread",
    "std::process",
    "Instant",
    "SystemTime",
    "rand::",
    "async fn",
];

/// Where `unsafe` may stand: where the kernel's ABI needs it.
const UNSAFE: [&str; 7] = [
    "guest-ebpf",
    "guest-agent",
    "host-agent/src/hypervisor",
    "tests/bench/src",
    "xtask/src",
    "tests/src",
    "tests/fuzz/src",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn manifest(folder: &str) -> toml::Table {
    std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap().parse().unwrap()
}

/// Every Rust file of ours with its path from the root.
fn sources() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders: Vec<_> = ARROWS.iter().map(|(folder, _)| root().join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                found.insert(name, std::fs::read_to_string(path).unwrap());
            }
        }
    }
    assert!(found.len() > 50, "the sources were not found");
    found
}

#[test]
fn arrows_point_one_way() {
    for (folder, allowed) in ARROWS {
        let manifest = manifest(folder);
        let sections = ["dependencies", "build-dependencies"];
        let names = sections
            .iter()
            .filter_map(|section| manifest.get(*section)?.as_table())
            .flat_map(toml::Table::keys);
        for name in names.filter(|name| name.starts_with("unasnap")) {
            assert!(allowed.contains(&name.as_str()), "{folder} must not depend on {name}");
        }
    }
}

#[test]
fn every_member_of_the_workspace_has_its_arrows_here() {
    let workspace = manifest(".");
    let members = workspace["workspace"]["members"].as_array().unwrap();
    let mut members: Vec<_> = members.iter().map(|member| member.as_str().unwrap()).collect();
    let mut known: Vec<_> = ARROWS.iter().map(|(folder, _)| *folder).collect();
    members.sort_unstable();
    known.sort_unstable();
    assert_eq!(members, known);
}

#[test]
fn the_protocol_is_pure() {
    for (name, text) in sources().iter().filter(|(name, _)| name.starts_with("protocol/src")) {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            let found = IMPURE.iter().find(|word| line.contains(**word));
            assert!(found.is_none(), "{name} is not pure: {line}");
        }
    }
}

#[test]
fn no_file_is_a_hall() {
    for (name, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= LONGEST_FILE, "{name} has {lines} lines; at most {LONGEST_FILE}: divide it");
    }
}

#[test]
fn unsafe_stands_only_where_the_kernel_needs_it() {
    for (name, text) in sources() {
        let code = text.lines().map(str::trim_start).filter(|line| !line.starts_with("//"));
        let mut blocks = code.filter(|line| line.contains("unsafe {") || line.contains("unsafe impl"));
        let allowed = name.contains("/tests/") || UNSAFE.iter().any(|place| name.starts_with(place));
        assert!(allowed || blocks.next().is_none(), "{name} is no place for unsafe");
    }
}

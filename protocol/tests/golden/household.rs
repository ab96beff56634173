//! The bytes of what is said about VMs that come and go, and disks that they share.

use std::fmt::Write;

use unasnap_protocol::control::*;
use unasnap_protocol::files::*;
use unasnap_protocol::household::*;
use unasnap_protocol::operator::{RequestError, RequestErrorKind};

use super::{frame_of, inventory, moved, name, prefixes};

pub fn tasks() -> Vec<Task> {
    let nic = NewNic { bridge: "br0".to_owned(), mac: None, addresses: prefixes() };
    let new = NewVm {
        name: name("vm1"),
        deployment: name("ring"),
        base: name("debian"),
        memory_mb: 300,
        cpus: 2,
        kernel: Some("/k".to_owned()),
        initrd: None,
        append: "quiet".to_owned(),
        colouring: Some(Colouring::Guest),
        nics: vec![nic],
        hypervisor: Runner::Virtualbox,
    };
    let clone = VmClone {
        of: name("vm1"),
        name: name("vm2"),
        deployment: Some(name("ring")),
        addresses: vec![prefixes()],
    };
    let source = Source { host: name("h1"), address: "10.0.0.1:7421".to_owned(), digest: [7; 32] };
    let replica = Replica { clone: clone.clone(), per_second: Some(300), source: Some(source.clone()) };
    let bring = Bring { name: name("debian"), sources: vec![source], per_second: Some(300), within_s: 60 };
    vec![
        Task::Bases,
        Task::Preload { path: "/d".to_owned(), name: Some(name("debian")) },
        Task::Unregister(name("debian")),
        Task::Create(Box::new(new)),
        Task::Clone(Box::new(clone)),
        Task::Delete { vm: name("vm1"), force: true, lose_snapshots: false },
        Task::Files { vm: name("vm1"), snapshot: Some(name("ring-000004")) },
        Task::Bring(Box::new(bring)),
        Task::Freeze(name("vm1")),
        Task::Replicate(Box::new(replica)),
    ]
}

fn files() -> FileReport {
    let needed = vec![NeededFile {
        path: "disk0-0000.qcow2".to_owned(),
        role: FileRole::DifferenceDisk,
        bytes: 300,
        parent: Some("/d".to_owned()),
    }];
    let other = OtherFile {
        path: "/d".to_owned(),
        role: FileRole::BaseDisk,
        bytes: None,
        parent: None,
        why: "why".to_owned(),
    };
    FileReport {
        vm: "vm1".to_owned(),
        kind: StoreKind::Qcow2,
        folder: "/s".to_owned(),
        target: Some("ring-000004".to_owned()),
        current: None,
        snapshots: vec![SnapshotNode {
            id: "ring-000004".to_owned(),
            name: "ring-000004".to_owned(),
            parent: None,
            taken: Some("2026-01-01T00:00:00Z".to_owned()),
            ram: true,
        }],
        totals: Totals::of(&needed, &[], std::slice::from_ref(&other)),
        needed,
        not_needed: Vec::new(),
        missing: vec![other],
    }
}

pub fn outcomes() -> Vec<Outcome> {
    let base = Base {
        name: name("debian"),
        path: "/d".to_owned(),
        format: "qcow2".to_owned(),
        virtual_bytes: 700,
        bytes: 300,
        blake3: "ab".to_owned(),
        users: vec![name("vm1")],
        problem: Some("why".to_owned()),
    };
    vec![
        Outcome::Bases(vec![base.clone()]),
        Outcome::Preloaded(base),
        Outcome::Unregistered,
        Outcome::Made { report: Box::new(inventory().vms.remove(0)), changed: true },
        Outcome::Deleted,
        Outcome::Files(Box::new(files())),
        Outcome::Frozen([7; 32]),
    ]
}

pub fn household_report() -> HouseholdReport {
    let report = HostReport { host: name("h1"), outcome: Ok(outcomes().remove(0)), ms: 2.5 };
    HouseholdReport { hosts: vec![report] }
}

/// Each variant of what a household hears and says.
#[test]
fn household() {
    let mut lines = String::new();
    let mut line = |what: &str, bytes: Vec<u8>| {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(lines, "{what} {hex}").unwrap();
    };
    for task in tasks() {
        let order = HostOrder::Task { number: 700, incarnation: 2, task: task.clone() };
        let order = CoordinatorSession::Household(order);
        assert_eq!(CoordinatorSession::decode(&frame_of(&order.encode(&()))), Ok(((), order.clone())));
        line(task.label(), order.encode(&()));
    }
    let refused = Err(RequestError::new(RequestErrorKind::Refused, "why"));
    for outcome in outcomes().into_iter().map(Ok).chain([refused]) {
        let word = HostSession::Household(HostWord::Done { number: 700, outcome });
        assert_eq!(HostSession::decode(&frame_of(&word.encode(&()))), Ok(((), word.clone())));
        line("done", word.encode(&()));
    }
    let word = HostWord::Bringing { number: 700, from: name("h1"), moved: moved() };
    let word = HostSession::Household(word);
    assert_eq!(HostSession::decode(&frame_of(&word.encode(&()))), Ok(((), word.clone())));
    line("bringing", word.encode(&()));
    insta::assert_snapshot!("household", lines);
}

//! What is written is there after the next start, and nothing else.

use tempfile::TempDir;
use unasnap_protocol::control::Colouring;
use unasnap_protocol::guest::{Epoch, Prefix};
use unasnap_protocol::operator::{PhaseTimes, SnapshotRecord};

use super::*;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn open(folder: &TempDir) -> Journal {
    Journal::open(&folder.path().join("journal.redb")).unwrap()
}

fn stored(epoch: Epoch, state: SnapshotState) -> Stored {
    let record = SnapshotRecord {
        id: name(&format!("ring-{epoch:06}")),
        deployment: name("ring"),
        epoch,
        state,
        failure: None,
        consistent: true,
        ram_way: String::new(),
        created: format!("2026-01-01T00:{epoch:02}:00Z"),
        members: Vec::new(),
        phases: PhaseTimes::default(),
        skew_ms: None,
        skew_bound_ms: None,
        save_ms: None,
        global_ms: None,
    };
    Stored {
        record,
        incarnation: 0,
        addresses: Vec::new(),
        closed: true,
        undeleted: Vec::new(),
        copies: Vec::new(),
    }
}

fn vm(host: &str) -> KnownVm {
    let addresses = vec![Prefix::V4([10, 0, 0, 1], 32)];
    KnownVm { host: name(host), deployment: name("ring"), addresses, colouring: Colouring::Guest }
}

#[test]
fn terms_count_starts() {
    let folder = tempfile::tempdir().unwrap();
    let terms: Vec<_> = (0..3).map(|_| open(&folder).term()).collect();
    assert_eq!(terms, [1, 2, 3]);
}

#[test]
fn everything_survives_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    journal.open_snapshot(stored(1, SnapshotState::Open)).unwrap();
    journal.open_snapshot(stored(2, SnapshotState::Open)).unwrap();
    journal.update_snapshot(stored(1, SnapshotState::Committed)).unwrap();
    journal.remove_snapshot(&name("ring-000002")).unwrap();
    journal.know_host(&name("h1"), KnownHost { agent_version: "1".to_owned() }).unwrap();
    journal.know_vms([(name("vm1"), vm("h1")), (name("vm2"), vm("h1"))].into()).unwrap();
    journal.know_vms([(name("vm3"), vm("h2"))].into()).unwrap();
    journal.forget_vms(&[name("vm1")]).unwrap();
    journal.set_paused(&name("ring"), Some(name("ring-000001"))).unwrap();
    journal.set_paused(&name("web"), Some(name("web-000001"))).unwrap();
    journal.set_paused(&name("web"), None).unwrap();
    drop(journal);

    let mut journal = open(&folder);
    assert_eq!(
        (journal.paused(&name("ring")), journal.paused(&name("web"))),
        (Some(&name("ring-000001")), None)
    );
    assert_eq!(journal.snapshots().values().collect::<Vec<_>>(), [&stored(1, SnapshotState::Committed)]);
    assert_eq!(journal.hosts().keys().collect::<Vec<_>>(), [&name("h1")]);
    assert_eq!(journal.vms().keys().collect::<Vec<_>>(), [&name("vm2"), &name("vm3")]);
    // The epoch of a snapshot that is gone stays used.
    assert_eq!(journal.counters(&name("ring")), Counters { last_epoch: 2, incarnation: 0 });
    let counters = Counters { last_epoch: 3, incarnation: 1 };
    journal.begin_loading(&name("ring"), counters, BTreeMap::new()).unwrap();
    journal.open_snapshot(stored(4, SnapshotState::Open)).unwrap();
    assert_eq!(journal.counters(&name("ring")), Counters { last_epoch: 4, incarnation: 1 });
}

#[test]
fn a_vm_moves_to_the_host_that_reports_it_and_is_missed_while_nobody_does() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    journal.know_vms([(name("vm1"), vm("h1"))].into()).unwrap();
    journal.know_vms([(name("vm1"), vm("h2"))].into()).unwrap();
    journal.know_vms(BTreeMap::new()).unwrap();
    assert_eq!(journal.vms()[&name("vm1")].host, name("h2"));
}

#[test]
fn the_oldest_aborted_attempts_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    journal.open_snapshot(stored(1, SnapshotState::Committed)).unwrap();
    for epoch in 2..=53 {
        journal.open_snapshot(stored(epoch, SnapshotState::Aborted)).unwrap();
    }
    journal.prune_aborted().unwrap();
    let left: Vec<_> = journal.snapshots().values().map(|stored| stored.record.epoch).collect();
    assert_eq!(left, [1].into_iter().chain(4..=53).collect::<Vec<_>>());
}

#[test]
fn a_journal_of_another_schema_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(&folder));
    let path = folder.path().join("journal.redb");
    let database = Database::create(&path).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(META).unwrap().insert("schema", 9).unwrap();
    write.commit().unwrap();
    drop(database);
    let refused = Journal::open(&path).map(|_| ()).unwrap_err();
    assert!(matches!(refused, JournalError::UnknownSchema(9)), "{refused}");
}

/// Where a VM lives is durable with the incarnation that lives there, and who has to end an instance until it has.
#[test]
fn a_vm_that_moved_lives_there_after_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder);
    journal.know_vms([(name("vm1"), vm("h1")), (name("vm2"), vm("h1"))].into()).unwrap();
    let home = Home {
        host: name("h2"),
        deployment: name("ring"),
        snapshot: name("ring-000001"),
        epoch: 4,
        incarnation: 1,
        evict: [name("h1"), name("h3")].into(),
        settled: false,
    };
    let counters = Counters { last_epoch: 4, incarnation: 1 };
    journal.begin_loading(&name("ring"), counters, [(name("vm1"), home.clone())].into()).unwrap();
    journal.evicted(&name("vm1"), &name("h3")).unwrap();
    journal.settle_home(&name("vm1")).unwrap();
    drop(journal);
    let mut journal = open(&folder);
    assert_eq!(journal.counters(&name("ring")), counters);
    assert_eq!(journal.vms()[&name("vm1")].host, name("h2"));
    assert_eq!(journal.vms()[&name("vm2")].host, name("h1"));
    assert_eq!(journal.homes()[&name("vm1")], Home { evict: [name("h1")].into(), settled: true, ..home });
    journal.forget_home(&name("vm1")).unwrap();
    assert_eq!(journal.homes().len(), 1, "h1 is to hear of it still");
    // It was deleted while h1 was away: its name is free when h1 has confirmed.
    journal.forget_vms(&[name("vm1")]).unwrap();
    journal.evicted(&name("vm1"), &name("h1")).unwrap();
    assert_eq!(journal.homes().len(), 0);
    assert_eq!(open_again(journal, &folder).homes().len(), 0);
}

fn open_again(journal: Journal, folder: &TempDir) -> Journal {
    drop(journal);
    open(folder)
}

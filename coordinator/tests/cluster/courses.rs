//! Snapshots, restores and deletions through the real command, the real coordinator and real
//! participants.

use crate::support::host::{Fault, Host, Timing};
use crate::support::{Cluster, wait_until};
use serde_json::Value;
use unasnap_protocol::control::Colouring;

fn pair(cluster: &Cluster) -> (Host, Host) {
    let hosts = (Host::start(cluster, "h1", &["vm1", "vm2"]), Host::start(cluster, "h2", &["vm3", "vm4"]));
    cluster.wait_for_vms(4);
    hosts
}

fn names(list: &Value, field: &str) -> Vec<String> {
    list.as_array().unwrap().iter().map(|entry| entry[field].as_str().unwrap().to_owned()).collect()
}

#[test]
fn snapshots_in_a_row_restore_and_delete() {
    let cluster = Cluster::start();
    let (one, two) = pair(&cluster);
    for epoch in 1..=3 {
        let taken = cluster.json(&["snapshot", "take"]);
        assert_eq!(taken["schema"], 1);
        let snapshot = &taken["snapshot"];
        assert_eq!(snapshot["id"], format!("ring-00000{epoch}"));
        assert_eq!(snapshot["state"], "committed");
        assert_eq!(snapshot["consistent"], true);
        assert_eq!(names(&snapshot["members"], "vm"), ["vm1", "vm2", "vm3", "vm4"]);
        assert_eq!(snapshot["members"][0]["pause_ms"], 12.5);
        assert_eq!(snapshot["members"][0]["digest"], "ab".repeat(32));
        assert!(snapshot["save_ms"].as_f64().unwrap() >= 20.0);
        assert!(snapshot["global_ms"].as_f64().unwrap() > 0.0);
        assert!(one.is_idle() && two.is_idle());
    }
    let course = ["Prepare", "Arm", "Take", "Clear", "Commit"];
    assert_eq!(one.orders("vm1"), [course, course, course].concat());

    let restored = cluster.json(&["restore", "ring-000002"])["restore"].clone();
    assert_eq!(restored["incarnation"], 1);
    assert_eq!(names(&restored["members"], "host"), ["h1", "h1", "h2", "h2"]);
    assert_eq!(restored["warnings"].as_array().unwrap().len(), 4);
    assert_eq!(one.orders("vm1")[15..], ["Poll", "Restore", "Start"]);

    // The restore used an epoch of its own, 5: the next one of the colour of 2.
    assert_eq!(cluster.json(&["snapshot", "take"])["snapshot"]["epoch"], 6);
    let deleted = cluster.json(&["snapshot", "delete", "ring-000002"]);
    assert_eq!(deleted["deleted"]["waiting"].as_array().unwrap().len(), 0);
    assert_eq!(two.orders("vm4").last(), Some(&"Delete"));
    let left = names(&cluster.json(&["snapshot", "list"])["snapshots"], "id");
    assert_eq!(left, ["ring-000001", "ring-000003", "ring-000006"]);
    assert_eq!(cluster.run(&["restore", "ring-000002"]).code, 4);
}

#[test]
fn a_refusal_in_any_step_aborts_and_is_named() {
    for (order, phase) in [("Prepare", "PREPARE"), ("Arm", "ARM"), ("Take", "TAKE")] {
        let cluster = Cluster::start();
        let (one, two) = pair(&cluster);
        two.fault(order, Fault::Refuse);
        let failed = cluster.run(&["snapshot", "take"]);
        assert_eq!(failed.code, 5, "{order}");
        assert!(failed.stderr.contains(&format!("aborted in {phase}: vm")), "{}", failed.stderr);
        assert!(failed.stderr.contains("QEMU died"), "{}", failed.stderr);
        assert_eq!(failed.stdout, "");
        wait_until("all are idle", || one.is_idle() && two.is_idle());
        assert_eq!(cluster.json(&["snapshot", "list"])["snapshots"].as_array().unwrap().len(), 0);
        let all = cluster.json(&["snapshot", "list", "--all"])["snapshots"].clone();
        assert_eq!(all[0]["state"], "aborted");
        assert_eq!(all[0]["failure"]["phase"], phase);
        assert_eq!(cluster.run(&["restore", "ring-000001"]).code, 5);
        // Its epoch is used up; the next attempt goes well.
        assert_eq!(cluster.json(&["snapshot", "take"])["snapshot"]["epoch"], 2, "{order}");
    }
}

#[test]
fn a_host_lost_before_the_last_cut_aborts_and_is_named() {
    for (order, phase) in [("Prepare", "PREPARE"), ("Arm", "ARM"), ("Take", "TAKE")] {
        let cluster = Cluster::start();
        let (one, two) = pair(&cluster);
        two.fault(order, Fault::GoAway);
        let failed = cluster.run(&["snapshot", "take"]);
        assert_eq!(failed.code, 5, "{order}: {}", failed.stderr);
        let words = format!("aborted in {phase}: vm");
        assert!(failed.stderr.contains(&words) && failed.stderr.contains("connection"), "{}", failed.stderr);
        wait_until("the other host is idle", || one.is_idle());
        let refused = cluster.run(&["snapshot", "take"]);
        assert_eq!(refused.code, 5);
        assert!(
            refused.stderr.contains("VM vm3 is on host h2, which is not connected"),
            "{}",
            refused.stderr
        );
        two.set_away(false);
        cluster.wait_for_vms(4);
        wait_until("the lost host is idle", || two.is_idle());
        assert_eq!(cluster.run(&["snapshot", "take"]).code, 0);
    }
}

#[test]
fn a_host_that_reconnects_while_it_saves_does_not_end_the_snapshot() {
    let cluster = Cluster::start();
    let (_one, two) = pair(&cluster);
    two.hold_saves(true);
    two.fault("Clear", Fault::Reconnect);
    let taking = cluster.spawn(&["snapshot", "take"]);
    wait_until("TAKE came again", || two.orders("vm4").iter().filter(|order| **order == "Take").count() == 2);
    two.hold_saves(false);
    let done = taking.finish();
    assert_eq!(done.code, 0, "{}", done.stderr);
}

#[test]
fn a_host_that_comes_back_without_its_local_snapshot_aborts() {
    let cluster = Cluster::start();
    let (one, two) = pair(&cluster);
    two.hold_saves(true);
    two.fault("Clear", Fault::Forget);
    let failed = cluster.run(&["snapshot", "take"]);
    assert_eq!(failed.code, 5);
    assert!(
        failed.stderr.contains("aborted in SAVE: vm") && failed.stderr.contains("host h2"),
        "{}",
        failed.stderr
    );
    wait_until("all are idle", || one.is_idle() && two.is_idle());
}

#[test]
fn a_silent_member_is_named_when_the_wait_runs_out() {
    let cluster = Cluster::start();
    let (_one, two) = pair(&cluster);
    two.fault("Arm", Fault::Ignore);
    let failed = cluster.run(&["snapshot", "take"]);
    assert_eq!(failed.code, 6);
    assert!(failed.stderr.contains("aborted in ARM: no answer from vm3 in 3 s"), "{}", failed.stderr);
}

#[test]
fn a_second_snapshot_at_the_same_time_is_refused() {
    let cluster = Cluster::start();
    let (one, two) = pair(&cluster);
    one.hold_saves(true);
    let first = cluster.spawn(&["snapshot", "take"]);
    wait_until("the first is saving", || two.orders("vm3").contains(&"Clear"));
    let second = cluster.run(&["snapshot", "take"]);
    assert_eq!(second.code, 5);
    assert!(
        second.stderr.contains("snapshot ring-000001 of deployment ring is under way"),
        "{}",
        second.stderr
    );
    let delete = cluster.run(&["snapshot", "delete", "ring-000001"]);
    assert!(delete.code == 5 && delete.stderr.contains("under way"), "{}", delete.stderr);
    assert_eq!(cluster.json(&["status"])["courses"][0]["phase"], "SAVE");
    one.hold_saves(false);
    assert_eq!(first.finish().code, 0);
}

#[test]
fn a_restore_cancels_an_open_snapshot_and_waits_for_its_end() {
    let cluster = Cluster::start();
    let (one, two) = pair(&cluster);
    assert_eq!(cluster.run(&["snapshot", "take"]).code, 0);
    one.hold_saves(true);
    let open = cluster.spawn(&["snapshot", "take"]);
    wait_until("it is saving", || two.orders("vm3").iter().filter(|order| **order == "Clear").count() == 2);
    let restored = cluster.json(&["restore"]);
    assert_eq!(restored["restore"]["snapshot"], "ring-000001");
    let cancelled = open.finish();
    assert!(cancelled.code == 5 && cancelled.stderr.contains("asked for a restore"), "{}", cancelled.stderr);
}

#[test]
fn a_restore_waits_for_a_host_that_is_away_and_fails_after_it_began() {
    let cluster = Cluster::start();
    let (one, two) = pair(&cluster);
    assert_eq!(cluster.run(&["snapshot", "take"]).code, 0);
    two.set_away(true);
    wait_until("it is away", || cluster.json(&["host", "list"])["hosts"][1]["connected"] == false);
    let restoring = cluster.spawn(&["restore"]);
    wait_until("the other was polled", || one.orders("vm1").contains(&"Poll"));
    assert!(!one.orders("vm1").contains(&"Restore"));
    two.set_away(false);
    assert_eq!(restoring.finish().code, 0);

    two.fault("Restore", Fault::GoAway);
    let failed = cluster.run(&["restore"]);
    assert_eq!(failed.code, 5);
    assert!(
        failed.stderr.contains("failed in RESTORE: vm") && failed.stderr.contains("again"),
        "{}",
        failed.stderr
    );
    assert!(!one.orders("vm1").ends_with(&["Start"]), "nothing runs before everything is loaded");
    two.set_away(false);
    let again = cluster.json(&["restore"]);
    assert_eq!(again["restore"]["incarnation"], 3);
}

#[test]
fn a_snapshot_without_colouring_says_so() {
    let cluster = Cluster::start();
    let _one = Host::start(&cluster, "h1", &["vm1"]);
    let _two = Host::with(&cluster, "h2", &["vm2"], Colouring::None, Timing::default());
    cluster.wait_for_vms(2);
    let taken = cluster.run(&["snapshot", "take"]);
    assert!(taken.code == 0 && taken.stderr.contains("not consistent"), "{}", taken.stderr);
    assert_eq!(cluster.json(&["snapshot", "list"])["snapshots"][0]["consistent"], false);
    let restored = cluster.json(&["restore"])["restore"]["warnings"].to_string();
    assert!(restored.contains("without colouring"), "{restored}");
}

#[test]
fn a_host_that_is_away_deletes_when_it_comes_back() {
    let cluster = Cluster::start();
    let (_one, two) = pair(&cluster);
    assert_eq!(cluster.run(&["snapshot", "take"]).code, 0);
    two.set_away(true);
    wait_until("it is away", || cluster.json(&["host", "list"])["hosts"][1]["connected"] == false);
    let deleted = cluster.run(&["snapshot", "delete", "ring-000001"]);
    assert!(
        deleted.code == 0 && deleted.stderr.contains("host h2 has not yet removed"),
        "{}",
        deleted.stderr
    );
    assert_eq!(cluster.run(&["restore"]).code, 4);
    assert_eq!(cluster.state("ring-000001"), "deleting");
    two.set_away(false);
    wait_until("it is forgotten", || cluster.run(&["snapshot", "show", "ring-000001"]).code == 4);
    assert!(two.orders("vm3").contains(&"Delete"));
}

#[test]
fn a_snapshot_is_verified_by_all_hosts_and_damage_is_named() {
    let cluster = Cluster::start();
    let hosts = [Host::start(&cluster, "h1", &["vm1"]), Host::start(&cluster, "h2", &["vm2"])];
    cluster.wait_for_vms(2);
    assert_eq!(cluster.run(&["snapshot", "take"]).code, 0);
    let whole = cluster.json(&["snapshot", "verify", "ring-000001"]);
    assert_eq!(whole["verified"]["members"].as_array().unwrap().len(), 2);
    assert!(whole["verified"]["members"][1]["problem"].is_null(), "{whole}");

    hosts[1].fault("Verify", Fault::Refuse);
    let damaged = cluster.run(&["snapshot", "verify", "ring-000001"]);
    assert_eq!(damaged.code, 5, "{}", damaged.stderr);
    assert!(damaged.stderr.contains("vm2 on h2: QEMU died"), "{}", damaged.stderr);

    hosts[0].fault("Verify", Fault::GoAway);
    let lost = cluster.run(&["snapshot", "verify", "ring-000001"]);
    assert!(
        lost.code == 5 && lost.stderr.contains("vm1 on h1: the connection to its host"),
        "{}",
        lost.stderr
    );
    let away = cluster.run(&["snapshot", "verify", "ring-000001"]);
    assert!(away.stderr.contains("vm1 on h1: its host h1 is not connected"), "{}", away.stderr);
    assert_eq!(cluster.run(&["snapshot", "verify", "ring-000009"]).code, 4);
}

/// While hosts read, nothing else is begun, and a host that never ends does not keep the coordinator from its work.
#[test]
fn a_verification_is_a_course_of_its_own() {
    let cluster = Cluster::start();
    let host = Host::start(&cluster, "h1", &["vm1"]);
    cluster.wait_for_vms(1);
    assert_eq!(cluster.run(&["snapshot", "take"]).code, 0);
    host.fault("Verify", Fault::Ignore);
    let verifying = cluster.spawn(&["snapshot", "verify", "ring-000001"]);
    wait_until("it is under way", || host.orders("vm1").contains(&"Verify"));
    let refused = cluster.run(&["snapshot", "take"]);
    assert!(
        refused.code == 5 && refused.stderr.contains("the verification of ring-000001"),
        "{}",
        refused.stderr
    );
    host.set_away(true);
    assert_ne!(verifying.finish().code, 0);
}

//! The coordinator is killed at its worst moments; the next one takes up what the journal says.

use crate::support::host::{Fault, Host};
use crate::support::{Cluster, wait_until};

fn pair(cluster: &Cluster) -> (Host, Host) {
    let hosts = (Host::start(cluster, "h1", &["vm1"]), Host::start(cluster, "h2", &["vm2"]));
    cluster.wait_for_vms(2);
    hosts
}

/// Kills the coordinator once `reached`, while a `snapshot take` waits; returns what that says.
fn crash_while_taking(cluster: &mut Cluster, reached: impl FnMut() -> bool) -> crate::support::Ended {
    let taking = cluster.spawn(&["snapshot", "take"]);
    wait_until("the moment of the crash has come", reached);
    cluster.kill_daemon();
    taking.finish()
}

#[test]
fn killed_while_members_save_it_aborts_at_the_next_start() {
    let mut cluster = Cluster::start();
    let (one, two) = pair(&cluster);
    two.hold_saves(true);
    let lost = crash_while_taking(&mut cluster, || two.orders("vm2").contains(&"Clear"));
    assert_eq!(lost.code, 3, "{}", lost.stderr);
    assert!(lost.stderr.contains("lost the coordinator at"), "{}", lost.stderr);
    assert!(lost.stderr.contains(" in SAVE of ring-000001: "), "{}", lost.stderr);
    cluster.start_daemon();
    wait_until("all are idle", || one.is_idle() && two.is_idle());
    assert_eq!(cluster.state("ring-000001"), "aborted");
    assert_eq!(one.orders("vm1").last(), Some(&"Abort"));
    two.hold_saves(false);
    cluster.wait_for_vms(2);
    wait_until("the next one goes well", || cluster.run(&["snapshot", "take"]).code == 0);
    assert_eq!(cluster.json(&["status"])["last_snapshot"]["id"], "ring-000002");
}

/// As if it had died between the journal's write and the sending: the orders never arrive.
#[test]
fn killed_between_the_journal_and_the_orders_it_aborts_before_commit() {
    for order in ["Prepare", "Arm", "Take"] {
        let mut cluster = Cluster::start();
        let (one, two) = pair(&cluster);
        one.fault(order, Fault::Ignore);
        two.fault(order, Fault::Ignore);
        let came = || one.orders("vm1").contains(&order) && two.orders("vm2").contains(&order);
        crash_while_taking(&mut cluster, came);
        cluster.start_daemon();
        wait_until("all are idle", || one.is_idle() && two.is_idle());
        wait_until("it is aborted", || cluster.state("ring-000001") == "aborted");
        cluster.wait_for_vms(2);
        wait_until("the next one goes well", || cluster.run(&["snapshot", "take"]).code == 0);
    }
}

#[test]
fn killed_after_the_journal_says_commit_it_commits() {
    let mut cluster = Cluster::start();
    let (one, two) = pair(&cluster);
    one.fault("Commit", Fault::Ignore);
    two.fault("Commit", Fault::Ignore);
    crash_while_taking(&mut cluster, || two.orders("vm2").contains(&"Commit"));
    assert!(!two.is_idle());
    cluster.start_daemon();
    wait_until("all are idle", || one.is_idle() && two.is_idle());
    assert_eq!(cluster.state("ring-000001"), "committed");
    assert!(!one.orders("vm1").contains(&"Abort") && !two.orders("vm2").contains(&"Abort"));
}

/// A host that asks long after the end hears how it ended.
#[test]
fn a_host_that_missed_the_end_hears_it_when_it_comes_back() {
    let mut cluster = Cluster::start();
    let (one, two) = pair(&cluster);
    two.fault("Commit", Fault::GoAway);
    let taken = cluster.run(&["snapshot", "take"]);
    assert_eq!(taken.code, 0, "{}", taken.stderr);
    assert!(one.is_idle() && !two.is_idle());
    cluster.kill_daemon();
    cluster.start_daemon();
    two.set_away(false);
    wait_until("it is idle", || two.is_idle());
    assert_eq!(cluster.state("ring-000001"), "committed");
}

#[test]
fn a_missing_host_is_missed_by_the_next_coordinator_too() {
    let mut cluster = Cluster::start();
    let (_one, two) = pair(&cluster);
    two.set_away(true);
    cluster.kill_daemon();
    cluster.start_daemon();
    cluster.wait_for_vms(1);
    let refused = cluster.run(&["snapshot", "take"]);
    assert!(refused.code == 5 && refused.stderr.contains("vm2 is on host h2"), "{}", refused.stderr);
    assert_eq!(cluster.json(&["status"])["coordinator"]["term"], 2);
}

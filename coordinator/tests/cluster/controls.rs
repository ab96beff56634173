//! Single VMs, whatever host they are on: started, stopped, paused, resumed, reset.

use serde_json::Value;

use crate::support::host::{Fault, Host};
use crate::support::{Cluster, Ended, wait_until};

fn two_hosts(cluster: &Cluster) -> [Host; 2] {
    let hosts =
        [Host::start(cluster, "h1", &["ring-1", "ring-3"]), Host::start(cluster, "h2", &["ring-2", "db"])];
    cluster.wait_for_vms(4);
    hosts
}

/// Name, state and whether it was changed, of each VM.
fn lines(report: &Value) -> Vec<(&str, &str, bool)> {
    let vms = report["control"]["vms"].as_array().unwrap();
    vms.iter()
        .map(|vm| (vm["vm"].as_str().unwrap(), vm["state"].as_str().unwrap(), vm["changed"] == true))
        .collect()
}

fn fails(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, code, "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "{word}: {ended:?}");
    }
}

#[test]
fn patterns_reach_the_vms_of_all_hosts_and_no_others() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    let paused = cluster.json(&["vm", "pause", "ring-*"]);
    let expected = [("ring-1", "paused", true), ("ring-2", "paused", true), ("ring-3", "paused", true)];
    assert_eq!(lines(&paused), expected);
    assert_eq!(hosts[1].orders("db"), [] as [&str; 0]);
    assert_eq!(cluster.json(&["vm", "show", "ring-2"])["vm"]["state"], "paused");
    let again = cluster.json(&["vm", "pause", "ring-?", "ring-2"]);
    assert_eq!(lines(&again), expected.map(|(vm, state, _)| (vm, state, false)));

    let text = cluster.run(&["vm", "resume", "ring-1", "db"]);
    assert_eq!(text.code, 0, "{text:?}");
    let rows: Vec<Vec<&str>> =
        text.stdout.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..4], ["db", "h2", "already", "running"], "{}", text.stdout);
    assert_eq!(rows[1][..3], ["ring-1", "h1", "running"], "{}", text.stdout);
    assert!(rows[1][3].parse::<f64>().is_ok(), "milliseconds: {}", text.stdout);

    assert_eq!(lines(&cluster.json(&["vm", "stop", "--force", "db"])), [("db", "stopped", true)]);
    let started = cluster.json(&["vm", "start", "db"]);
    assert_eq!(started["control"]["vms"][0]["note"], "a new boot");
    let listed = cluster.json(&["vm", "list", "r*-3", "db"]);
    let listed: Vec<_> = listed["vms"].as_array().unwrap().iter().map(|vm| &vm["name"]).collect();
    assert_eq!(listed, ["db", "ring-3"]);
}

#[test]
fn a_pattern_that_means_nobody_is_a_mistake_and_nothing_is_done() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    fails(
        &cluster.run(&["vm", "stop", "ring-1", "web-*"]),
        4,
        &["no VM is called web-*", "nothing was done"],
    );
    assert_eq!(hosts[0].orders("ring-1"), [] as [&str; 0]);
    fails(&cluster.run(&["vm", "list", "web-*"]), 4, &["no VM is called web-*"]);
    fails(&cluster.run(&["vm", "show", "web"]), 4, &["no VM is called web"]);
    fails(&cluster.run(&["vm", "stop", "../x"]), 2, &["is no name or pattern of VMs"]);
    fails(&cluster.run(&["vm", "stop"]), 2, &[]);
}

/// What went well is told as well as what did not, and by whose fault.
#[test]
fn one_that_fails_does_not_keep_the_others_and_ends_the_script() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    hosts[1].fault("Control", Fault::Refuse);
    let ended = cluster.run(&["vm", "pause", "ring-*", "--json"]);
    fails(&ended, 5, &["ring-2 on h2: QEMU died"]);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    let problems: Vec<_> =
        report["control"]["vms"].as_array().unwrap().iter().map(|vm| vm["problem"].is_null()).collect();
    assert_eq!(problems, [true, false, true]);

    hosts[1].fault("Control", Fault::GoAway);
    fails(&cluster.run(&["vm", "resume", "*"]), 5, &["ring-2 on h2: the connection to its host h2 broke"]);
    fails(&cluster.run(&["vm", "resume", "ring-2"]), 5, &["its host h2 is not connected"]);
    assert_eq!(cluster.run(&["vm", "resume", "ring-1"]).code, 0);
}

#[test]
fn nothing_is_done_to_a_vm_while_a_snapshot_of_its_deployment_is_taken_or_restored() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    hosts[0].hold_saves(true);
    let taking = cluster.spawn(&["snapshot", "take"]);
    wait_until("it is cut", || hosts[0].orders("ring-1").contains(&"Take"));
    for verb in ["start", "stop", "pause", "resume", "reset"] {
        let words = ["snapshot ring-000001 of deployment ring is under way"];
        fails(&cluster.run(&["vm", verb, "ring-2"]), 5, &words);
    }
    hosts[0].hold_saves(false);
    assert_eq!(taking.finish().code, 0);

    hosts[1].fault("Start", Fault::Ignore);
    let mut restoring = cluster.spawn(&["restore"]);
    wait_until("it is being started", || hosts[1].orders("db").contains(&"Start"));
    fails(&cluster.run(&["vm", "stop", "ring-1"]), 5, &["the restore of ring-000001 of deployment ring"]);
    restoring.kill();
    assert!(
        !hosts.iter().any(|host| ["ring-1", "ring-2"].iter().any(|vm| host.orders(vm).contains(&"Control")))
    );
}

#[test]
fn no_snapshot_or_restore_begins_while_something_is_done_to_a_vm() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    assert_eq!(cluster.run(&["snapshot", "take"]).code, 0);
    hosts[0].fault("Control", Fault::Ignore);
    let mut stopping = cluster.spawn(&["vm", "stop", "ring-1", "ring-2"]);
    wait_until("it is under way", || hosts[0].orders("ring-1").contains(&"Control"));
    let words = ["`vm stop` of ring-1", "is under way"];
    for command in [
        &["snapshot", "take"][..],
        &["restore"],
        &["vm", "reset", "ring-3"],
        &["snapshot", "delete", "ring-000001"],
    ] {
        fails(&cluster.run(command), 5, &words);
    }
    hosts[0].set_away(true);
    wait_until("it has ended", || stopping.has_ended());
}

/// As ever: only running VMs are snapshotted, and a restore brings back whatever they were.
#[test]
fn a_vm_that_is_paused_or_stopped_keeps_its_deployment_from_a_snapshot() {
    let cluster = Cluster::start();
    let _hosts = two_hosts(&cluster);
    assert_eq!(cluster.run(&["snapshot", "take"]).code, 0);
    for verb in ["pause", "stop"] {
        assert_eq!(cluster.run(&["vm", verb, "ring-2"]).code, 0);
        fails(&cluster.run(&["snapshot", "take"]), 5, &["PREPARE", "ring-2", "not running"]);
    }
    assert_eq!(cluster.run(&["restore"]).code, 0);
    assert_eq!(cluster.run(&["snapshot", "take"]).code, 0);
}

#[test]
fn whoever_may_only_look_sees_vms_and_touches_none() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    assert_eq!(cluster.run(&["pki", "operator", "eve", "--role", "view", "--dir", "pki"]).code, 0);
    cluster.use_certificate("operator-eve");
    assert_eq!(cluster.run(&["vm", "show", "db"]).code, 0);
    for verb in ["start", "stop", "pause", "resume", "reset"] {
        fails(&cluster.run(&["vm", verb, "*"]), 3, &["needs the role operate"]);
    }
    assert_eq!(hosts[1].orders("db"), [] as [&str; 0]);
}

//! Whole deployments put aside and brought back.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::host::{Fault, Host};
use crate::support::{Cluster, wait_until};

fn two_hosts(cluster: &Cluster) -> [Host; 2] {
    let hosts = [Host::start(cluster, "h1", &["vm1"]), Host::start(cluster, "h2", &["vm2"])];
    cluster.wait_for_vms(2);
    hosts
}

fn states(cluster: &Cluster) -> Vec<String> {
    let list = cluster.json(&["vm", "list"]);
    let vms = list["vms"].as_array().unwrap().iter();
    vms.map(|vm| vm["state"].as_str().unwrap_or("away").to_owned()).collect()
}

fn snapshot(pause: &Value) -> &str {
    pause["pause"]["snapshot"].as_str().unwrap()
}

fn count(host: &Host, vm: &str, order: &str) -> usize {
    host.orders(vm).iter().filter(|name| **name == order).count()
}

#[test]
fn a_deployment_is_saved_powered_off_and_brought_back() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    let pause = cluster.json(&["pause", "ring"]);
    assert_eq!(snapshot(&pause), "ring-000001");
    assert_eq!(cluster.state("ring-000001"), "committed");
    assert_eq!(states(&cluster), ["stopped", "stopped"]);
    // Nobody is powered off before it is known that all of it is saved.
    let orders = hosts[1].orders("vm2");
    assert_eq!(orders, ["Prepare", "Arm", "Take", "Clear", "Commit", "Control"]);

    // A second one changes nothing, and what it will be brought back to cannot be lost.
    let again = cluster.json(&["pause", "ring"]);
    assert_eq!((snapshot(&again), &again["pause"]["vms"][0]["changed"]), ("ring-000001", &false.into()));
    for (command, words) in [
        (&["snapshot", "delete", "ring-000001"][..], "unasnap resume ring"),
        (&["vm", "start", "vm1"], "is paused in ring-000001"),
    ] {
        let refused = cluster.run(command);
        assert!(refused.code == 5 && refused.stderr.contains(words), "{refused:?}");
    }

    let shown = cluster.json(&["status"])["paused"].clone();
    assert_eq!(shown, json!([{ "deployment": "ring", "snapshot": "ring-000001", "for_user": false }]));
    assert!(cluster.run(&["status"]).stdout.contains("ring in ring-000001; `unasnap resume ring`"));

    let resumed = cluster.json(&["resume", "ring"]);
    assert_eq!(resumed["restore"]["snapshot"], "ring-000001");
    assert_eq!(cluster.json(&["status"])["paused"], json!([]));
    assert_eq!(states(&cluster), ["running", "running"]);
    assert_eq!(cluster.json(&["resume", "ring"])["runs"], "ring");
    assert_eq!(count(&hosts[0], "vm1", "Restore"), 1, "what runs is not restored");
    assert_eq!(cluster.run(&["snapshot", "delete", "ring-000001"]).code, 0);
    assert_ne!(snapshot(&cluster.json(&["pause", "ring"])), "ring-000001");
    assert_eq!(cluster.run(&["pause", "web"]).code, 4);
    assert_eq!(cluster.run(&["resume", "web"]).code, 4);
}

#[test]
fn without_a_committed_snapshot_nothing_is_powered_off() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    hosts[1].fault("Take", Fault::Refuse);
    let aborted = cluster.run(&["pause", "ring"]);
    assert!(aborted.code == 5 && aborted.stderr.contains("every VM runs on"), "{aborted:?}");
    assert_eq!(states(&cluster), ["running", "running"]);
    assert!(hosts.iter().zip(["vm1", "vm2"]).all(|(host, vm)| count(host, vm, "Control") == 0));
}

/// What is already off cannot be snapshotted again: the second attempt ends the rest.
#[test]
fn a_pause_that_broke_off_goes_on_with_the_snapshot_that_it_has() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    hosts[1].fault("Control", Fault::Refuse);
    let half = cluster.run(&["pause", "ring"]);
    let words = ["saved in ring-000001", "vm2 on h2: QEMU died", "unasnap pause ring", "unasnap resume ring"];
    assert!(half.code == 5 && words.iter().all(|words| half.stderr.contains(words)), "{half:?}");
    assert_eq!(states(&cluster), ["stopped", "running"]);
    assert_eq!(snapshot(&cluster.json(&["pause", "ring"])), "ring-000001");
    assert_eq!(states(&cluster), ["stopped", "stopped"]);
    assert_eq!(count(&hosts[1], "vm2", "Take"), 1);

    hosts[0].fault("Restore", Fault::Refuse);
    assert_eq!(cluster.run(&["resume", "ring"]).code, 5);
    assert_eq!(cluster.run(&["resume", "ring"]).code, 0, "the snapshot is still known");
    assert_eq!(states(&cluster), ["running", "running"]);
}

/// It dies when the pause is written down and nothing is off yet. All runs: another pause is another snapshot, so that
/// nothing of what was done meanwhile is lost.
#[test]
fn a_coordinator_that_dies_between_snapshot_and_power_off_leaves_a_deployment_that_runs() {
    let mut cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    cluster.kill_daemon();
    cluster.spawn_daemon("journal.paused.after");
    wait_until("it dies", || {
        cluster.has_died() || {
            cluster.run(&["pause", "ring"]);
            cluster.has_died()
        }
    });
    cluster.start_daemon();
    cluster.wait_for_vms(2);
    wait_until("what was open is settled", || hosts.iter().all(Host::is_idle));
    assert_eq!(states(&cluster), ["running", "running"]);
    assert_eq!(cluster.json(&["resume", "ring"])["runs"], "ring");
    assert_eq!(snapshot(&cluster.json(&["pause", "ring"])), "ring-000002");
    assert_eq!(cluster.json(&["resume", "ring"])["restore"]["snapshot"], "ring-000002");
}

/// A pause of long ago is not what a deployment is brought back to that was stopped by hand since.
#[test]
fn a_pause_is_forgotten_when_all_of_it_runs() {
    let mut cluster = Cluster::start();
    let _hosts = two_hosts(&cluster);
    cluster.kill_daemon();
    cluster.spawn_daemon("journal.paused.after");
    wait_until("it dies", || {
        cluster.has_died() || {
            cluster.run(&["pause", "ring"]);
            cluster.has_died()
        }
    });
    cluster.start_daemon();
    cluster.wait_for_vms(2);
    wait_until("it is stopped", || cluster.run(&["vm", "stop", "vm1"]).code == 0);
    assert_eq!(cluster.run(&["vm", "start", "vm1"]).code, 0);
    assert_eq!(cluster.run(&["vm", "stop", "vm1"]).code, 0);
    for command in ["resume", "pause"] {
        let refused = cluster.run(&[command, "ring"]);
        assert_eq!(refused.code, 5, "{refused:?}");
    }
    assert_eq!(states(&cluster), ["stopped", "running"]);
}

/// Somebody sits down at a host, and goes; an operator's own pause is none of their business.
#[test]
fn a_deployment_gives_way_to_the_users_of_its_hosts() {
    let mut cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    let words = cluster.run(&["pause", "ring", "--for-user"]);
    assert!(words.code == 0 && words.stdout.contains("whenever somebody sits down"), "{words:?}");
    assert_eq!(cluster.json(&["status"])["giving_way"], json!(["ring"]));
    assert_eq!(states(&cluster), ["running", "running"]);

    hosts[1].set_user_here(true);
    wait_until("ring is paused", || states(&cluster) == ["stopped", "stopped"]);
    let shown = || cluster.json(&["status"])["paused"].clone();
    assert_eq!(shown(), json!([{ "deployment": "ring", "snapshot": "ring-000001", "for_user": true }]));
    assert!(cluster.run(&["status"]).stdout.contains("ring in ring-000001; it goes on when nobody sits"));
    // A coordinator that comes later knows why it was paused.
    cluster.kill_daemon();
    cluster.start_daemon();
    cluster.wait_for_vms(2);
    hosts[1].set_user_here(false);
    wait_until("ring goes on", || states(&cluster) == ["running", "running"]);
    assert_eq!(count(&hosts[1], "vm2", "Restore"), 1);

    let off = cluster.json(&["pause", "ring", "--for-user", "off"]);
    assert_eq!(off["for_user"], json!({ "deployment": "ring", "on": false }));
    hosts[0].set_user_here(true);
    assert_eq!(cluster.run(&["pause", "web", "--for-user"]).code, 4);
    cluster.json(&["pause", "ring"]);
    cluster.json(&["pause", "ring", "--for-user", "on"]);
    hosts[0].set_user_here(false);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(states(&cluster), ["stopped", "stopped"], "what an operator has paused stays paused");
}

//! Files that have rotted on the host where their VM is to run.

use serde_json::Value;

use crate::support::host::{Fault, Host};
use crate::support::{Cluster, Ended, wait_until};

const ID: &str = "ring-000001";

/// vm1 on h1, and copies of its files on so many hosts in all.
fn taken(replicas: usize) -> (Cluster, Vec<Host>) {
    let mut cluster = Cluster::start();
    assert_eq!(cluster.run(&["pki", "add-host", "h3", "--dir", "pki"]).code, 0);
    cluster.configure(&format!("replicas = {replicas}"));
    let hosts = [("h1", &["vm1"][..]), ("h2", &[][..]), ("h3", &[][..])];
    let hosts = hosts.map(|(name, vms)| Host::start(&cluster, name, vms)).into();
    cluster.wait_for_vms(1);
    wait_until("all are connected", || {
        let hosts = cluster.json(&["host", "list"])["hosts"].clone();
        hosts.as_array().unwrap().iter().filter(|host| host["connected"] == true).count() == 3
    });
    cluster.json(&["snapshot", "take"]);
    wait_until("the copies are made", || holders(&cluster).len() == replicas);
    (cluster, hosts)
}

fn holders(cluster: &Cluster) -> Vec<String> {
    let shown = cluster.json(&["snapshot", "show", ID])["snapshot"].clone();
    serde_json::from_value(shown["copies"]["members"][0]["hosts"].clone()).unwrap()
}

/// What the host was asked for the restore.
fn asked(host: &Host) -> Vec<&'static str> {
    let orders = host.orders("vm1");
    let began = orders.iter().position(|order| *order == "Poll").unwrap();
    orders[began..].to_vec()
}

fn restored(cluster: &Cluster) -> Value {
    cluster.json(&["restore", ID])["restore"].clone()
}

#[test]
fn they_come_anew_from_a_host_that_has_them_too() {
    let (cluster, hosts) = taken(2);
    let before = holders(&cluster);
    hosts[0].fault("Poll", Fault::Damage);
    let restored = restored(&cluster);
    assert_eq!(asked(&hosts[0]), ["Poll", "Fetch", "Poll", "Restore", "Start"]);
    let fetched = &restored["fetched"][0];
    assert_eq!((fetched["from"].as_str(), fetched["to"].as_str()), (Some(&*before[1]), Some("h1")));
    let words = format!("vm1 on host h1 were damaged, and came anew from host {}: ram is damaged", before[1]);
    assert!(restored["warnings"].to_string().contains(&words), "{restored}");
    assert_eq!(holders(&cluster), before, "nobody has them twice");
}

#[test]
fn a_copy_that_is_damaged_as_well_is_passed_over() {
    let (cluster, hosts) = taken(3);
    let before = holders(&cluster);
    hosts[0].fault("Poll", Fault::Damage);
    hosts[0].fault("Fetch", Fault::Damage);
    let restored = restored(&cluster);
    assert_eq!(asked(&hosts[0]), ["Poll", "Fetch", "Fetch", "Poll", "Restore", "Start"]);
    assert_eq!(restored["fetched"][0]["from"], before[2]);
}

#[test]
fn a_copy_that_has_rotted_is_none_until_it_has_come_anew() {
    let (cluster, hosts) = taken(2);
    let holder = holders(&cluster)[1].clone();
    let host = &hosts[if holder == "h2" { 1 } else { 2 }];
    host.fault("Poll", Fault::Damage);
    // Both fetches are refused: what it has is damaged, and so is what the other one gives.
    host.fault("Fetch", Fault::Damage);
    let ended: Ended = cluster.run(&["restore", ID, "--place", &format!("vm1={holder}")]);
    assert_eq!(ended.code, 5, "{ended:?}");
    let words = "vm1: ram is damaged; host h1 has them, too, but: ram is damaged";
    assert!(ended.stderr.contains(words), "{ended:?}");
    // It is made anew like any that is missing.
    let fetches = || host.orders("vm1").iter().filter(|order| **order == "Fetch").count();
    wait_until("it is there again", || fetches() == 3 && holders(&cluster).len() == 2);
}

#[test]
fn without_another_copy_they_are_named_and_asked_for_again() {
    let (cluster, hosts) = taken(1);
    hosts[0].fault("Poll", Fault::Damage);
    assert_eq!(restored(&cluster)["fetched"], Value::Array(Vec::new()));
    assert_eq!(asked(&hosts[0]), ["Poll", "Poll", "Restore", "Start"]);
}

#[test]
fn a_disk_that_spoils_them_again_is_not_trusted() {
    let (cluster, hosts) = taken(3);
    hosts[0].fault("Poll", Fault::Damage);
    hosts[0].fault("Poll", Fault::Damage);
    restored(&cluster);
    assert_eq!(asked(&hosts[0]), ["Poll", "Fetch", "Poll", "Poll", "Restore", "Start"]);
}

/// A host that gets them anew may lose the coordinator and come back; it is told again.
#[test]
fn they_go_on_coming_after_their_host_was_away() {
    let (cluster, hosts) = taken(2);
    hosts[0].fault("Poll", Fault::Damage);
    hosts[0].fault("Fetch", Fault::Reconnect);
    restored(&cluster);
    assert_eq!(asked(&hosts[0]), ["Poll", "Fetch", "Fetch", "Poll", "Restore", "Start"]);
}

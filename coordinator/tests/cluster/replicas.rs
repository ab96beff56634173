//! Copies of snapshots on other hosts: made in the background, used when a host is dead, deleted with the snapshot.

use serde_json::Value;

use crate::support::host::{Fault, Host};
use crate::support::{Cluster, Ended, wait_until};

const ID: &str = "ring-000001";

/// vm1 on h1, vm2 on h2, and h3 without any; files are to lie on so many hosts.
fn three(replicas: u32) -> (Cluster, [Host; 3]) {
    let mut cluster = Cluster::start();
    assert_eq!(cluster.run(&["pki", "add-host", "h3", "--dir", "pki"]).code, 0);
    cluster.configure(&format!("replicas = {replicas}"));
    let hosts = [("h1", &["vm1"][..]), ("h2", &["vm2"][..]), ("h3", &[][..])];
    let hosts = hosts.map(|(name, vms)| Host::start(&cluster, name, vms));
    cluster.wait_for_vms(2);
    wait_until("h3 is connected", || connected(&cluster, "h3"));
    (cluster, hosts)
}

fn connected(cluster: &Cluster, host: &str) -> bool {
    let hosts = cluster.json(&["host", "list"])["hosts"].clone();
    hosts.as_array().unwrap().iter().any(|known| known["name"] == host && known["connected"] == true)
}

fn copies(cluster: &Cluster) -> Value {
    cluster.json(&["snapshot", "show", ID])["snapshot"]["copies"].clone()
}

/// Where the files of the nth member lie.
fn holders(cluster: &Cluster, member: usize) -> Vec<String> {
    let hosts = copies(cluster)["members"][member]["hosts"].clone();
    serde_json::from_value(hosts).unwrap()
}

fn missing(cluster: &Cluster, member: usize) -> String {
    copies(cluster)["members"][member]["missing"].as_str().unwrap_or_default().to_owned()
}

fn wait_for_copies(cluster: &Cluster, count: usize) {
    wait_until("the copies are made", || {
        let copies = copies(cluster);
        let members = copies["members"].as_array().unwrap();
        members
            .iter()
            .all(|member| member["hosts"].as_array().unwrap().len() == count && member["missing"].is_null())
    });
}

fn leave(cluster: &Cluster, host: &Host, name: &str) {
    host.set_away(true);
    wait_until("the host is lost", || !connected(cluster, name));
}

fn fails(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, code, "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "{word}: {ended:?}");
    }
}

#[test]
fn every_part_gets_its_copies_and_all_of_them_go_with_the_snapshot() {
    let (cluster, [one, two, three]) = three(2);
    cluster.json(&["snapshot", "take"]);
    wait_for_copies(&cluster, 2);
    assert_eq!(holders(&cluster, 0)[0], "h1");
    assert_eq!(holders(&cluster, 1)[0], "h2");
    let shown = cluster.run(&["snapshot", "show", ID]).stdout;
    assert!(shown.contains("copies      on 2 of 2 hosts"), "{shown}");
    let listed = cluster.run(&["snapshot", "list"]).stdout;
    assert!(listed.contains("COPIES") && listed.contains("2/2"), "{listed}");

    // A host that is away removes its files when it is back.
    let away = holders(&cluster, 0)[1].clone();
    let host = if away == "h2" { &two } else { &three };
    leave(&cluster, host, &away);
    let deleted = cluster.json(&["snapshot", "delete", ID])["deleted"].clone();
    let waiting = deleted["waiting"].as_array().unwrap();
    assert!(waiting.iter().any(|place| place["vm"] == "vm1" && place["host"] == away), "{deleted}");
    assert_eq!(one.orders("vm1").last(), Some(&"Delete"));
    assert_ne!(host.orders("vm1").last(), Some(&"Delete"));
    host.set_away(false);
    wait_until("its copy is deleted", || host.orders("vm1").last() == Some(&"Delete"));
    wait_until("nothing is left", || cluster.run(&["snapshot", "show", ID]).code == 4);
}

#[test]
fn a_deployment_may_want_more_than_the_others_and_one_that_wants_none_gets_none() {
    let (mut cluster, [one, two, three]) = three(1);
    cluster.json(&["snapshot", "take"]);
    std::thread::sleep(std::time::Duration::from_secs(3));
    for (host, vm) in [(&one, "vm2"), (&two, "vm1"), (&three, "vm1"), (&three, "vm2")] {
        assert_eq!(host.orders(vm), [""; 0]);
    }
    assert!(!cluster.run(&["snapshot", "show", ID]).stdout.contains("copies"));
    // Snapshots that are there already get theirs, too.
    let config = std::fs::read_to_string(cluster.path("coordinator.toml")).unwrap();
    std::fs::write(cluster.path("coordinator.toml"), config + "[deployment.ring]\nreplicas = 3\n").unwrap();
    cluster.configure("");
    wait_for_copies(&cluster, 3);
    assert_eq!(one.orders("vm2"), ["Fetch"]);
    assert_eq!(three.orders("vm1"), ["Fetch"]);
}

/// I3: a copy of what did not commit would be one of nothing.
#[test]
fn what_was_aborted_is_never_copied() {
    let (cluster, [one, two, three]) = three(3);
    two.fault("Take", Fault::Refuse);
    assert_eq!(cluster.run(&["snapshot", "take"]).code, 5);
    std::thread::sleep(std::time::Duration::from_secs(3));
    for (host, vm) in [(&one, "vm2"), (&two, "vm1"), (&three, "vm1")] {
        assert!(!host.orders(vm).contains(&"Fetch"));
    }
    assert!(copies(&cluster).is_null());
}

#[test]
fn a_dead_host_is_replaced_by_one_with_a_copy_and_nothing_is_moved() {
    let (cluster, [one, two, three]) = three(2);
    cluster.json(&["snapshot", "take"]);
    wait_for_copies(&cluster, 2);
    let holder = holders(&cluster, 0)[1].clone();
    leave(&cluster, &one, "h1");
    let place = format!("vm1={holder}");
    fails(
        &cluster.run(&["restore", ID]),
        5,
        &["host h1 is not connected", &format!("run `unasnap restore {ID} --place {place}`")],
    );
    let restored = cluster.json(&["restore", ID, "--place", &place])["restore"].clone();
    assert_eq!(restored["fetched"], Value::Array(Vec::new()));
    let host = if holder == "h2" { &two } else { &three };
    assert_eq!(host.orders("vm1"), ["Fetch", "Poll", "Restore", "Start"], "it fetched it as a copy");
}

#[test]
fn a_dead_hosts_vm_is_restored_on_a_third_host_from_a_copy() {
    let (cluster, [one, two, three]) = three(2);
    cluster.json(&["snapshot", "take"]);
    wait_for_copies(&cluster, 2);
    let holder = holders(&cluster, 0)[1].clone();
    let (to, host) = if holder == "h2" { ("h3", &three) } else { ("h2", &two) };
    leave(&cluster, &one, "h1");
    let restored = cluster.json(&["restore", ID, "--place", &format!("vm1={to}")])["restore"].clone();
    assert_eq!(restored["fetched"][0]["from"], holder);
    assert_eq!(host.orders("vm1"), ["Fetch", "Poll", "Restore", "Start"]);
}

#[test]
fn without_a_copy_the_error_names_the_host_that_has_the_only_one() {
    let (cluster, [one, _two, _three]) = three(1);
    cluster.json(&["snapshot", "take"]);
    leave(&cluster, &one, "h1");
    fails(
        &cluster.run(&["restore", ID, "--place", "vm1=h2"]),
        5,
        &["the files of vm1 in snapshot ring-000001 lie only on host h1", "not connected"],
    );
    fails(&cluster.run(&["restore", ID]), 5, &["the only copies", "(vm1 on h1)"]);
}

#[test]
fn a_damaged_copy_is_refused_and_another_one_is_taken() {
    let (cluster, [_one, two, three]) = three(2);
    cluster.json(&["snapshot", "take"]);
    wait_for_copies(&cluster, 2);
    let holder = holders(&cluster, 0)[1].clone();
    let (to, host) = if holder == "h2" { ("h3", &three) } else { ("h2", &two) };
    host.fault("Fetch", Fault::Damage);
    let place = format!("vm1={to}");
    let restored = cluster.json(&["restore", ID, "--place", &place])["restore"].clone();
    assert_eq!(restored["fetched"][0]["from"], holder);
    let said = format!("the files of vm1 come from host {holder}, not from h1: ram is damaged");
    assert!(restored["warnings"].to_string().contains(&said), "{restored}");
}

#[test]
fn where_no_host_has_space_it_is_said_and_made_good_later() {
    let (cluster, hosts) = three(2);
    hosts.iter().for_each(|host| host.set_free(1 << 20));
    hosts[2].serve(None);
    leave(&cluster, &hosts[2], "h3");
    hosts[2].set_away(false);
    wait_until("h3 is connected", || connected(&cluster, "h3"));
    std::thread::sleep(std::time::Duration::from_millis(1500));
    cluster.json(&["snapshot", "take"]);
    wait_until("it is said", || missing(&cluster, 0).contains("h2 has room for 1 MB, and 3 MB are needed"));
    assert!(missing(&cluster, 0).contains("h3 gives no files to other hosts"), "{}", missing(&cluster, 0));
    let shown = cluster.run(&["snapshot", "show", ID]).stdout;
    assert!(shown.contains("copies      on 1 of 2 hosts"), "{shown}");
    leave(&cluster, &hosts[2], "h3");
    assert!(missing(&cluster, 0).contains("h3 is not connected"));
    assert_eq!(hosts[1].orders("vm1"), [""; 0]);
    hosts.iter().for_each(|host| host.set_free(5 << 30));
    wait_for_copies(&cluster, 2);
    assert_eq!(holders(&cluster, 0), ["h1", "h2"]);
}

#[test]
fn what_fails_is_tried_again_and_a_coordinator_that_starts_goes_on() {
    let (mut cluster, [one, two, three]) = three(2);
    three.set_free(1 << 20);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    two.fault("Fetch", Fault::Refuse);
    // It is lost, as with an agent that dies.
    one.fault("Fetch", Fault::Ignore);
    cluster.json(&["snapshot", "take"]);
    wait_until("it is said", || missing(&cluster, 0).contains("from h1 to h2: QEMU died; tried again in"));
    wait_until("it comes", || missing(&cluster, 1).contains("on its way from h2 to h1"));
    assert_eq!((two.orders("vm1"), one.orders("vm2")), (vec!["Fetch"], vec!["Fetch"]));
    cluster.kill_daemon();
    cluster.start_daemon();
    cluster.wait_for_vms(2);
    wait_for_copies(&cluster, 2);
    assert_eq!((two.orders("vm1"), one.orders("vm2")), (vec!["Fetch"; 2], vec!["Fetch"; 2]));
    assert_eq!(three.orders("vm1"), [""; 0]);
}

#[test]
fn copies_are_verified_like_what_they_are_copies_of() {
    let (cluster, hosts) = three(2);
    assert_eq!(cluster.run(&["snapshot", "take"]).code, 0);
    wait_for_copies(&cluster, 2);
    let whole = cluster.json(&["snapshot", "verify", ID]);
    let members = whole["verified"]["members"].as_array().unwrap();
    let part =
        |part: &Value| (part["vm"].as_str().unwrap().to_owned(), part["host"].as_str().unwrap().to_owned());
    let read: Vec<_> = members.iter().map(part).collect();
    let there: Vec<_> = [("vm1", 0), ("vm2", 1)]
        .into_iter()
        .flat_map(|(vm, member)| holders(&cluster, member).into_iter().map(move |host| (vm.to_owned(), host)))
        .collect();
    assert_eq!(read.len(), 4);
    assert!(there.iter().all(|part| read.contains(part)), "{there:?} {read:?}");

    let copy = holders(&cluster, 0).remove(1);
    let at = ["h1", "h2", "h3"].iter().position(|host| *host == copy).unwrap();
    hosts[at].fault("Verify", Fault::Refuse);
    fails(&cluster.run(&["snapshot", "verify", ID]), 5, &[&format!("vm1 on {copy}: QEMU died")]);
    leave(&cluster, &hosts[at], &copy);
    fails(
        &cluster.run(&["snapshot", "verify", ID]),
        5,
        &[&format!("vm1 on {copy}: its host {copy} is not connected")],
    );
}

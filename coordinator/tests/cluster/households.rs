//! VMs that come and go, and disks that they share.

use crate::support::host::Host;
use crate::support::{Cluster, Ended, wait_until};

fn fails(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, code, "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "{word}: {ended:?}");
    }
}

fn two_hosts(cluster: &Cluster) -> [Host; 2] {
    let hosts = [Host::start(cluster, "h1", &["vm1"]), Host::start(cluster, "h2", &["vm2"])];
    cluster.wait_for_vms(2);
    hosts
}

const CREATE: [&str; 9] =
    ["vm", "create", "node", "--host", "h1", "--deployment", "ring", "--base", "debian"];

/// Names of all VMs, with `-` before those that no host reports.
fn vms(cluster: &Cluster) -> Vec<String> {
    let list = cluster.json(&["vm", "list"]);
    let name = |vm: &serde_json::Value| {
        let mark = if vm["state"].is_null() { "-" } else { "" };
        format!("{mark}{}", vm["name"].as_str().unwrap())
    };
    list["vms"].as_array().unwrap().iter().map(name).collect()
}

#[test]
fn vms_are_made_and_deleted_while_hosts_run() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    let created = cluster.run(&CREATE);
    assert!(created.code == 0 && created.stdout.starts_with("created node on h1 in "), "{created:?}");
    // At once, and not with the next inventory.
    assert_eq!(vms(&cluster), ["node", "vm1", "vm2"]);
    assert_eq!(cluster.json(&["vm", "show", "node"])["vm"]["state"], "stopped");
    let again = cluster.json(&CREATE);
    assert_eq!(
        (&again["created"][0]["vm"], &again["created"][0]["changed"]),
        (&"node".into(), &false.into())
    );
    let cloned = cluster.json(&["vm", "clone", "node", "twin", "--addresses", "10.0.0.9"]);
    assert_eq!((&cloned["created"][0]["vm"], &cloned["created"][0]["host"]), (&"twin".into(), &"h1".into()));
    assert_eq!(cluster.run(&["vm", "start", "node"]).code, 0);
    fails(&cluster.run(&["vm", "delete", "node"]), 5, &["VM node runs"]);
    assert_eq!(cluster.run(&["vm", "delete", "node", "--force"]).code, 0);
    assert_eq!(cluster.json(&["vm", "delete", "twin"])["deleted"], "twin");
    assert_eq!(vms(&cluster), ["vm1", "vm2"]);
    fails(&cluster.run(&["vm", "delete", "node"]), 4, &["no VM is called node"]);
    fails(&cluster.run(&["vm", "clone", "node", "x"]), 4, &["no VM is called node"]);
    assert_eq!(hosts[1].tasks(), [] as [&str; 0]);
}

#[test]
fn a_replica_is_made_of_frozen_disks_on_another_host() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    assert_eq!(cluster.run(&CREATE).code, 0);
    let replicate = |name: &'static str, host: &'static str| {
        ["vm", "replicate", "node", name, "--host", host, "--addresses", "10.0.0.9", "--rate", "3"]
    };
    assert_eq!(cluster.run(&["vm", "start", "node"]).code, 0);
    fails(&cluster.run(&replicate("twin", "h2")), 5, &["VM node is not stopped"]);
    assert_eq!(cluster.run(&["vm", "stop", "node", "--force"]).code, 0);
    for (name, host, code, words) in [
        ("twin", "h1", 5, "node lives on host h1: `unasnap vm clone`"),
        ("twin", "h9", 4, "no host is called h9"),
        ("vm1", "h2", 5, "host h1 has VM vm1; choose another name"),
    ] {
        fails(&cluster.run(&replicate(name, host)), code, &[words]);
    }
    assert!(hosts[1].house(|house| house.replica.is_none()), "nothing has come of them");

    let made = cluster.json(&replicate("twin", "h2"));
    let line = &made["created"][0];
    assert_eq!((&line["vm"], &line["host"], &line["changed"]), (&"twin".into(), &"h2".into(), &true.into()));
    let wanted = hosts[1].house(|house| house.replica.take()).unwrap();
    let source = wanted.source.unwrap();
    assert_eq!((source.host.as_str(), source.digest, wanted.per_second), ("h1", [5; 32], Some(3_000_000)));
    assert_eq!((wanted.clone.of.as_str(), wanted.clone.addresses.len()), ("node", 1));
    assert_eq!(vms(&cluster), ["node", "twin", "vm1", "vm2"]);
    assert_eq!(hosts[0].tasks(), ["vm create", "vm replicate", "vm replicate"], "it froze, twice");
    assert_eq!(cluster.json(&replicate("twin", "h2"))["created"][0]["changed"], false, "repeated");

    // Nothing is known of what a host did that went away with it.
    hosts[1].house(|house| house.breaks_after = Some("vm replicate"));
    let broken = cluster.run(&replicate("third", "h2"));
    fails(&broken, 5, &["the connection to host h2 broke; repeat the command"]);
    wait_until("it is back", || vms(&cluster).contains(&"vm2".to_owned()));
    hosts[0].set_away(true);
    wait_until("its host is away", || vms(&cluster).contains(&"-node".to_owned()));
    fails(&cluster.run(&replicate("fourth", "h2")), 5, &["h1 is not connected"]);
}

#[test]
fn several_are_called_by_number_and_their_addresses_count_up() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    let nic = ["--count", "3", "--nic", "bridge=br0,address=10.0.9.255"];
    let created = cluster.json(&[&CREATE[..], &nic].concat());
    let names: Vec<_> = created["created"].as_array().unwrap().iter().map(|vm| &vm["vm"]).collect();
    assert_eq!(names, ["node-1", "node-2", "node-3"]);
    fails(
        &cluster.run(&[&CREATE[..], &["--count", "2", "--nic", "bridge=br0,mac=52:54:00:00:00:01"]].concat()),
        2,
        &["mac=auto"],
    );
    fails(&cluster.run(&[&CREATE[..], &["--nic", "br0"]].concat()), 2, &["is not bridge="]);
    fails(&cluster.run(&[&CREATE[..2], &["../x"], &CREATE[3..]].concat()), 2, &["not a valid name"]);
    fails(&cluster.run(&[&CREATE[..4], &["h9"], &CREATE[5..]].concat()), 4, &["no host is called h9"]);
    assert_eq!(hosts[0].tasks().len(), 3);
}

#[test]
fn names_and_addresses_are_unique() {
    let cluster = Cluster::start();
    let _hosts = two_hosts(&cluster);
    let taken = [&CREATE[..2], &["vm2"], &CREATE[3..]].concat();
    fails(&cluster.run(&taken), 5, &["host h2 has VM vm2"]);
    let address = ["--nic", "bridge=br0,address=10.0.0.1"];
    fails(&cluster.run(&[&CREATE[..], &address].concat()), 5, &["has the address 10.0.0.1"]);
}

#[test]
fn what_is_repeated_after_a_lost_answer_is_done_once() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    hosts[0].break_after_task();
    fails(&cluster.run(&CREATE), 5, &["the connection to host h1 broke", "not done twice"]);
    wait_until("it is back", || cluster.run(&CREATE).code == 0);
    hosts[0].break_after_task();
    fails(&cluster.run(&["vm", "delete", "node"]), 5, &["the connection to host h1 broke"]);
    // Told at the next hello, or repeated.
    wait_until("it is gone", || vms(&cluster) == ["vm1", "vm2"]);
}

/// A definition that is broken must not make a deployment smaller: its next snapshot would lack a member.
#[test]
fn a_vm_that_is_not_reported_is_missed_until_its_host_says_that_it_is_gone() {
    let mut cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    hosts[0].hide("vm1", true);
    wait_until("it is missed", || vms(&cluster) == ["-vm1", "vm2"]);
    fails(&cluster.run(&["snapshot", "take"]), 5, &["host h1 does not report VM vm1 any more"]);
    cluster.kill_daemon();
    cluster.start_daemon();
    cluster.wait_for_vms(1);
    wait_until("its host was asked", || hosts[0].missed() == ["vm1"]);
    assert_eq!(vms(&cluster), ["-vm1", "vm2"]);
    hosts[0].hide("vm1", false);
    cluster.wait_for_vms(2);
    assert_eq!(cluster.run(&["snapshot", "take"]).code, 0);

    // Its host was not connected when somebody removed it.
    hosts[1].set_away(true);
    wait_until("its host is away", || vms(&cluster) == ["vm1", "-vm2"]);
    hosts[1].lose("vm2");
    hosts[1].set_away(false);
    wait_until("it is forgotten", || vms(&cluster) == ["vm1"]);
    assert_eq!(hosts[1].missed(), ["vm2"]);
}

#[test]
fn snapshots_of_a_vm_are_lost_with_it_only_if_that_is_wanted() {
    let cluster = Cluster::start();
    let _hosts = two_hosts(&cluster);
    assert_eq!(cluster.run(&["snapshot", "take"]).code, 0);
    fails(&cluster.run(&["vm", "delete", "vm1", "--force"]), 5, &["ring-000001", "--lose-snapshots"]);
    assert_eq!(cluster.run(&["vm", "delete", "vm1", "--force", "--lose-snapshots"]).code, 0);
    assert_eq!(vms(&cluster), ["vm2"]);
    // Its host removes what is left of a VM that it does not have.
    assert_eq!(
        cluster.json(&["snapshot", "delete", "ring-000001"])["deleted"]["waiting"].as_array().unwrap().len(),
        0
    );
}

#[test]
fn no_vm_comes_or_goes_while_something_is_under_way_for_its_deployment() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    assert_eq!(cluster.run(&CREATE).code, 0);
    assert_eq!(cluster.run(&["vm", "start", "node"]).code, 0);
    hosts[0].hold_saves(true);
    let taking = cluster.spawn(&["snapshot", "take"]);
    wait_until("it is cut", || hosts[0].orders("vm1").contains(&"Take"));
    let other = [&CREATE[..2], &["other"], &CREATE[3..]].concat();
    for command in [&other[..], &["vm", "delete", "node"], &["vm", "clone", "node", "twin"]] {
        fails(&cluster.run(command), 5, &["snapshot ring-000001 of deployment ring is under way"]);
    }
    hosts[0].hold_saves(false);
    assert_eq!(taking.finish().code, 0);

    hosts[0].set_mute(true);
    let mut creating = cluster.spawn(&other);
    wait_until("it is under way", || hosts[0].tasks().len() == 2);
    let words = ["`vm create` of other", "is under way"];
    for command in [&["snapshot", "take"][..], &["restore"], &["vm", "stop", "vm2"], &other] {
        fails(&cluster.run(command), 5, &words);
    }
    hosts[0].set_away(true);
    wait_until("it has ended", || creating.has_ended());
}

#[test]
fn several_are_made_side_by_side_and_none_has_the_address_of_another() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    hosts[0].set_mute(true);
    let with = |name, address| {
        let nic = ["--nic", address];
        [&CREATE[..2], &[name], &CREATE[3..], &nic].concat()
    };
    let mut one = cluster.spawn(&with("one", "bridge=br0,address=10.0.9.1"));
    wait_until("it is under way", || hosts[0].tasks().len() == 1);
    fails(&cluster.run(&with("two", "bridge=br0,address=10.0.9.1")), 5, &["one has the address 10.0.9.1"]);
    let mut two = cluster.spawn(&with("two", "bridge=br0,address=10.0.9.2"));
    wait_until("both are under way", || hosts[0].tasks().len() == 2);
    fails(&cluster.run(&["vm", "delete", "vm2", "--force"]), 5, &["`vm create` of", "is under way"]);
    hosts[0].set_away(true);
    wait_until("they have ended", || one.has_ended() && two.has_ended());
}

#[test]
fn bases_of_all_hosts_are_listed() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    let listed = cluster.json(&["disk", "list"]);
    let disks = listed["disks"].as_array().unwrap();
    assert_eq!(disks.iter().map(|disk| &disk["host"]).collect::<Vec<_>>(), ["h1", "h2"]);
    assert_eq!(disks[0]["users"], serde_json::json!(["vm1"]));
    assert_eq!(cluster.json(&["disk", "list", "--host", "h2"])["disks"].as_array().unwrap().len(), 1);
    let preloaded = cluster.json(&["disk", "preload", "/srv/images/debian.qcow2", "--host", "h1"]);
    assert_eq!(preloaded["disk"]["virtual_bytes"], 2_u64 << 30);
    assert_eq!(cluster.json(&["disk", "remove", "debian", "--host", "h1"])["removed"], "debian");
    hosts[1].set_away(true);
    wait_until("its host is away", || vms(&cluster) == ["vm1", "-vm2"]);
    fails(&cluster.run(&["disk", "list", "--host", "h2"]), 5, &["host h2 is not connected"]);
    assert_eq!(cluster.json(&["disk", "list"])["disks"].as_array().unwrap().len(), 1);
}

#[test]
fn files_are_added_up_per_host() {
    let cluster = Cluster::start();
    let _hosts = two_hosts(&cluster);
    assert_eq!(cluster.run(&CREATE).code, 0);
    let one = cluster.json(&["files", "vm1"]);
    assert_eq!((&one["vm"], &one["totals"]["needed_files"]), (&"vm1".into(), &2.into()));
    let all = cluster.json(&["files", "--deployment", "ring"]);
    assert_eq!(all["vms"].as_array().unwrap().len(), 3);
    // Two VMs of h1 share the base; that of h2 is another file.
    assert_eq!(all["totals"]["needed_files"], 5);
    assert_eq!(all["totals"]["needed_bytes"], (2 * 300 + 3) << 20);
    assert_eq!(all["totals"]["needed_without_base_bytes"], 3 << 20);
    fails(&cluster.run(&["files", "--deployment", "web"]), 4, &["no VM belongs to a deployment web"]);
    fails(&cluster.run(&["files", "vm9"]), 4, &["no VM is called vm9"]);
    fails(&cluster.run(&["files", "vm1", "--snapshot", "ring-000001"]), 4, &["ring-000001"]);
    fails(&cluster.run(&["files", "vm1", "--qcow2", "x"]), 2, &["cannot be used with"]);
    fails(&cluster.run(&["files"]), 2, &["required"]);
    assert_eq!(cluster.run(&["vm", "delete", "node"]).code, 0);
    assert_eq!(cluster.run(&["snapshot", "take"]).code, 0);
    assert_eq!(cluster.json(&["files", "vm2", "--snapshot", "ring-000001"])["target"], "ring-000001");
}

#[test]
fn each_role_may_do_what_is_its_own() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    for role in ["view", "operate"] {
        assert_eq!(cluster.run(&["pki", "operator", role, "--role", role, "--dir", "pki"]).code, 0);
    }
    cluster.use_certificate("operator-view");
    assert_eq!(cluster.run(&["disk", "list"]).code, 0);
    let preload = ["disk", "preload", "/x", "--host", "h1"];
    for command in
        [&CREATE[..], &["vm", "clone", "vm1", "x"], &preload, &["disk", "remove", "x", "--host", "h1"]]
    {
        fails(&cluster.run(command), 3, &["needs the role operate"]);
    }
    cluster.use_certificate("operator-operate");
    assert_eq!(cluster.run(&CREATE).code, 0);
    fails(&cluster.run(&["vm", "delete", "node"]), 3, &["needs the role admin"]);
    assert_eq!(hosts[0].tasks(), ["disk list", "vm create"]);
}

/// A host that lies about another's VM changes nothing.
#[test]
fn a_host_cannot_say_that_a_vm_of_another_is_gone() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    // A host that is there would report it again.
    hosts[1].set_away(true);
    wait_until("its host is away", || vms(&cluster) == ["vm1", "-vm2"]);
    hosts[0].say_gone("vm2");
    wait_until("it has said so", || hosts[0].has_said());
    // What came after it was heard, so it was, too.
    assert_eq!(cluster.run(&["vm", "pause", "vm1"]).code, 0);
    assert_eq!(vms(&cluster), ["vm1", "-vm2"]);
}

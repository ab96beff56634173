//! Restores with VMs on other hosts: who is asked for what in which order, and what becomes of hosts that were away.

use serde_json::Value;

use crate::support::host::{Fault, Host};
use crate::support::{Cluster, Ended, wait_until};

fn pair(cluster: &Cluster) -> [Host; 2] {
    let hosts = [Host::start(cluster, "h1", &["vm1", "vm2"]), Host::start(cluster, "h2", &["vm3"])];
    cluster.wait_for_vms(3);
    hosts
}

fn lives(cluster: &Cluster, vm: &str) -> Value {
    cluster.json(&["vm", "show", vm])["vm"]["host"].clone()
}

fn names(host: &Host) -> Vec<String> {
    host.vms().into_iter().map(|(vm, _)| vm).collect()
}

fn lost(cluster: &Cluster, host: &str) {
    wait_until("the host is lost", || {
        let hosts = cluster.json(&["host", "list"])["hosts"].clone();
        hosts.as_array().unwrap().iter().any(|known| known["name"] == host && known["connected"] == false)
    });
}

fn fails(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, code, "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "{word}: {ended:?}");
    }
}

#[test]
fn a_vm_is_restored_on_another_host_and_lives_there_from_then_on() {
    let cluster = Cluster::start();
    let [one, two] = pair(&cluster);
    cluster.json(&["snapshot", "take"]);
    let restored = cluster.json(&["restore", "ring-000001", "--place", "vm1=h2"])["restore"].clone();
    assert_eq!(restored["members"][0]["host"], "h2");
    assert_eq!(restored["members"][1]["host"], "h1");
    let fetched = &restored["fetched"][0];
    assert_eq!(
        (&fetched["vm"], &fetched["from"], &fetched["to"]),
        (&"vm1".into(), &"h1".into(), &"h2".into())
    );
    assert_eq!((&fetched["sent"], &fetched["total"]), (&(1 << 20).into(), &(3 << 20).into()));
    // The instance on the old host is dead before the new one is loaded.
    assert_eq!(two.orders("vm1"), ["Fetch", "Poll", "Restore", "Start"]);
    assert_eq!(one.orders("vm1").last(), Some(&"Evict"));
    assert_eq!(one.orders("vm2")[5..], ["Poll", "Restore", "Start"]);
    assert_eq!(
        (names(&one), names(&two)),
        (vec!["vm2".to_owned()], vec!["vm1".to_owned(), "vm3".to_owned()])
    );
    wait_until("it is reported there", || lives(&cluster, "vm1") == "h2");

    // Its next snapshot is taken there; the first one is restored where the VM lives, and its files are there.
    let taken = cluster.json(&["snapshot", "take"])["snapshot"].clone();
    assert_eq!(taken["members"][0]["host"], "h2");
    let again = cluster.json(&["restore", "ring-000001"])["restore"].clone();
    assert_eq!(again["members"][0]["host"], "h2");
    assert_eq!(again["fetched"].as_array().unwrap().len(), 0);
    // Both copies go with it.
    let deleted = cluster.json(&["snapshot", "delete", "ring-000001"])["deleted"].clone();
    assert_eq!(deleted["waiting"].as_array().unwrap().len(), 0);
    assert_eq!(one.orders("vm1").last(), Some(&"Delete"));
    assert_eq!(two.orders("vm1").last(), Some(&"Delete"));
}

#[test]
fn two_vms_move_at_once_and_one_of_them_comes_back() {
    let cluster = Cluster::start();
    let [one, two] = pair(&cluster);
    cluster.json(&["snapshot", "take"]);
    cluster.json(&["restore", "--place", "vm1=h2,vm2=h2"]);
    assert_eq!((names(&one), names(&two).len()), (vec![], 3));
    wait_until("both are reported", || lives(&cluster, "vm2") == "h2" && lives(&cluster, "vm1") == "h2");
    // Its files still lie where the snapshot was taken.
    let back = cluster.json(&["restore", "--place", "vm2=h1"])["restore"].clone();
    assert_eq!(back["fetched"].as_array().unwrap().len(), 0);
    assert_eq!(
        (names(&one), names(&two)),
        (vec!["vm2".to_owned()], vec!["vm1".to_owned(), "vm3".to_owned()])
    );
    assert_eq!(cluster.run(&["snapshot", "take"]).code, 0);
}

#[test]
fn migrate_takes_a_snapshot_unless_one_is_named() {
    let cluster = Cluster::start();
    let [one, _two] = pair(&cluster);
    let migrated = cluster.json(&["vm", "migrate", "vm1", "h2"]);
    assert_eq!(migrated["snapshot"], "ring-000001");
    wait_until("it is reported there", || lives(&cluster, "vm1") == "h2");
    fails(&cluster.run(&["vm", "migrate", "vm1", "h2"]), 5, &["vm1 lives on h2 already"]);
    fails(&cluster.run(&["vm", "migrate", "vm9", "h2"]), 4, &["no VM is called vm9"]);
    fails(&cluster.run(&["vm", "migrate", "vm1", "h9"]), 4, &["no host is called h9"]);
    let back = cluster.json(&["vm", "migrate", "vm1", "h1", "--snapshot", "ring-000001"]);
    assert_eq!(back["snapshot"], "ring-000001");
    assert_eq!(names(&one), ["vm1", "vm2"]);
}

#[test]
fn a_place_that_cannot_be_is_refused_before_anything_is_done() {
    let cluster = Cluster::start();
    let [one, two] = pair(&cluster);
    cluster.json(&["snapshot", "take"]);
    let before = (one.orders("vm1"), two.orders("vm3"));
    let restore = |place: &str| cluster.run(&["restore", "--place", place]);
    fails(&restore("vm9=h2"), 4, &["vm9 is no member of snapshot ring-000001", "vm1, vm2, vm3"]);
    fails(&restore("vm1=h9"), 4, &["no host is called h9"]);
    fails(&restore("vm1=h2,vm1=h1"), 5, &["vm1 is placed twice"]);
    fails(&restore("vm1"), 2, &["is not VM=HOST"]);
    two.serve(None);
    two.set_away(true);
    lost(&cluster, "h2");
    fails(&restore("vm1=h2"), 5, &["host h2 is not connected"]);
    // The files are on a host that is dead.
    fails(
        &restore("vm3=h1"),
        5,
        &["the files of vm3 in snapshot ring-000001 lie only on host h2", "not connected"],
    );
    two.set_away(false);
    cluster.wait_for_vms(3);
    fails(&restore("vm3=h1"), 5, &["h2, which gives no files", "[transfer] listen"]);
    assert_eq!((one.orders("vm1"), two.orders("vm3")), before);
    // Where it lives it may be placed, too.
    assert_eq!(restore("vm1=h1").code, 0);
}

/// Both VMs live on h1, which is away, and have copies of their files on h2.
fn one_is_away(cluster: &Cluster, one: &Host) {
    cluster.json(&["snapshot", "take"]);
    for place in ["vm1=h2,vm2=h2", "vm1=h1,vm2=h1"] {
        cluster.json(&["restore", "--place", place]);
        let host = &place[4..6];
        wait_until("they are reported there", || {
            lives(cluster, "vm1") == host && lives(cluster, "vm2") == host
        });
    }
    one.set_away(true);
    lost(cluster, "h1");
}

#[test]
fn a_host_that_was_away_when_its_vms_were_restored_elsewhere_ends_them_when_it_is_back() {
    let cluster = Cluster::start();
    let [one, two] = pair(&cluster);
    one_is_away(&cluster, &one);
    let restored = cluster.json(&["restore", "--place", "vm1=h2,vm2=h2"])["restore"].clone();
    let warnings = restored["warnings"].to_string();
    assert!(warnings.contains("host h1, on which vm1 lived, is not connected"), "{warnings}");
    assert_eq!(names(&one), ["vm1", "vm2"]);
    let before = one.orders("vm1").len();
    one.set_away(false);
    wait_until("the old instances are ended", || names(&one).is_empty());
    assert_eq!(one.orders("vm1")[before..], ["Evict"]);
    assert_eq!(names(&two), ["vm1", "vm2", "vm3"]);
    wait_until("the next snapshot goes well", || cluster.run(&["snapshot", "take"]).code == 0);
    // It was told once and has confirmed; the next time it says hello there is nothing to tell.
    one.set_away(true);
    one.set_away(false);
    cluster.wait_for_vms(3);
    assert_eq!(one.orders("vm1").iter().filter(|order| **order == "Evict").count(), 2);
}

/// As soon as it is connected it has to end its instance before anything is loaded.
#[test]
fn a_host_that_comes_back_while_others_are_polled_is_waited_for() {
    let cluster = Cluster::start();
    let [one, two] = pair(&cluster);
    one_is_away(&cluster, &one);
    let restoring = cluster.spawn(&["restore", "--place", "vm1=h2", "--json"]);
    wait_until("it waits for h1", || two.orders("vm1").last() == Some(&"Poll"));
    one.set_away(false);
    let ended = restoring.finish();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(!ended.stdout.contains("is not connected"), "{ended:?}");
    assert_eq!(
        (names(&one), names(&two)),
        (vec!["vm2".to_owned()], vec!["vm1".to_owned(), "vm3".to_owned()])
    );
}

#[test]
fn what_breaks_off_is_named_and_goes_well_the_next_time() {
    for (order, host, fault, word) in [
        ("Fetch", 1, Fault::Refuse, "failed in FETCH: vm1"),
        ("Evict", 0, Fault::Refuse, "failed in EVICT: vm1"),
        ("Evict", 0, Fault::Reconnect, "failed in EVICT: vm1"),
        ("Restore", 1, Fault::Refuse, "failed in RESTORE: vm"),
    ] {
        let cluster = Cluster::start();
        let hosts = pair(&cluster);
        cluster.json(&["snapshot", "take"]);
        hosts[host].fault(order, fault);
        fails(&cluster.run(&["restore", "--place", "vm1=h2"]), 5, &[word]);
        wait_until(&format!("{order}: the restore goes well"), || {
            cluster.run(&["restore", "--place", "vm1=h2"]).code == 0
        });
        assert_eq!(names(&hosts[0]), ["vm2"], "{order}");
        wait_until("the next snapshot goes well", || cluster.run(&["snapshot", "take"]).code == 0);
    }
}

/// A host that fetches may lose the coordinator and come back; it is told again.
#[test]
fn a_fetch_goes_on_after_its_host_was_away() {
    let cluster = Cluster::start();
    let [_one, two] = pair(&cluster);
    cluster.json(&["snapshot", "take"]);
    two.fault("Fetch", Fault::Reconnect);
    assert_eq!(cluster.run(&["restore", "--place", "vm1=h2"]).code, 0);
    assert_eq!(two.orders("vm1"), ["Fetch", "Fetch", "Poll", "Restore", "Start"]);
}

/// The instance that has to be ended is no other VM's of that name.
#[test]
fn the_name_of_a_deleted_vm_is_free_when_every_host_that_it_has_left_has_confirmed() {
    let cluster = Cluster::start();
    let [one, two] = pair(&cluster);
    one_is_away(&cluster, &one);
    cluster.json(&["restore", "--place", "vm1=h2,vm2=h2"]);
    wait_until("it is reported there", || lives(&cluster, "vm1") == "h2");
    assert_eq!(cluster.run(&["vm", "delete", "vm1", "--force", "--lose-snapshots"]).code, 0);
    let create =
        || cluster.run(&["vm", "create", "vm1", "--host", "h2", "--deployment", "ring", "--base", "debian"]);
    fails(&create(), 5, &["an earlier instance of vm1 may run on a host that is away"]);
    one.set_away(false);
    wait_until("the old instances are ended", || names(&one).is_empty());
    wait_until("the name is free", || create().code == 0);
    wait_until("it is reported", || lives(&cluster, "vm1") == "h2");
    assert!(names(&two).contains(&"vm1".to_owned()));
}

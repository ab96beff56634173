//! Copies of snapshots on another host, with real VMs: they are all that is left when a host is lost.

use crate::cluster::Cluster;
use crate::household::{count, wait_count};

/// How far the guest had come when it was cut: it says nothing before it is restored.
fn begins_at(cluster: &Cluster, vm: &str) -> u64 {
    let console = std::fs::read_to_string(cluster.path(&format!("h2/vms/{vm}/console.log"))).unwrap();
    let ticks = console.lines().filter_map(|line| line.trim().strip_prefix("tick ")?.parse().ok());
    ticks.min().unwrap()
}

#[test]
fn a_deployment_lives_on_after_the_host_with_its_files_was_lost() {
    let mut cluster = Cluster::start(&[], &["host", "memory"]);
    cluster.start_second_host();
    cluster.restart_coordinator("replicas = 2");
    let vms = ["vm1", "vm2"];
    vms.iter().for_each(|vm| wait_count(&cluster, vm, 5));
    cluster.wait("all guests answer", |cluster| {
        let list = cluster.json(&["vm", "list"])["vms"].as_array().unwrap().clone();
        list.iter().all(|vm| vm["guest_agent"] == true)
    });
    let before = vms.map(|vm| count(&cluster, vm));
    let taken = cluster.json(&["snapshot", "take"])["snapshot"]["id"].as_str().unwrap().to_owned();
    let after = vms.map(|vm| count(&cluster, vm));
    cluster.wait("the copies are made", |cluster| {
        let shown = cluster.json(&["snapshot", "show", &taken])["snapshot"]["copies"]["members"].clone();
        shown.as_array().unwrap().iter().all(|member| member["hosts"].as_array().unwrap().len() == 2)
    });
    let whole = cluster.json(&["snapshot", "verify", &taken]);
    assert!(whole.to_string().contains("h2"), "{whole}");

    cluster.lose_host();
    let (code, _) = cluster.attempt(&["restore", &taken]);
    assert!(code != 0, "its host is lost, and nobody has said where else it is to live");
    cluster.json(&["restore", &taken, "--place", "vm1=h2,vm2=h2"]);
    for (vm, (before, after)) in vms.iter().zip(before.into_iter().zip(after)) {
        wait_count(&cluster, vm, after + 5);
        let begins = begins_at(&cluster, vm);
        assert!(
            (before..=after + 1).contains(&begins),
            "{vm} was cut from {before} to {after}, and began at {begins}"
        );
    }
    // And there it is a deployment like any other.
    cluster.wait("all guests answer", |cluster| {
        let list = cluster.json(&["vm", "list"])["vms"].as_array().unwrap().clone();
        list.iter().all(|vm| vm["guest_agent"] == true && vm["host"] == "h2")
    });
    let next = cluster.json(&["snapshot", "take"]);
    assert_eq!(next["snapshot"]["members"].as_array().map(Vec::len), Some(2), "{next}");
}

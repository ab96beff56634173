//! The image catalogue.

use serde_json::{Value, json};

use crate::support::host::Host;
use crate::support::{Cluster, Ended, wait_until};

const PATH: [&str; 2] = ["h1:/srv/images/debian.qcow2", "h2:/srv/images/debian.qcow2"];

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

/// Every version with its hosts, `!` behind those where there is a problem.
fn listed(cluster: &Cluster) -> Vec<String> {
    let list = cluster.json(&["image", "list"]);
    let copy = |copy: &Value| {
        let mark = if copy["problem"].is_null() { "" } else { "!" };
        format!(" {}{mark}", copy["host"].as_str().unwrap())
    };
    let image = |image: &Value| {
        let copies: String = image["copies"].as_array().unwrap().iter().map(copy).collect();
        format!("{}:{}{copies}", image["name"].as_str().unwrap(), image["version"].as_str().unwrap())
    };
    list["images"].as_array().unwrap().iter().map(image).collect()
}

#[test]
fn an_image_is_entered_named_again_and_forgotten() {
    let mut cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    hosts[1].house(|house| house.digest = "cd".repeat(32));
    assert!(cluster.run(&["image", "list"]).stderr.contains("no images yet"));
    let added = cluster.json(&["image", "add", "debian:12.5", PATH[0]]);
    assert_eq!(added["image"]["blake3"], "ab".repeat(32));
    assert_eq!(added["image"]["virtual_bytes"], 2_u64 << 30);
    assert_eq!(
        added["image"]["copies"],
        json!([{"host": "h1", "base": "debian", "path": "/srv/images/debian.qcow2", "users": [], "problem": null}])
    );
    assert_eq!(hosts[0].tasks().last(), Some(&"disk preload"));
    let again = cluster.run(&["image", "add", "debian:12.5", PATH[0]]);
    assert!(again.code == 0 && again.stdout.contains("debian:12.5: qcow2 disk of 2.0 GiB"), "{again:?}");
    assert_eq!(cluster.json(&["image", "tag", "debian:12.5", "latest"])["image"]["version"], "latest");

    // It is in the journal.
    cluster.kill_daemon();
    cluster.start_daemon();
    cluster.wait_for_vms(2);
    assert_eq!(listed(&cluster), ["debian:12.5 h1", "debian:latest h1"]);
    let image = &cluster.json(&["image", "list", "debian"])["images"][0];
    assert_eq!(image["copies"][0]["users"], json!(["vm1"]));
    fails(&cluster.run(&["image", "list", "suse"]), 4, &["no image is called suse"]);

    assert_eq!(cluster.json(&["image", "remove", "debian:12.5"])["removed"], "debian:12.5");
    fails(&cluster.run(&["image", "remove", "debian:12.5"]), 4, &["there is no image debian:12.5"]);
    // Its last name.
    fails(&cluster.run(&["image", "remove", "debian"]), 5, &["VMs on host h1 stand on debian:latest: vm1"]);
    assert_eq!(cluster.run(&["vm", "delete", "vm1", "--force"]).code, 0);
    assert_eq!(cluster.run(&["image", "remove", "debian"]).code, 0);
    assert_eq!(listed(&cluster), [] as [&str; 0]);
}

#[test]
fn one_name_and_version_are_one_digest() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    hosts[1].house(|house| house.digest = "cd".repeat(32));
    assert_eq!(cluster.run(&["image", "add", "debian:1", PATH[0]]).code, 0);
    let (ab, cd) = ("ab".repeat(32), "cd".repeat(32));
    fails(
        &cluster.run(&["image", "add", "debian:1", PATH[1]]),
        5,
        &[&ab, "(on h1)", &cd, "/srv/images/debian.qcow2 on h2", "disk remove debian --host h2"],
    );
    assert_eq!(cluster.run(&["image", "add", "debian:2", PATH[1]]).code, 0);
    fails(&cluster.run(&["image", "tag", "debian:1", "2"]), 5, &[&ab, &cd, "debian:2"]);
    assert_eq!(cluster.run(&["image", "tag", "debian:1", "stable"]).code, 0);
    assert_eq!(listed(&cluster), ["debian:1 h1", "debian:2 h2", "debian:stable h1"]);
    // The very same file, there as well: it counts for every name of that digest.
    hosts[1].house(|house| house.digest = "ab".repeat(32));
    assert_eq!(cluster.run(&["image", "add", "debian:1", PATH[1]]).code, 0);
    hosts[1].house(|house| house.lacks_base = true);
    assert_eq!(listed(&cluster), ["debian:1 h1 h2!", "debian:2 h2!", "debian:stable h1 h2!"]);
    let words = "debian:stable on h2: it is no base of host h2 any more";
    assert!(cluster.run(&["image", "list"]).stderr.contains(words));
}

#[test]
fn a_host_that_is_away_may_have_vms_on_an_image() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    hosts[1].house(|house| house.digest = "cd".repeat(32));
    assert_eq!(cluster.run(&["image", "add", "debian", PATH[1]]).code, 0);
    hosts[1].set_away(true);
    wait_until("its host is away", || listed(&cluster) == ["debian:latest h2!"]);
    fails(&cluster.run(&["image", "remove", "debian"]), 5, &["is not known", "host h2 is not connected"]);
    fails(&cluster.run(&["image", "add", "other", PATH[1]]), 5, &["host h2 is not connected"]);
    // Another name can go.
    assert_eq!(cluster.run(&["image", "tag", "debian", "1"]).code, 0);
    assert_eq!(cluster.run(&["image", "remove", "debian"]).code, 0);
    assert_eq!(listed(&cluster), ["debian:1 h2!"]);
}

#[test]
fn what_cannot_be_entered_changes_nothing() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    let add = |image: &str, place: &str| cluster.run(&["image", "add", image, place]);
    fails(&add("debian", "h1:/nowhere/x"), 4, &["there is no /nowhere/x"]);
    fails(&add("debian", "h9:/x"), 4, &["no host is called h9"]);
    fails(&add("debian", "/x"), 2, &["is not HOST:PATH"]);
    fails(&add("debian", "h1:x"), 2, &["is not HOST:PATH"]);
    fails(&add("debian:../x", PATH[0]), 2, &["not a valid version"]);
    fails(&add("Debian", PATH[0]), 2, &["not a valid name"]);
    for digest in ["", "AB", &"zz".repeat(32), &"ab".repeat(33)] {
        hosts[0].house(|house| house.digest = digest.to_owned());
        fails(&add("debian", PATH[0]), 1, &["host h1 does not say what debian is"]);
    }
    hosts[0].break_after_task();
    fails(&add("debian", PATH[0]), 5, &["the connection to host h1 broke"]);
    fails(&cluster.run(&["image", "tag", "debian", "1"]), 4, &["there is no image debian:latest"]);
    assert_eq!(listed(&cluster), [] as [&str; 0]);
}

#[test]
fn who_only_looks_changes_nothing() {
    let cluster = Cluster::start();
    let _hosts = two_hosts(&cluster);
    assert_eq!(cluster.run(&["image", "add", "debian", PATH[0]]).code, 0);
    assert_eq!(cluster.run(&["pki", "operator", "view", "--role", "view", "--dir", "pki"]).code, 0);
    cluster.use_certificate("operator-view");
    assert_eq!(listed(&cluster), ["debian:latest h1 h2"], "a base that was not entered counts, too");
    for command in [
        &["image", "add", "x", PATH[0]][..],
        &["image", "tag", "debian", "1"],
        &["image", "remove", "debian"],
        &["image", "preload", "debian", "h2"],
    ] {
        fails(&cluster.run(command), 3, &["needs the role operate"]);
    }
}

#[test]
fn an_image_is_brought_to_whoever_lacks_it() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    assert_eq!(cluster.run(&["image", "add", "debian:1", PATH[0]]).code, 0);
    hosts[1].house(|house| house.lacks_base = true);
    let preload = |more: &[&str]| cluster.run(&[&["image", "preload", "debian:1"], more].concat());
    for (more, code, words) in [
        (&["h9"][..], 4, "no host is called h9"),
        (&["h2", "--window", "01:00"], 2, "is no window: use two different times of day"),
        (&["h2", "--rate", "0"], 2, "--rate"),
        (&[], 2, "<HOST>"),
    ] {
        fails(&preload(more), code, &[words]);
    }
    fails(&cluster.run(&["image", "preload", "suse", "h2"]), 4, &["there is no image suse:latest"]);

    let done = cluster.json(&["image", "preload", "debian:1", "h2", "h1", "--rate", "3"]);
    let lines = done["preloaded"].as_array().unwrap();
    let lines: Vec<_> =
        lines.iter().map(|line| (&line["host"], &line["base"]["name"], &line["error"])).collect();
    assert_eq!(
        lines,
        [(&json!("h1"), &json!("debian"), &json!(null)), (&json!("h2"), &json!("debian"), &json!(null))]
    );
    let brought = hosts[1].house(|house| house.brought.take()).unwrap();
    assert_eq!(
        (brought.name.as_str(), brought.per_second, brought.within_s),
        ("debian", Some(3_000_000), 3600)
    );
    let sources: Vec<_> =
        brought.sources.iter().map(|source| (source.host.as_str(), source.digest)).collect();
    assert_eq!(sources, [("h1", [0xab; 32])]);
    assert!(hosts[0].house(|house| house.brought.is_none()), "it has it");
    // The catalogue knows it from now on, and nobody is asked for what is there.
    hosts[1].set_away(true);
    wait_until("its host is away", || listed(&cluster) == ["debian:1 h1 h2!"]);
    let part = preload(&["h1", "h2"]);
    fails(&part, 5, &["h2: host h2 is not connected", "debian:1 is not on h2"]);
    assert!(part.stdout.contains("debian:1 on h1: base debian"), "{part:?}");
}

#[test]
fn an_image_that_cannot_be_brought_is_not_entered() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    assert_eq!(cluster.run(&["image", "add", "debian:1", PATH[0]]).code, 0);
    hosts[1].house(|house| house.lacks_base = true);
    // What comes has another digest.
    hosts[1].house(|house| house.digest = "cd".repeat(32));
    let preload = || cluster.run(&["image", "preload", "debian:1", "h2"]);
    fails(&preload(), 5, &["h2: host h2 answers another question", "debian:1 is not on h2"]);
    hosts[1].house(|house| house.lacks_base = true);
    hosts[1].house(|house| house.breaks_after = Some("image preload"));
    fails(&preload(), 5, &["h2: the connection to host h2 broke"]);
    wait_until("it is back", || cluster.run(&["image", "list"]).stderr.is_empty());
    assert_eq!(listed(&cluster), ["debian:1 h1"]);
    // Nobody who has it is there.
    hosts[0].set_away(true);
    wait_until("its host is away", || listed(&cluster) == ["debian:1 h1!"]);
    fails(&preload(), 5, &["no host that is connected has debian:1", "entered on h1", "[transfer]"]);
}

//! Whole deployments from a file.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;
use unasnap_protocol::name::Name;
use unasnap_protocol::placement::Capacity;

use crate::support::host::Host;
use crate::support::{Cluster, Ended, wait_until};

const SHOP: &str = "
deployment = 'shop'
[[vms]]
name = 'web'
count = 3
base = 'debian'
profile = 'small'
[[vms.nic]]
bridge = 'br0'
addresses = ['10.0.9.1']
[[vms]]
name = 'db'
base = 'debian'
cores = 3
memory_mb = 700
";

fn fails(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, code, "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "{word}: {ended:?}");
    }
}

fn two_hosts(cluster: &Cluster) -> [Host; 2] {
    let hosts = [Host::start(cluster, "h1", &[]), Host::start(cluster, "h2", &[])];
    wait_until("both are there", || connected(cluster) == 2);
    hosts
}

fn connected(cluster: &Cluster) -> usize {
    let hosts = cluster.json(&["host", "list"]);
    hosts["hosts"].as_array().unwrap().iter().filter(|host| host["connected"] == true).count()
}

/// The command, with this file.
fn deploy(cluster: &Cluster, file: &str, more: &[&str]) -> Ended {
    fs::write(cluster.path("shop.toml"), file).unwrap();
    cluster.run(&[&["deploy", "shop.toml"], more].concat())
}

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

/// VM, host and state of each line.
fn lines(report: &Value) -> Vec<String> {
    let vms = report["vms"].as_array().unwrap();
    let word = |vm: &Value, key: &str| vm[key].as_str().unwrap().to_owned();
    vms.iter().map(|vm| [word(vm, "vm"), word(vm, "host"), word(vm, "state")].join(" ")).collect()
}

/// States that a VM has gone through.
fn states(report: &Value, vm: &str) -> Vec<String> {
    let vms = report["vms"].as_array().unwrap();
    let line = vms.iter().find(|line| line["vm"] == vm).unwrap();
    let stages = line["states"].as_array().unwrap();
    stages.iter().map(|stage| stage["state"].as_str().unwrap().to_owned()).collect()
}

fn count(host: &Host, task: &str) -> usize {
    host.tasks().iter().filter(|one| **one == task).count()
}

const DEPLOYED: [&str; 4] = ["db h2 deployed", "web-1 h1 deployed", "web-2 h2 deployed", "web-3 h1 deployed"];

#[test]
fn all_vms_of_a_file_are_made_and_started_and_what_is_there_stays() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    let plan = deploy(&cluster, SHOP, &["--plan", "--json"]);
    assert_eq!(lines(&json(&plan))[1], "web-1 h1 requested", "{plan:?}");
    assert_eq!((count(&hosts[0], "vm create"), count(&hosts[1], "vm create")), (0, 0));

    let ended = deploy(&cluster, SHOP, &["--json"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{ended:?}");
    let report = json(&ended);
    assert_eq!(lines(&report), DEPLOYED);
    assert_eq!(states(&report, "db"), ["requested", "configuring", "deploying", "deployed"]);
    assert_eq!(cluster.json(&["vm", "show", "web-3"])["vm"]["state"], "running");
    let text = deploy(&cluster, SHOP, &[]);
    assert_eq!(text.stdout.lines().count(), 5, "{text:?}");

    // One that is there differs from the file by now, and there is one more.
    let other = SHOP.replace("count = 3", "count = 4").replace("memory_mb = 700", "memory_mb = 800");
    let ended = deploy(&cluster, &other, &["--json"]);
    assert_eq!(lines(&json(&ended)).len(), 5, "{ended:?}");
    fails(
        &ended,
        0,
        &["warning: db is there already and stays as it is: 3 cores and 700 MiB, and not 3 and 800"],
    );
    fails(&ended, 0, &["warning: h1 will have 3 VMs"]);
    assert_eq!((count(&hosts[0], "vm create"), count(&hosts[1], "vm create")), (3, 2));

    for _ in 0..2 {
        let ended = deploy(&cluster, &other, &["--finish", "--json"]);
        let report = json(&ended);
        assert!(
            ended.code == 0 && lines(&report).iter().all(|line| line.ends_with(" finished")),
            "{ended:?}"
        );
    }
    assert_eq!(cluster.json(&["vm", "list"])["vms"].as_array().unwrap().len(), 0);
}

#[test]
fn what_cannot_be_is_said_before_anything_is_done() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    hosts[1].house(|house| house.lacks_base = true);
    let replaced = |from, to| SHOP.replacen(from, to, 1);
    for (file, code, words) in [
        (replaced("count", "cuont"), 2, &["shop.toml: ", "unknown field `cuont`", "line"][..]),
        (replaced("small", "tiny"), 2, &["unknown variant `tiny`", "`extralarge`"]),
        (replaced("count = 3", "count = 0"), 2, &["shop.toml: vms web: count is 0"]),
        (replaced("count = 3", "count = 1025"), 2, &["count is 1025; use 1024 at most"]),
        (replaced("'debian'", "'fedora'"), 5, &["no usable base fedora", "h1", "h2"]),
        (
            replaced("memory_mb = 700", "memory_mb = 20000"),
            5,
            &["no host has room for db", "MiB of RAM left"],
        ),
        (replaced("cores = 3", "cores = 9"), 5, &["db (9 cores", "h1 has", "cores left"]),
        (replaced("cores = 3", "cores = 3\ndisk_mb = 100000"), 5, &["MiB of disk left"]),
        (
            format!("algorithm = 'singleton'\n{}", SHOP.replace("count = 3", "count = 9")),
            5,
            &["no unused host has room for all 10 VMs together (12 cores"],
        ),
    ] {
        fails(&deploy(&cluster, &file, &[]), code, words);
    }
    fails(&cluster.run(&["deploy", "nothing.toml"]), 2, &["cannot read nothing.toml"]);
    fails(&cluster.run(&["deploy", "shop.toml", "--plan", "--finish"]), 2, &["cannot be used with"]);
    assert_eq!(count(&hosts[0], "vm create"), 0);

    assert_eq!(deploy(&cluster, SHOP, &[]).code, 0);
    fails(
        &deploy(&cluster, &replaced("'shop'", "'other'"), &[]),
        5,
        &["belongs to deployment shop already", "Nothing was done"],
    );
    assert_eq!(count(&hosts[1], "vm create"), 0, "it lacks the base");
    assert_eq!(cluster.run(&["pause", "shop"]).code, 0);
    fails(
        &deploy(&cluster, SHOP, &[]),
        5,
        &["deployment shop is paused in shop-000001", "`unasnap resume shop`"],
    );
}

#[test]
fn one_that_fails_does_not_keep_the_others_and_the_next_time_goes_on() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    let web = Name::new("web-2").unwrap();
    hosts[1].house(|house| house.refused.insert(web.clone()));
    let ended = deploy(&cluster, SHOP, &["--json"]);
    fails(&ended, 5, &["1 of 4 VMs failed: web-2 on h2: the disk is full", "the same command goes on"]);
    let report = json(&ended);
    assert_eq!(lines(&report), [DEPLOYED[0], DEPLOYED[1], "web-2 h2 failed", DEPLOYED[3]]);
    assert_eq!(states(&report, "web-2"), ["requested", "configuring", "failed"]);
    hosts[1].house(|house| house.refused.clear());
    assert_eq!(lines(&json(&deploy(&cluster, SHOP, &["--json"]))).len(), 4);
    assert_eq!(count(&hosts[0], "vm create") + count(&hosts[1], "vm create"), 5);
}

#[test]
fn what_is_to_be_on_one_host_goes_on_there() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    let file = format!("algorithm = 'singleton'\n{SHOP}");
    let web = Name::new("web-2").unwrap();
    hosts[0].house(|house| house.refused.insert(web));
    fails(&deploy(&cluster, &file, &[]), 5, &["1 of 4 VMs failed: web-2 on h1"]);
    hosts[0].house(|house| house.refused.clear());
    let ended = deploy(&cluster, &file, &["--json"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(lines(&json(&ended)).iter().all(|line| line.ends_with(" h1 deployed")), "{ended:?}");
    assert_eq!(count(&hosts[1], "vm create"), 0);
}

#[test]
fn a_base_is_read_where_it_is_missing_and_by_each_host_once() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    hosts[1].house(|house| house.lacks_base = true);
    let with = |path: &str| format!("{SHOP}[[bases]]\nname = 'debian'\npath = '{path}'\n");
    let ended = deploy(&cluster, &with("/nowhere.qcow2"), &["--json"]);
    fails(&ended, 4, &["2 of 4 VMs failed: db on h2, web-2 on h2: there is no /nowhere.qcow2"]);
    assert_eq!(states(&json(&ended), "db"), ["requested", "transmitting", "failed"]);
    let ended = deploy(&cluster, &with("/srv/images/debian.qcow2"), &["--json"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let expected = ["requested", "transmitting", "configuring", "deploying", "deployed"];
    assert_eq!(states(&json(&ended), "db"), expected);
    assert_eq!((count(&hosts[0], "disk preload"), count(&hosts[1], "disk preload")), (0, 2));
}

#[test]
fn a_host_that_comes_back_goes_on_and_one_that_stays_away_is_given_up() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    // Made, and the answer lost.
    hosts[0].house(|house| house.breaks_after = Some("vm create"));
    let ended = deploy(&cluster, SHOP, &["--json"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(lines(&json(&ended)), DEPLOYED);
    hosts[0].house(|house| house.breaks_after = Some("disk list"));
    fails(&deploy(&cluster, SHOP, &["--plan"]), 0, &["warning: h1 does not tell of its bases", "broke"]);
    wait_until("it is back", || connected(&cluster) == 2);

    hosts[1].house(|house| (house.breaks_after, house.stays_away) = (Some("vm create"), true));
    let more = SHOP.replace("web", "app").replace("'db'", "'box'").replace("10.0.9", "10.0.8");
    fs::write(cluster.path("more.toml"), &more).unwrap();
    let deploying = cluster.spawn(&["deploy", "more.toml", "--json"]);
    wait_until("it is away", || connected(&cluster) == 1);
    std::thread::sleep(Duration::from_millis(1500));
    hosts[1].set_away(false);
    let ended = deploying.finish();
    assert_eq!(ended.code, 0, "{ended:?}");
    let seen = states(&json(&ended), "box");
    assert_eq!(seen.last().map(String::as_str), Some("deployed"));
    assert!(seen.contains(&"reconnecting".to_owned()), "{seen:?}");

    hosts[1].set_away(true);
    wait_until("it is away", || connected(&cluster) == 1);
    let ended = deploy(&cluster, &format!("{SHOP}[limits]\nreconnecting_s = 1\n"), &["--json"]);
    fails(
        &ended,
        6,
        &["2 of 4 VMs failed: db on h2, web-2 on h2: host h2 is not connected (after 1 s of reconnecting)"],
    );
    assert_eq!(lines(&json(&ended))[1], "web-1 h1 deployed");
}

#[test]
fn a_guest_that_never_answers_is_waited_for_as_long_as_the_file_says() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    let name = Name::new("web-1").unwrap();
    hosts[0].house(|house| house.silent.insert(name));
    let ended = deploy(&cluster, &format!("{SHOP}[limits]\ndeploying_s = 2\n"), &["--json"]);
    fails(
        &ended,
        6,
        &["1 of 4 VMs failed: web-1 on h1: its guest agent does not answer", "(after 2 s of deploying)"],
    );
    assert_eq!(states(&json(&ended), "web-1"), ["requested", "configuring", "deploying", "failed"]);
    hosts[0].house(|house| house.silent.clear());
    assert_eq!(deploy(&cluster, SHOP, &[]).code, 0);
    assert_eq!(cluster.run(&["vm", "pause", "db"]).code, 0);
    fails(&deploy(&cluster, SHOP, &[]), 5, &["db on h2: it is paused; `unasnap vm resume db`"]);
}

#[test]
fn whoever_may_only_look_deploys_nothing() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    for role in ["view", "operate"] {
        assert_eq!(cluster.run(&["pki", "operator", role, "--role", role, "--dir", "pki"]).code, 0);
    }
    cluster.use_certificate("operator-view");
    assert_eq!(deploy(&cluster, SHOP, &["--plan"]).code, 0);
    fails(&deploy(&cluster, SHOP, &[]), 3, &["4 of 4 VMs failed", "needs the role operate"]);
    assert_eq!(count(&hosts[0], "vm create"), 0);
    cluster.use_certificate("operator-operate");
    assert_eq!(deploy(&cluster, SHOP, &[]).code, 0);
    fails(&deploy(&cluster, SHOP, &["--finish"]), 3, &["needs the role admin"]);
}

/// What the published system took 31 s for. The figure is printed, as it depends on the machine and on how this was built.
#[test]
fn two_hundred_vms_on_a_hundred_hosts() {
    const HOSTS: usize = 100;
    let cluster = Cluster::start_alone();
    let names: Vec<_> = (1..=HOSTS).map(|number| format!("h{number}")).collect();
    for name in &names[2..] {
        assert_eq!(cluster.run(&["pki", "add-host", name, "--dir", "pki"]).code, 0);
    }
    let hosts: Vec<_> = names.iter().map(|name| Host::start(&cluster, name, &[])).collect();
    for host in &hosts {
        host.house(|house| house.capacity = Capacity { cores: 2, memory_mb: 4096 });
    }
    wait_until("all are there, as large as they are", || {
        let status = cluster.json(&["host", "list"]);
        status["hosts"].as_array().unwrap().iter().filter(|host| host["cores"] == 2).count() == HOSTS
    });
    let file = SHOP.replace("count = 3", "count = 199").replace("cores = 3", "cores = 1");
    let begun = Instant::now();
    let ended = deploy(&cluster, &file, &["--json"]);
    let took = begun.elapsed();
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{}", ended.stderr);
    let report = json(&ended);
    let lines = lines(&report);
    assert!(lines.len() == 200 && lines.iter().all(|line| line.ends_with(" deployed")));
    let used: BTreeSet<_> = lines.iter().map(|line| line.split(' ').nth(1).unwrap()).collect();
    assert_eq!(used.len(), HOSTS);
    hosts.iter().for_each(Host::end);
    let stages = report["vms"][0]["states"].as_array().unwrap();
    let made = stages.iter().find(|stage| stage["state"] == "deploying").unwrap();
    let (made, took) = (made["ms"].as_f64().unwrap() / 1e3, took.as_secs_f64());
    println!("200 VMs on {HOSTS} simulated hosts: {took:.2} s, of which {made:.2} s until all were made");
}

//! VMs on a base that they share: made, cloned, snapshotted and deleted while the host agent runs, with the programs that ship.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::bench::{from_environment, run};
use crate::cluster::Cluster;

fn text(cluster: &Cluster, name: &str) -> String {
    cluster.path(name).display().to_string()
}

/// Exit code and words; the words of the daemons stay out of it.
fn refused(cluster: &Cluster, arguments: &[&str], words: &str) {
    let before = cluster.words().matches(words).count();
    let (code, out) = cluster.attempt(arguments);
    assert!(code != 0, "{arguments:?} went well: {out}");
    assert!(cluster.words().matches(words).count() > before, "{arguments:?} does not say {words:?}");
}

/// A program that ends with this value, also when a test fails.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn create(cluster: &Cluster, name: &str, address: &str) -> Vec<String> {
    let (kernel, initrd) = (from_environment("UNASNAP_TEST_KERNEL"), text(cluster, "initrd"));
    let append = "console=ttyS0 rdinit=/workload quiet no_timer_check agent";
    let words = ["vm", "create", name, "--host", "h1", "--deployment", "test", "--base", "base"];
    let boot =
        ["--memory-mb", "128", "--kernel", kernel.to_str().unwrap(), "--initrd", &initrd, "--append", append];
    let nic = ["--nic", &format!("bridge=br0,address={address}")];
    words.iter().chain(&boot).chain(&nic).map(|word| (*word).to_owned()).collect()
}

fn attempt(cluster: &Cluster, words: &[String]) -> (i32, String) {
    cluster.attempt(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// What the guest has counted to.
pub fn count(cluster: &Cluster, vm: &str) -> u64 {
    let console = ["h1", "h2"].map(|host| cluster.path(&format!("{host}/vms/{vm}/console.log")));
    let console = console.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    assert!(!console.contains("torn"), "RAM and disk are of different instants:\n{console}");
    let whole = console.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().filter_map(|line| line.trim().strip_prefix("tick ")?.parse().ok()).next_back().unwrap_or(0)
}

pub fn wait_count(cluster: &Cluster, vm: &str, least: u64) {
    cluster.wait(&format!("{vm} has counted to {least}"), |cluster| count(cluster, vm) >= least);
}

fn files(cluster: &Cluster, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(cluster.path(folder)).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Both VMs are members: snapshotted for the first time, restored and verified as any others.
fn snapshot_and_restore(cluster: &Cluster) {
    cluster.wait("all guests answer", |cluster| {
        let list = cluster.json(&["vm", "list"])["vms"].as_array().unwrap().clone();
        list.iter().all(|vm| vm["guest_agent"] == true)
    });
    let taken = cluster.json(&["snapshot", "take"]);
    assert_eq!(taken["snapshot"]["members"].as_array().map(Vec::len), Some(2), "{taken}");
    cluster.json(&["restore"]);
    let restored = (count(cluster, "node"), count(cluster, "twin"));
    wait_count(cluster, "node", restored.0 + 5);
    wait_count(cluster, "twin", restored.1 + 5);
    cluster.json(&["snapshot", "verify", "test-000001"]);
}

#[test]
fn vms_on_a_base_come_and_go_and_the_base_stays_as_it_is() {
    let mut cluster = Cluster::start(&[], &[]);
    let base = cluster.path("base.qcow2");
    let content = fs::read(&base).unwrap();
    let registered = cluster.json(&["disk", "preload", "--host", "h1", base.to_str().unwrap()]);
    assert_eq!(registered["disk"]["name"], "base", "{registered}");
    assert_eq!(registered["disk"]["virtual_bytes"], 64 << 20);
    assert_eq!(fs::metadata(&base).unwrap().permissions().mode() & 0o222, 0);
    assert_eq!(
        cluster.json(&["disk", "preload", "--host", "h1", base.to_str().unwrap()]),
        registered,
        "repeated"
    );

    let (code, out) = attempt(&cluster, &create(&cluster, "node", "10.0.0.1"));
    eprint!("{out}");
    assert!(code == 0 && out.starts_with("created node on h1 in "), "{out}: {}", cluster.words());
    assert_eq!(files(&cluster, "vms"), ["node.toml"]);
    cluster.json(&["vm", "start", "node"]);
    wait_count(&cluster, "node", 5);
    assert_eq!(cluster.json(&["disk", "list"])["disks"][0]["users"], serde_json::json!(["node"]));
    refused(&cluster, &["disk", "remove", "base", "--host", "h1"], "is below disks of node");
    refused(&cluster, &["vm", "delete", "node"], "VM node runs");
    refused(&cluster, &["vm", "clone", "node", "twin", "--addresses", "10.0.0.2"], "is not stopped");

    // The next agent finds it, and a clone goes on where it was stopped.
    cluster.restart_host(&[]);
    cluster.json(&["vm", "stop", "node", "--force"]);
    let stopped = count(&cluster, "node");
    cluster.json(&["vm", "clone", "node", "twin", "--addresses", "10.0.0.2"]);
    let second = cluster.json(&["vm", "clone", "node", "third", "--addresses", "10.0.0.3"]);
    assert_eq!(second["created"][0]["changed"], true);
    assert_eq!(files(&cluster, "h1/vms/node/disks").len(), 2, "the second clone needed no layer more");
    let started = cluster.json(&["vm", "start", "node", "twin"]);
    assert_eq!(started["control"]["vms"].as_array().unwrap().len(), 2);
    wait_count(&cluster, "node", stopped + 20);
    wait_count(&cluster, "twin", stopped + 5);
    cluster.json(&["vm", "delete", "third"]);

    // Both are members: snapshotted, restored and verified as any other.
    snapshot_and_restore(&cluster);

    // All of them share the base, and have little else on the disk.
    let present = cluster.json(&["files", "--deployment", "test"]);
    let totals = &present["totals"];
    assert_eq!(totals["missing_files"], 0, "{present}");
    let base_bytes =
        totals["needed_bytes"].as_u64().unwrap() - totals["needed_without_base_bytes"].as_u64().unwrap();
    assert_eq!(base_bytes, content.len() as u64, "the base counts once: {present}");
    let saved = cluster.json(&["files", "node", "--snapshot", "test-000001"]);
    let roles: Vec<_> =
        saved["needed"].as_array().unwrap().iter().map(|file| file["role"].as_str().unwrap()).collect();
    for role in ["base-disk", "difference-disk", "saved-state", "settings"] {
        assert!(roles.contains(&role), "{saved}");
    }

    // One that comes into a deployment that was restored is a member like the others.
    cluster.json(&create(&cluster, "late", "10.0.0.4").iter().map(String::as_str).collect::<Vec<_>>());
    cluster.json(&["vm", "start", "late"]);
    wait_count(&cluster, "late", 5);
    cluster.wait("its guest answers", |cluster| {
        cluster.json(&["vm", "show", "late"])["vm"]["guest_agent"] == true
    });
    let second = cluster.json(&["snapshot", "take"])["snapshot"]["id"].as_str().unwrap().to_owned();

    refused(&cluster, &["vm", "delete", "twin", "--force"], &format!("test-000001, {second}"));
    cluster.json(&["vm", "delete", "twin", "--force", "--lose-snapshots"]);
    assert!(!cluster.path("h1/vms/twin").exists() && files(&cluster, "vms") == ["late.toml", "node.toml"]);
    cluster.json(&["snapshot", "delete", "test-000001"]);
    cluster.json(&["snapshot", "delete", &second]);
    cluster.wait("nothing is left of them", |cluster| files(cluster, "h1/snapshots").is_empty());
    let node = count(&cluster, "node");
    wait_count(&cluster, "node", node + 5);
    for vm in ["node", "late"] {
        cluster.json(&["vm", "delete", vm, "--force"]);
    }
    cluster.json(&["disk", "remove", "base", "--host", "h1"]);
    assert_eq!(files(&cluster, "h1/vms"), [] as [&str; 0]);
    assert_eq!(fs::read(&base).unwrap(), content, "the base was written");
}

#[test]
fn a_replica_goes_on_another_host_where_the_vm_was_stopped() {
    let mut cluster = Cluster::start(&[], &[]);
    let base = cluster.path("base.qcow2");
    cluster.json(&["disk", "preload", "--host", "h1", base.to_str().unwrap()]);
    cluster.start_second_host();
    assert_eq!(attempt(&cluster, &create(&cluster, "node", "10.0.0.1")).0, 0, "{}", cluster.words());
    let replicate = |name: &'static str, address: &'static str| {
        ["vm", "replicate", "node", name, "--host", "h2", "--addresses", address]
    };
    cluster.json(&replicate("fresh", "10.0.0.4"));
    cluster.json(&["vm", "start", "node", "fresh"]);
    wait_count(&cluster, "node", 5);
    wait_count(&cluster, "fresh", 1);
    refused(&cluster, &replicate("twin", "10.0.0.2"), "VM node is not stopped");
    cluster.json(&["vm", "stop", "node", "--force"]);
    cluster.json(&["vm", "delete", "fresh", "--force"]);
    let stopped = count(&cluster, "node");

    let made = cluster.json(&replicate("twin", "10.0.0.2"));
    assert_eq!((&made["created"][0]["host"], &made["created"][0]["changed"]), (&"h2".into(), &true.into()));
    assert_eq!(files(&cluster, "vms2"), ["twin.toml"]);
    assert_eq!(files(&cluster, "h2/snapshots"), [] as [&str; 0], "what came is used up");
    assert_eq!(cluster.json(&replicate("twin", "10.0.0.2"))["created"][0]["changed"], false, "repeated");

    // Neither sees what the other one writes, and they are members like any others.
    cluster.json(&["vm", "start", "node", "twin"]);
    wait_count(&cluster, "node", stopped + 5);
    wait_count(&cluster, "twin", stopped + 20);
    snapshot_and_restore(&cluster);
    cluster.json(&["snapshot", "delete", "test-000001"]);

    cluster.json(&["vm", "delete", "twin", "--force"]);
    assert_eq!(files(&cluster, "h2/vms"), [] as [&str; 0], "but its images");
}

/// Whatever breaks off in between, a VM is there or it is not, and the command can be repeated.
#[test]
fn an_agent_that_dies_while_vms_come_and_go_leaves_no_half_of_one() {
    let mut cluster = Cluster::start(&[], &[]);
    cluster.json(&["disk", "preload", "--host", "h1", &text(&cluster, "base.qcow2")]);
    let node = create(&cluster, "node", "10.0.0.1");
    let words: Vec<_> = node.iter().map(String::as_str).collect();
    for (point, is_there) in [
        ("file.write.before", false),
        ("file.write.after", false),
        ("tool.qemu-img.before", false),
        ("tool.qemu-img.after", false),
        ("tell.Household.before", true),
        ("tell.Household.after", true),
    ] {
        cluster.strike_at(point);
        let (code, _) = cluster.attempt(&words);
        // The last word may have been heard.
        assert!(code != 0 || point == "tell.Household.after", "{point}");
        cluster.strike_at("");
        cluster.kill_host();
        cluster.boot_host();
        assert_eq!(cluster.path("vms/node.toml").exists(), is_there, "{point}");
        assert_eq!(files(&cluster, "vms").len(), usize::from(is_there), "{point}");
        assert_eq!(cluster.path("h1/vms/node").exists(), is_there, "{point}");
        let repeated = cluster.json(&words);
        assert_eq!(repeated["created"][0]["changed"], !is_there, "{point}");
        cluster.json(&["vm", "delete", "node", "--force"]);
    }
    for point in ["file.remove.before", "tell.Household.before"] {
        cluster.json(&words);
        cluster.strike_at(point);
        let (code, _) = cluster.attempt(&["vm", "delete", "node"]);
        assert!(code != 0, "{point}");
        cluster.strike_at("");
        cluster.kill_host();
        cluster.boot_host();
        cluster.wait("it is forgotten", |cluster| {
            cluster.json(&["vm", "list"])["vms"] == Value::Array(Vec::new())
        });
        assert_eq!(files(&cluster, "vms"), [] as [&str; 0], "{point}");
        assert!(!cluster.path("h1/vms/node").exists(), "{point}");
    }
}

#[test]
fn what_is_no_base_is_refused_with_the_reason() {
    let cluster = Cluster::start(&[], &[]);
    let at = |name: &str| text(&cluster, name);
    fs::write(at("words.txt"), "not an image").unwrap();
    let image = |arguments: &[&str]| run("qemu-img", &[&["create", "-q"], arguments].concat());
    image(&["-f", "vdi", &at("disk.vdi"), "1M"]);
    image(&["-f", "qcow2", "-F", "qcow2", "-b", &at("base.qcow2"), &at("part.qcow2")]);
    image(&["-f", "qcow2", "-o", &format!("data_file={}", at("data")), &at("split.qcow2"), "1M"]);
    image(&["-f", "raw", &at("raw.img"), "1M"]);
    image(&["-f", "qcow2", &at("busy.qcow2"), "1M"]);
    let file = format!("driver=qcow2,node-name=busy,file.driver=file,file.filename={}", at("busy.qcow2"));
    let writer = Command::new("qemu-system-x86_64")
        .args(["-M", "none", "-display", "none", "-S", "-nodefaults", "-blockdev", &file])
        .args(["-qmp", &format!("unix:{},server=on,wait=off", at("busy.qmp"))])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let writer = Ended(writer);
    cluster.wait("it writes", |cluster| cluster.path("busy.qmp").exists());
    for (path, words) in [
        (at("words.txt"), "is no disk image: it has 12 bytes"),
        (at("disk.vdi"), "of a vdi image only VMs of VirtualBox are made, which this host does not drive"),
        (at("part.qcow2"), "is only a part of an image"),
        (at("split.qcow2"), "is only a part of an image"),
        (at("busy.qcow2"), "lock"),
        (at("vms"), "is not a file"),
        (at("absent.qcow2"), "cannot be found"),
        ("/etc/shadow".to_owned(), "is not below"),
        ("base.qcow2".to_owned(), "is not an absolute path"),
    ] {
        refused(&cluster, &["disk", "preload", "--host", "h1", &path], words);
    }
    drop(writer);
    let raw = cluster.json(&["disk", "preload", "--host", "h1", &at("raw.img"), "--name", "plain"]);
    assert_eq!((&raw["disk"]["name"], &raw["disk"]["format"]), (&"plain".into(), &"raw".into()));
    refused(
        &cluster,
        &["disk", "preload", "--host", "h1", &at("base.qcow2"), "--name", "plain"],
        "choose another name",
    );
    cluster.json(&["disk", "preload", "--host", "h1", &at("base.qcow2")]);
    let mut shadow = create(&cluster, "node", "10.0.0.1");
    let initrd = shadow.iter().position(|word| word == "--initrd").unwrap();
    "/etc/shadow".clone_into(&mut shadow[initrd + 1]);
    refused(&cluster, &shadow.iter().map(String::as_str).collect::<Vec<_>>(), "is not below");
    fs::remove_file(at("base.qcow2")).unwrap();
    refused(&cluster, &["disk", "list"], "base on h1: cannot read");
    let node = create(&cluster, "node", "10.0.0.1");
    refused(&cluster, &node.iter().map(String::as_str).collect::<Vec<_>>(), "base base cannot be used");
    assert_eq!(files(&cluster, "vms"), [] as [&str; 0]);
}

#[test]
fn a_deployment_comes_from_a_file_and_ends_with_it() {
    let cluster = Cluster::start(&[], &[]);
    let (kernel, initrd, base) =
        (from_environment("UNASNAP_TEST_KERNEL"), text(&cluster, "initrd"), text(&cluster, "base.qcow2"));
    let file = format!(
        r#"
        deployment = "test"
        [[vms]]
        name = "node"
        count = 2
        base = "base"
        cores = 1
        memory_mb = 128
        disk_mb = 16
        kernel = "{}"
        initrd = "{initrd}"
        append = "console=ttyS0 rdinit=/workload quiet no_timer_check agent"
        [[vms.nic]]
        bridge = "br0"
        addresses = ["10.0.0.1"]
        [[bases]]
        name = "base"
        path = "{base}"
        "#,
        kernel.display()
    );
    let path = text(&cluster, "test.toml");
    fs::write(&path, file).unwrap();
    let states = |report: &Value| -> Vec<(String, String)> {
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        report["vms"].as_array().unwrap().iter().map(|vm| (word(&vm["vm"]), word(&vm["state"]))).collect()
    };
    let all = |state: &str| ["node-1", "node-2"].map(|vm| (vm.to_owned(), state.to_owned()));

    let deployed = cluster.json(&["deploy", &path]);
    assert_eq!(states(&deployed), all("deployed"), "{deployed}");
    wait_count(&cluster, "node-1", 5);
    wait_count(&cluster, "node-2", 5);
    cluster.json(&["snapshot", "take"]);
    let counted = count(&cluster, "node-2");
    let again = cluster.json(&["deploy", &path]);
    assert_eq!(states(&again), all("deployed"), "{again}");
    wait_count(&cluster, "node-2", counted + 5);

    refused(&cluster, &["deploy", &path, "--finish"], "snapshots hold node-1");
    cluster.json(&["snapshot", "delete", "test-000001"]);
    let finished = cluster.json(&["deploy", &path, "--finish"]);
    assert_eq!(states(&finished), all("finished"), "{finished}");
    assert_eq!(cluster.json(&["vm", "list"])["vms"], serde_json::json!([]));
}

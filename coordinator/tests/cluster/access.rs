//! Commands and files in guests, as operators meet them.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::support::host::Host;
use crate::support::{Cluster, Ended, wait_until};

fn two_hosts(cluster: &Cluster) -> [Host; 2] {
    let hosts =
        [Host::start(cluster, "h1", &["ring-1", "ring-3"]), Host::start(cluster, "h2", &["ring-2", "db"])];
    cluster.wait_for_vms(4);
    hosts
}

fn exec(cluster: &Cluster, vms: &str, command: &[&str]) -> Ended {
    cluster.run(&[&["vm", "exec", vms, "--"], command].concat())
}

fn fails(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, code, "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "{word}: {ended:?}");
    }
}

#[test]
fn streams_and_exit_code_are_the_commands() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    let echo = exec(&cluster, "db", &["echo", "a b", "$HOME", "--json"]);
    let expected = (0, "db 60 a b|$HOME|--json\n", "done\n");
    assert_eq!((echo.code, echo.stdout.as_str(), echo.stderr.as_str()), expected);
    for (command, code) in [(&["exit", "3"][..], 3), (&["exit", "255"], 255), (&["killed"], 137)] {
        let ended = exec(&cluster, "db", command);
        assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (code, "", ""), "{command:?}");
    }
    assert_eq!(hosts[0].guests(|guests| guests.asked), 0, "other hosts hear nothing of it");
    wait_until("all is closed", || hosts[1].guests(|guests| guests.closed) == 4);
    assert!(!cluster.log().contains("$HOME"), "arguments may be secret: {}", cluster.log());
    assert!(cluster.log().contains("\"echo\" with 3 arguments"), "{}", cluster.log());
}

#[test]
fn many_vms_are_told_apart_and_the_worst_exit_code_counts() {
    let cluster = Cluster::start();
    let _hosts = two_hosts(&cluster);
    let echo = exec(&cluster, "ring-*", &["echo", "x"]);
    let mut lines: Vec<_> = echo.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["ring-1: ring-1 60 x", "ring-2: ring-2 60 x", "ring-3: ring-3 60 x"]);
    assert_eq!(exec(&cluster, "ring-?", &["differ"]).code, 3);

    let ended = cluster.run(&["vm", "exec", "ring-*", "--timeout", "7", "--json", "--", "echo", "x"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    let vms = report["exec"]["vms"].as_array().unwrap();
    let shown: Vec<_> =
        vms.iter().map(|vm| (&vm["vm"], &vm["host"], &vm["stdout"], &vm["exit_code"])).collect();
    assert_eq!(shown[1], (&"ring-2".into(), &"h2".into(), &"ring-2 7 x\n".into(), &0.into()));
    assert!(vms.len() == 3 && vms[0]["stderr"] == "done\n" && vms[0]["stdout_truncated"] == false);
}

/// A script must not take them for the command's.
#[test]
fn errors_of_ours_have_codes_of_their_own() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    fails(&exec(&cluster, "web", &["exit", "0"]), 204, &["no VM is called web"]);
    fails(&exec(&cluster, "db", &["late"]), 206, &["db on h2: it was killed after 60 s"]);
    fails(&exec(&cluster, "db", &["refuse"]), 205, &["db on h2: no\\u{1b}[2J"]);
    let long = "x".repeat(16 << 10);
    fails(&exec(&cluster, "db", &["echo", &long]), 202, &["at most 16 KiB"]);
    // The command line itself is read before anything is known of a command.
    fails(&cluster.run(&["vm", "exec", "db", "--timeout", "0", "--", "exit", "0"]), 2, &["1..=86400"]);
    fails(&cluster.run(&["vm", "exec", "db", "exit"]), 2, &[]);
    hosts[1].set_away(true);
    wait_until("h2 is away", || {
        let ended = exec(&cluster, "db", &["exit", "0"]);
        ended.code == 205 && ended.stderr.contains("its host h2 is not connected")
    });
    // What went well elsewhere is told as well.
    let ended = exec(&cluster, "ring-*", &["echo", "x"]);
    fails(&ended, 205, &["ring-2 on h2: its host h2 is not connected"]);
    assert_eq!(ended.stdout.lines().count(), 2, "{ended:?}");
}

#[test]
fn a_command_that_nobody_waits_for_any_more_is_closed() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    let mut running = cluster.spawn(&["vm", "exec", "db", "--", "hang"]);
    wait_until("it runs", || hosts[1].guests(|guests| guests.asked) >= 2);
    running.kill();
    wait_until("it is closed", || hosts[1].guests(|guests| guests.closed) == 1);

    let running = cluster.spawn(&["vm", "exec", "ring-*", "--", "hang"]);
    wait_until("it runs", || hosts[0].guests(|guests| guests.asked) >= 4);
    hosts[1].set_away(true);
    hosts[0].set_away(true);
    let ended = running.finish();
    fails(
        &ended,
        205,
        &["ring-2 on h2: the connection to its host h2 broke", "ring-1 on h1", "ring-3 on h1"],
    );
}

/// Longest of all waits: the coordinator's for a host that is there and does not answer.
#[test]
fn a_host_that_does_not_answer_is_named() {
    let cluster = Cluster::start();
    let _hosts = two_hosts(&cluster);
    fails(&exec(&cluster, "db", &["silent"]), 206, &["db on h2: its host has not answered in 13 s"]);
}

#[test]
fn json_holds_a_megabyte_of_each_stream() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    // It never ends, but the host goes away.
    let running = cluster.spawn(&["vm", "exec", "db", "--json", "--", "flood"]);
    wait_until("it has written enough", || hosts[1].guests(|guests| guests.asked) > 1100);
    hosts[1].set_away(true);
    let ended = running.finish();
    fails(&ended, 205, &["the connection to its host h2 broke"]);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    let vm = &report["exec"]["vms"][0];
    assert_eq!((vm["stdout"].as_str().unwrap().len(), &vm["stdout_truncated"]), (1 << 20, &true.into()));
    assert!(vm["exit_code"].is_null() && vm["problem"].as_str().unwrap().contains("h2 broke"));
}

#[test]
fn files_arrive_whole_with_their_modes_or_not_at_all() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    let content: Vec<u8> = (0..300_000_u32).map(|number| (number % 251) as u8).collect();
    for (name, bytes) in [("large", &content[..]), ("empty", &[])] {
        fs::write(cluster.path(name), bytes).unwrap();
        fs::set_permissions(cluster.path(name), fs::Permissions::from_mode(0o4751)).unwrap();
        let put = cluster.json(&["vm", "put", "db", name, "/srv/file"]);
        assert_eq!(put["put"]["bytes"], bytes.len(), "{put}");
        assert_eq!(put["put"]["blake3"], blake3::hash(bytes).to_hex().as_str());
        assert!(hosts[1].guests(|guests| guests.files["/srv/file"] == (0o4751, bytes.to_vec())));
        let got = cluster.run(&["vm", "get", "db", "/srv/file", "copy"]);
        assert_eq!(got.code, 0, "{got:?}");
        assert_eq!(fs::read(cluster.path("copy")).unwrap(), bytes);
        let mode = fs::metadata(cluster.path("copy")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o751, "a guest makes nobody's program here run as its owner");
    }
    fails(&cluster.run(&["vm", "get", "db", "/none", "new"]), 5, &["db on h2: there is no /none"]);
    hosts[1].guests(|guests| guests.files.insert("/lie".to_owned(), (0o644, content)));
    fails(&cluster.run(&["vm", "get", "db", "/lie", "new"]), 5, &["the guest is not to be trusted"]);
    fails(&cluster.run(&["vm", "put", "db", "large", "srv/file"]), 2, &["absolute and names a file"]);
    fails(&cluster.run(&["vm", "put", "db", "none", "/srv/file"]), 2, &["cannot read none"]);
    fails(&cluster.run(&["vm", "get", "db", "/srv/file", "."]), 2, &["is a folder"]);
    let names = fs::read_dir(cluster.path(".")).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> =
        names.filter(|name| name == "new" || name.to_string_lossy().contains("unasnap-get")).collect();
    assert_eq!(left, [""; 0], "half a file was left");
}

#[test]
fn the_end_of_a_console_is_shown() {
    let cluster = Cluster::start();
    let _hosts = two_hosts(&cluster);
    let ended = cluster.run(&["vm", "console", "db", "--lines", "2"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "line 1\r\nline 2\r\n"));
    let console = cluster.json(&["vm", "console", "db"])["console"].clone();
    assert_eq!((&console["host"], console["text"].as_str().unwrap().lines().count()), (&"h2".into(), 50));
    fails(&cluster.run(&["vm", "console", "web"]), 4, &["no VM is called web"]);
}

#[test]
fn guests_are_used_by_admins_and_consoles_read_by_whoever_operates() {
    let cluster = Cluster::start();
    let hosts = two_hosts(&cluster);
    fs::write(cluster.path("file"), b"x").unwrap();
    for role in ["view", "operate"] {
        assert_eq!(cluster.run(&["pki", "operator", role, "--role", role, "--dir", "pki"]).code, 0);
        cluster.use_certificate(&format!("operator-{role}"));
        let words = ["Access needs the role admin", "unasnap pki operator NAME --role admin"];
        fails(&exec(&cluster, "db", &["exit", "0"]), 203, &words);
        fails(&cluster.run(&["vm", "put", "db", "file", "/x"]), 3, &words);
        fails(&cluster.run(&["vm", "get", "db", "/x", "y"]), 3, &words);
        let console = cluster.run(&["vm", "console", "db"]);
        assert_eq!(console.code, if role == "view" { 3 } else { 0 }, "{console:?}");
    }
    assert_eq!(hosts[1].guests(|guests| guests.asked), 1, "one console");
}

/// Nothing of it is kept, so that the next coordinator has nothing to finish.
#[test]
fn a_coordinator_that_dies_in_a_turn_leaves_nothing_behind() {
    let mut cluster = Cluster::start();
    let _hosts = two_hosts(&cluster);
    for step in ["Turn", "Console"] {
        for moment in ["before", "after"] {
            cluster.kill_daemon();
            cluster.spawn_daemon(&format!("relay.{step}.{moment}"));
            let command: &[&str] = match step {
                "Turn" => &["vm", "exec", "db", "--", "exit", "0"],
                _ => &["vm", "console", "db"],
            };
            wait_until("the coordinator dies", || cluster.has_died() || cluster.run(command).code > 255);
            cluster.start_daemon();
            cluster.wait_for_vms(4);
            assert_eq!(exec(&cluster, "db", &["exit", "0"]).code, 0);
            assert_eq!(cluster.run(&["snapshot", "take"]).code, 0);
        }
    }
}

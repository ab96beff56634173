//! What the command prints, and its exit codes.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::host::Host;
use crate::support::{Cluster, Ended};

/// Times, sizes and versions change from run to run, and with them the widths of columns.
fn stable(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let mut before = "";
        for word in line.split_whitespace() {
            let number = word.contains(|letter: char| letter.is_ascii_digit());
            let time = word.matches(':').count() > 1;
            let changes = number && (time || word.contains('.') || before == "up");
            out.push_str(if before.is_empty() { "" } else { " " });
            out.push_str(&if changes { scrub(word) } else { word.to_owned() });
            before = word;
        }
        out.push('\n');
    }
    out
}

fn scrub(word: &str) -> String {
    let mut out = String::new();
    for letter in word.chars() {
        let shown = if letter.is_ascii_digit() || letter == '.' { '#' } else { letter };
        if !(shown == '#' && out.ends_with('#')) {
            out.push(shown);
        }
    }
    out
}

fn shown(ended: &Ended) -> String {
    let text = format!("exit code {}\n--- stdout\n{}--- stderr\n{}", ended.code, ended.stdout, ended.stderr);
    stable(&text)
}

#[test]
fn help_texts() {
    let cluster = Cluster::start();
    for (name, arguments) in [
        ("help", &["--help"][..]),
        ("help_snapshot", &["snapshot", "--help"]),
        ("help_restore", &["restore", "--help"]),
        ("help_deploy", &["deploy", "--help"]),
        ("help_pki_init", &["pki", "init", "--help"]),
        ("help_pki_operator", &["pki", "operator", "--help"]),
    ] {
        insta::assert_snapshot!(name, cluster.run(arguments).stdout);
    }
}

#[test]
fn tables_and_errors() {
    let cluster = Cluster::start();
    insta::assert_snapshot!("empty_take", shown(&cluster.run(&["snapshot", "take"])));
    insta::assert_snapshot!("empty_list", shown(&cluster.run(&["snapshot", "list"])));
    insta::assert_snapshot!("empty_restore", shown(&cluster.run(&["restore"])));
    let _one = Host::start(&cluster, "h1", &["vm1"]);
    let _two = Host::start(&cluster, "h2", &["vm2"]);
    cluster.wait_for_vms(2);
    insta::assert_snapshot!("take", shown(&cluster.run(&["snapshot", "take", "ring"])));
    for (name, arguments) in [
        ("status", &["status"][..]),
        ("host_list", &["host", "list"]),
        ("vm_list", &["vm", "list"]),
        ("snapshot_list", &["snapshot", "list"]),
        ("snapshot_show", &["snapshot", "show", "ring-000001"]),
        ("show_unknown", &["snapshot", "show", "nothing"]),
        ("take_unknown", &["snapshot", "take", "nothing"]),
        ("restore", &["restore"]),
        ("delete", &["snapshot", "delete", "ring-000001"]),
        ("bad_name", &["snapshot", "show", "../etc"]),
    ] {
        insta::assert_snapshot!(name, shown(&cluster.run(arguments)));
    }
}

/// The keys of the JSON are a promise: programs read them.
#[test]
fn json_keeps_its_shape() {
    let cluster = Cluster::start();
    let _one = Host::start(&cluster, "h1", &["vm1"]);
    cluster.wait_for_vms(1);
    let mut text = String::new();
    for arguments in [
        &["snapshot", "take"][..],
        &["snapshot", "list"],
        &["status"],
        &["host", "list"],
        &["vm", "list"],
        &["restore"],
    ] {
        let shape = shape(&cluster.json(arguments), "");
        text.push_str(&format!("# {}\n{shape}", arguments.join(" ")));
    }
    insta::assert_snapshot!("json_shapes", text);
}

fn shape(value: &serde_json::Value, path: &str) -> String {
    use serde_json::Value;
    match value {
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| shape(value, &format!("{path}.{key}"))).collect()
        }
        Value::Array(items) => {
            items.first().map(|item| shape(item, &format!("{path}[]"))).unwrap_or_default()
        }
        Value::Null => format!("{path}: null\n"),
        Value::Bool(_) => format!("{path}: bool\n"),
        Value::Number(_) => format!("{path}: number\n"),
        Value::String(_) => format!("{path}: string\n"),
    }
}

#[test]
fn configuration_errors_name_the_file_and_the_cure() {
    let cluster = Cluster::start();
    let says = |code: i32, words: &str| {
        let ended = cluster.run(&["status"]);
        assert!(ended.code == code && ended.stderr.contains(words), "{words:?}: {}", ended.stderr);
        assert_eq!(ended.stdout, "");
    };
    fs::set_permissions(cluster.path("pki/operator.key"), fs::Permissions::from_mode(0o644)).unwrap();
    says(2, "run `chmod 600 pki/operator.key`");
    fs::remove_file(cluster.path("pki/operator.key")).unwrap();
    says(2, "cannot read pki/operator.key");
    fs::copy(cluster.path("pki/host-h1.key"), cluster.path("pki/operator.key")).unwrap();
    says(2, "do not belong together");
    fs::write(cluster.path("pki/operator.pem"), "no certificate").unwrap();
    says(2, "pki/operator.pem holds no certificate");
    fs::write(cluster.path("client.toml"), "coordinator = \"127.0.0.1:1\"\ncolour = 3\n").unwrap();
    says(2, "unknown field `colour`");
    fs::remove_file(cluster.path("client.toml")).unwrap();
    says(2, "cannot read the configuration client.toml");
    assert_eq!(cluster.run(&["no-such-command"]).code, 2);
}

#[test]
fn an_unreachable_coordinator_is_named() {
    let mut cluster = Cluster::start();
    cluster.kill_daemon();
    let ended = cluster.run(&["status"]);
    assert_eq!(ended.code, 3);
    assert!(ended.stderr.contains(&format!("cannot reach {}", cluster.address())), "{}", ended.stderr);
    let wrong = cluster.path("coordinator.toml");
    let text = fs::read_to_string(&wrong).unwrap().replace("coordinator.pem", "operator.pem");
    fs::write(&wrong, text.replace("coordinator.key", "operator.key")).unwrap();
    let daemon = cluster.run(&["coordinator", "--config", "coordinator.toml"]);
    assert!(daemon.code == 2 && daemon.stderr.contains("belongs to operator admin"), "{}", daemon.stderr);
}

#[test]
fn certificates_are_never_overwritten_and_hosts_are_added() {
    let cluster = Cluster::start();
    let again = cluster.run(&["pki", "init", "--dir", "pki", "--host", "h1"]);
    assert!(again.code == 2 && again.stderr.contains("not overwritten"), "{}", again.stderr);
    assert_eq!(cluster.run(&["pki", "add-host", "h3", "--dir", "pki"]).code, 0);
    let mode = fs::metadata(cluster.path("pki/host-h3.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let _added = Host::start(&cluster, "h3", &["vm3"]);
    cluster.wait_for_vms(1);
    assert_eq!(cluster.run(&["pki", "add-host", "h4", "--dir", "nowhere"]).code, 2);
}

//! Who may do what, by certificate.

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;
use unasnap_channel::{ChannelError, TlsFiles, Trust, connect};
use unasnap_protocol::control::{
    Answer, CoordinatorSession, Envelope, Hello, HostSession, Inventory, ToHost,
};
use unasnap_protocol::name::Name;

use crate::support::host::{Fault, Host};
use crate::support::{Cluster, Ended, wait_until, within};

fn refused(ended: &Ended, words: &str) {
    assert!(ended.code == 3 && ended.stderr.contains(words), "{ended:?}");
}

#[test]
fn an_operator_may_do_what_its_role_allows() {
    let cluster = Cluster::start();
    for role in ["view", "operate", "admin"] {
        let made = cluster.run(&["pki", "operator", &format!("o-{role}"), "--role", role, "--dir", "pki"]);
        assert_eq!(made.code, 0, "{}", made.stderr);
    }
    let _host = Host::start(&cluster, "h1", &["vm1"]);
    cluster.wait_for_vms(1);

    cluster.use_certificate("operator-o-view");
    for allowed in [&["status"][..], &["snapshot", "list"], &["host", "list"]] {
        assert_eq!(cluster.run(allowed).code, 0, "{allowed:?}");
    }
    refused(&cluster.run(&["snapshot", "take"]), "o-view has the role view, and Take needs the role operate");
    refused(&cluster.run(&["restore"]), "Restore needs the role operate");
    refused(&cluster.run(&["snapshot", "delete", "ring-000001"]), "Delete needs the role admin");

    cluster.use_certificate("operator-o-operate");
    let taken = cluster.run(&["snapshot", "take"]);
    assert_eq!(taken.code, 0, "the refused one used no epoch: {}", taken.stderr);
    refused(&cluster.run(&["snapshot", "delete", "ring-000001"]), "Delete needs the role admin");
    assert_eq!(cluster.run(&["restore", "ring-000001"]).code, 0);
    assert_eq!(cluster.state("ring-000001"), "committed");

    cluster.use_certificate("operator-o-admin");
    assert_eq!(cluster.run(&["snapshot", "delete", "ring-000001"]).code, 0);
    cluster.use_certificate("operator");
    assert_eq!(cluster.run(&["status"]).code, 0, "the operator of `pki init` may do everything");
}

#[test]
fn an_operator_is_one_who_operates_unless_told_otherwise() {
    let cluster = Cluster::start();
    assert_eq!(cluster.run(&["pki", "operator", "ann", "--dir", "pki"]).code, 0);
    cluster.use_certificate("operator-ann");
    refused(&cluster.run(&["snapshot", "delete", "s-1"]), "ann has the role operate");
    let unknown = cluster.run(&["pki", "operator", "bob", "--role", "root", "--dir", "pki"]);
    assert!(unknown.code == 2 && unknown.stderr.contains("use view, operate or admin"), "{unknown:?}");
}

/// A host that answers for a VM of another host: nobody believes it, and nobody else is disturbed.
#[test]
fn a_host_cannot_answer_for_a_vm_of_another() {
    let cluster = Cluster::start();
    let host = Host::start(&cluster, "h1", &["vm1"]);
    cluster.wait_for_vms(1);
    host.fault("Prepare", Fault::Ignore);
    let mut taking = cluster.spawn(&["snapshot", "take"]);
    wait_until("vm1 is asked to prepare", || host.orders("vm1").contains(&"Prepare"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let name = |text| Name::new(text).unwrap();
        let mut connection = connect(&cluster.address(), &cluster.identity("host-h2")).await.unwrap();
        let inventory = Inventory::default();
        let (protocol, agent_version) = ((1, 1), "1".to_owned());
        let hello = Hello { protocol, host: name("h2"), agent_version, inventory, undecided: vec![] };
        connection.send(&HostSession::Hello(hello).encode(&())).await.unwrap();
        let welcome = within("a welcome", connection.recv()).await.unwrap().unwrap();
        let welcome = ToHost::decode(&welcome).unwrap();
        let ToHost::Session(CoordinatorSession::Welcome(welcome)) = welcome else { panic!("{welcome:?}") };
        let envelope = Envelope {
            vm: name("vm1"),
            deployment: name("ring"),
            snapshot: name("ring-000001"),
            epoch: 1,
            term: welcome.term,
            incarnation: 0,
        };
        for answer in [Answer::Prepared(()), Answer::Armed(()), Answer::Deleted(())] {
            connection.send(&answer.encode(&envelope)).await.unwrap();
        }
        // Two of these come a second apart: by the second one all of that was read.
        let mut heard = 0;
        while heard < 2 {
            let frame = within("a sign of life", connection.recv()).await.unwrap().unwrap();
            let still_here = CoordinatorSession::decode(&frame);
            heard += usize::from(matches!(still_here, Ok(((), CoordinatorSession::StillHere(_)))));
        }
    });
    let course = cluster.json(&["status"])["courses"][0].clone();
    assert_eq!((&course["phase"], &course["waiting"]), (&json!("PREPARE"), &json!(["vm1"])));
    assert!(!host.orders("vm1").contains(&"Arm"), "{:?}", host.orders("vm1"));
    taking.kill();
}

fn revoke(cluster: &Cluster, name: &str) {
    let revoked = cluster.run(&["pki", "revoke", name, "--dir", "pki"]);
    assert_eq!(revoked.code, 0, "{}", revoked.stderr);
}

fn connected(cluster: &Cluster) -> Vec<bool> {
    let hosts = cluster.json(&["host", "list"]);
    hosts["hosts"].as_array().unwrap().iter().map(|host| host["connected"] == true).collect()
}

/// Open connections end, and no new ones are made, with the same TLS session or another; nobody else is disturbed.
#[test]
fn whoever_is_revoked_is_shut_out_at_once() {
    let cluster = Cluster::start();
    let hosts = [Host::start(&cluster, "h1", &["vm1"]), Host::start(&cluster, "h2", &["vm2"])];
    cluster.wait_for_vms(2);
    let since = |number: usize| cluster.json(&["host", "list"])["hosts"][number]["since"].clone();
    let other = since(1);
    assert_eq!(cluster.run(&["pki", "operator", "bob", "--dir", "pki"]).code, 0);
    cluster.use_certificate("operator-bob");
    hosts[0].hold_saves(true);
    let asking = cluster.spawn(&["snapshot", "take"]);
    wait_until("the snapshot is being saved", || cluster.json(&["status"])["courses"][0]["phase"] == "SAVE");

    revoke(&cluster, "operator-bob");
    let ended = asking.finish();
    refused(&ended, "it is not trusted any more: the peer's certificate has been revoked");
    refused(&cluster.run(&["status"]), "CertificateRevoked");
    cluster.use_certificate("operator");
    hosts[0].hold_saves(false);
    wait_until("the snapshot went on without him", || cluster.state("ring-000001") == "committed");

    revoke(&cluster, "host-h1");
    wait_until("h1 is shut out", || connected(&cluster) == [false, true]);
    // The host tries again several times a second.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!((connected(&cluster), since(1)), (vec![false, true], other));
    let log = cluster.log();
    assert!(log.contains("lost host h1: it is not trusted any more"), "{log}");
    assert!(log.contains("refused a connection"), "{log}");
}

/// Those who connect look at the list, too.
#[test]
fn a_revoked_coordinator_is_left() {
    let cluster = Cluster::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut files = TlsFiles {
            ca: "ca.pem".into(),
            cert: "host-h1.pem".into(),
            key: "host-h1.key".into(),
            crl: Some("crl.pem".into()),
        };
        files.resolve(&cluster.path("pki"));
        let trust = Trust::follow(files).unwrap();
        let connection = connect(&cluster.address(), &trust.identity()).await.unwrap();
        let shown = connection.certificate().clone();
        let lost = trust.lost(&shown);
        tokio::pin!(lost);
        let early = timeout(Duration::from_millis(1500), &mut lost).await;
        assert!(early.is_err(), "{early:?}");
        revoke(&cluster, "coordinator");
        let error = within("the new list of revoked certificates to count", lost).await;
        assert!(matches!(error, ChannelError::Revoked), "{error}");
        let again = connect(&cluster.address(), &trust.identity()).await.map(drop);
        assert!(matches!(again, Err(ChannelError::Revoked)), "{again:?}");
    });
    wait_until("the coordinator says so", || cluster.log().contains("coordinator.pem has been revoked"));
}

#[test]
fn a_list_of_another_ca_is_not_believed() {
    let mut cluster = Cluster::start();
    assert_eq!(cluster.run(&["pki", "init", "--dir", "other", "--host", "h1"]).code, 0);
    std::fs::copy(cluster.path("other/crl.pem"), cluster.path("pki/crl.pem")).unwrap();
    wait_until("the log names the list", || {
        cluster.log().contains("crl.pem is not a list of revoked certificates of our CA")
    });
    assert_eq!(cluster.run(&["status"]).code, 0, "the list before stays in use");
    cluster.kill_daemon();
    let refused = cluster.run(&["coordinator", "--config", "coordinator.toml"]);
    assert!(refused.code == 2 && refused.stderr.contains("copy the crl.pem"), "{refused:?}");
    std::fs::remove_file(cluster.path("pki/crl.pem")).unwrap();
    let refused = cluster.run(&["coordinator", "--config", "coordinator.toml"]);
    assert!(
        refused.code == 2 && refused.stderr.contains("cannot read"),
        "a list that is named must be there"
    );
}

#[test]
fn what_cannot_be_revoked_is_named() {
    let cluster = Cluster::start();
    let nobody = cluster.run(&["pki", "revoke", "host-h9", "--dir", "pki"]);
    assert!(nobody.code == 2 && nobody.stderr.contains("host-h9.pem"), "{nobody:?}");
    // A second time changes nothing; the path of a certificate that lies elsewhere does, too.
    revoke(&cluster, "host-h1");
    let memory = std::fs::read_to_string(cluster.path("pki/revoked.json")).unwrap();
    revoke(&cluster, "pki/host-h1.pem");
    assert_eq!(std::fs::read_to_string(cluster.path("pki/revoked.json")).unwrap(), memory);
}

/// What hosts say ends on the operator's terminal.
#[test]
fn words_of_a_host_do_not_drive_a_terminal() {
    let cluster = Cluster::start();
    let host = Host::start(&cluster, "h1", &["vm1"]);
    cluster.wait_for_vms(1);
    host.fault("Prepare", Fault::RefuseRudely);
    let failed = cluster.run(&["snapshot", "take"]);
    let shown = cluster.run(&["snapshot", "show", "ring-000001"]).stdout + &failed.stderr;
    assert!(failed.code == 5 && shown.matches("owned").count() > 1, "{shown:?}");
    assert!(shown.chars().all(|letter| letter == '\n' || !letter.is_control()), "{shown:?}");
}

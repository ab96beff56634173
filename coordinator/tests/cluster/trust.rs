//! Who may do what, by certificate.

use serde_json::json;
use unasnap_channel::connect;
use unasnap_protocol::control::{
    Answer, CoordinatorSession, Envelope, Hello, HostSession, Inventory, ToHost,
};
use unasnap_protocol::name::Name;

use crate::support::host::{Fault, Host};
use crate::support::{Cluster, Ended, wait_until};

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
        let inventory = Inventory { vms: vec![], free_bytes: 0 };
        let (protocol, agent_version) = ((1, 1), "1".to_owned());
        let hello = Hello { protocol, host: name("h2"), agent_version, inventory, undecided: vec![] };
        connection.send(&HostSession::Hello(hello).encode(&())).await.unwrap();
        let welcome = ToHost::decode(&connection.recv().await.unwrap().unwrap()).unwrap();
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
            let frame = connection.recv().await.unwrap().unwrap();
            let still_here = CoordinatorSession::decode(&frame);
            heard += usize::from(matches!(still_here, Ok(((), CoordinatorSession::StillHere(_)))));
        }
    });
    let course = cluster.json(&["status"])["courses"][0].clone();
    assert_eq!((&course["phase"], &course["waiting"]), (&json!("PREPARE"), &json!(["vm1"])));
    assert!(!host.orders("vm1").contains(&"Arm"), "{:?}", host.orders("vm1"));
    taking.kill().unwrap();
    taking.wait().unwrap();
}

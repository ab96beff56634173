//! Whoever does not belong here, or does not speak as it should: a clear word to it, a line in the log,
//! and nobody else is disturbed.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rcgen::{CertificateParams, DnType, Issuer, KeyPair};
use unasnap_channel::{ChannelError, Connection, Identity, connect};
use unasnap_protocol::control::{CoordinatorSession, Hello, HostSession, Inventory, ToHost};
use unasnap_protocol::frame::{self, MAX_CONTROL_PAYLOAD};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::Request;

use crate::support::host::Host;
use crate::support::{Cluster, identity, wait_until, within};

/// Lets `visit` misbehave; the coordinator and its host live on, and the log says `words`.
fn disturb(words: &str, visit: impl AsyncFnOnce(&Cluster)) {
    let cluster = Cluster::start();
    let host = Host::start(&cluster, "h1", &["vm1"]);
    cluster.wait_for_vms(1);
    let since = cluster.json(&["host", "list"])["hosts"][0]["since"].clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(visit(&cluster));
    wait_until(&format!("the log says {words:?}"), || cluster.log().contains(words));
    assert_eq!(cluster.run(&["snapshot", "take"]).code, 0);
    let hosts = cluster.json(&["host", "list"]);
    assert_eq!(hosts["hosts"][0]["since"], since, "the host's connection never broke");
    drop(host);
}

fn hello(host: &str, protocol: (u16, u16)) -> Vec<u8> {
    let hello = Hello {
        protocol,
        host: Name::new(host).unwrap(),
        agent_version: "1".to_owned(),
        inventory: Inventory::default(),
        undecided: vec![],
    };
    HostSession::Hello(hello).encode(&())
}

async fn connected(cluster: &Cluster, stem: &str) -> Connection {
    connect(&cluster.address(), &cluster.identity(stem)).await.unwrap()
}

/// What the coordinator says before it closes.
async fn goodbye(cluster: &Cluster, stem: &str, frame: &[u8]) -> String {
    let mut connection = connected(cluster, stem).await;
    connection.send(frame).await.unwrap();
    let last_words = async {
        loop {
            let frame = connection.recv().await.unwrap().expect("a goodbye before the end");
            if let Ok(ToHost::Session(CoordinatorSession::Goodbye(why))) = ToHost::decode(&frame) {
                return why;
            }
        }
    };
    within("a goodbye", last_words).await
}

/// Certificates like the cluster's own, but of another CA.
fn foreign(cluster: &Cluster, stem: &str) -> Identity {
    assert_eq!(cluster.run(&["pki", "init", "--dir", "foreign", "--host", "h1"]).code, 0);
    identity(&cluster.path("foreign"), stem)
}

#[test]
fn a_certificate_of_another_ca() {
    disturb("issued by another CA", async |cluster| {
        let theirs = foreign(cluster, "host-h1");
        let error = connect(&cluster.address(), &theirs).await.unwrap_err();
        assert!(matches!(error, ChannelError::ForeignCa), "{error}");
        // One that trusts our CA, but was not issued by it.
        let folder = cluster.path("foreign");
        std::fs::copy(cluster.path("pki/ca.pem"), folder.join("ca.pem")).unwrap();
        let mut connection = connect(&cluster.address(), &identity(&folder, "host-h1")).await.unwrap();
        let error = within("a refusal", connection.recv()).await.unwrap_err();
        assert!(matches!(error, ChannelError::NotTrusted(_)), "{error}");
    });
}

/// A certificate of h1 that the cluster's CA has issued for a year that is over.
fn expired(cluster: &Cluster) -> Identity {
    let read = |name: &str| std::fs::read_to_string(cluster.path("pki").join(name)).unwrap();
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.distinguished_name.push(DnType::CommonName, "unasnap cluster CA");
    let issuer = Issuer::new(ca, KeyPair::from_pem(&read("ca.key")).unwrap());
    let mut params = CertificateParams::new(vec!["h1.host.unasnap".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let certificate = params.signed_by(&KeyPair::from_pem(&read("host-h1.key")).unwrap(), &issuer).unwrap();
    let folder = cluster.path("expired");
    std::fs::create_dir(&folder).unwrap();
    for same in ["ca.pem", "host-h1.key"] {
        std::fs::copy(cluster.path("pki").join(same), folder.join(same)).unwrap();
    }
    std::fs::write(folder.join("host-h1.pem"), certificate.pem()).unwrap();
    identity(&folder, "host-h1")
}

#[test]
fn a_certificate_that_has_expired() {
    disturb("certificate has expired", async |cluster| {
        let mut connection = connect(&cluster.address(), &expired(cluster)).await.unwrap();
        let error = within("a refusal", connection.recv()).await.unwrap_err();
        assert!(matches!(error, ChannelError::NotTrusted(_)), "{error}");
    });
}

#[test]
fn a_client_that_speaks_plain_text() {
    disturb("does not speak TLS", async |cluster| {
        let mut plain = TcpStream::connect(cluster.address()).unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\nHost: coordinator\r\n\r\n").unwrap();
        plain.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut rest = Vec::new();
        let ended = plain.read_to_end(&mut rest);
        // An alert or a reset, but an end.
        assert!(!ended.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "it is still open");
    });
}

#[test]
fn a_client_that_says_nothing() {
    disturb("did not finish the TLS handshake in 5 s", async |cluster| {
        let _silent = TcpStream::connect(cluster.address()).unwrap();
        tokio::time::sleep(Duration::from_millis(5500)).await;
    });
}

#[test]
fn a_host_that_does_not_say_hello() {
    disturb("said nothing for 5 s", async |cluster| {
        let mut connection = connected(cluster, "host-h2").await;
        assert!(within("a goodbye", connection.recv()).await.unwrap().is_some());
        assert!(within("the end", connection.recv()).await.unwrap().is_none());
    });
}

#[test]
fn a_host_whose_certificate_says_another_name() {
    disturb("calls itself h1, its certificate says h2", async |cluster| {
        let why = goodbye(cluster, "host-h2", &hello("h1", (1, 1))).await;
        assert!(why.contains("calls itself h1, its certificate says h2"), "{why}");
    });
}

#[test]
fn a_host_with_no_common_version() {
    disturb("speaks protocol versions 7 to 9", async |cluster| {
        let why = goodbye(cluster, "host-h2", &hello("h2", (7, 9))).await;
        assert!(why.contains("the coordinator 1; install the same release"), "{why}");
    });
}

#[test]
fn a_frame_of_an_unknown_version() {
    disturb("speaks protocol version 99", async |cluster| {
        let mut bytes = hello("h2", (1, 1));
        bytes[4..6].copy_from_slice(&99u16.to_le_bytes());
        let why = goodbye(cluster, "host-h2", &bytes).await;
        assert!(why.contains("install the same release on both"), "{why}");
    });
}

#[test]
fn a_frame_that_is_too_large() {
    disturb("larger than the 1048576 bytes", async |cluster| {
        let why =
            goodbye(cluster, "host-h2", &frame::encode(1, &vec![0; MAX_CONTROL_PAYLOAD + 1])[..4096]).await;
        assert!(why.contains("larger than"), "{why}");
    });
}

#[test]
fn bytes_that_are_no_frame() {
    disturb("does not speak unasnap's protocol", async |cluster| {
        let why = goodbye(cluster, "host-h2", b"garbage from somewhere else").await;
        assert!(why.contains("not \"USNP\""), "{why}");
    });
}

#[test]
fn garbage_after_a_good_hello() {
    disturb("arrived damaged", async |cluster| {
        let mut damaged = frame::encode(2, b"payload");
        damaged[12] ^= 1;
        let why = goodbye(cluster, "host-h2", &[hello("h2", (1, 1)), damaged].concat()).await;
        assert!(why.contains("checksum"), "{why}");
    });
}

#[test]
fn a_payload_that_does_not_decode() {
    disturb("does not decode", async |cluster| {
        let why = goodbye(cluster, "host-h2", &frame::encode(1, &[0xff; 9])).await;
        assert!(why.contains("hello is not understood"), "{why}");
    });
}

#[test]
fn a_certificate_in_the_wrong_role() {
    disturb("commands need an operator's", async |cluster| {
        cluster.use_certificate("host-h1");
        let refused = cluster.run(&["status"]);
        assert!(refused.code == 3 && refused.stderr.contains("belongs to host h1"), "{}", refused.stderr);
        let why = goodbye(cluster, "operator", &hello("h1", (1, 1))).await;
        assert!(why.contains("a host agent needs its host's"), "{why}");
        cluster.use_certificate("coordinator");
        assert_eq!(cluster.run(&["status"]).code, 3);
        cluster.use_certificate("operator");
    });
}

#[test]
fn an_operator_who_leaves_before_the_answer() {
    disturb("asks: Status", async |cluster| {
        let mut connection = connected(cluster, "operator").await;
        connection.send(&Request::Status(()).encode(&())).await.unwrap();
    });
}

#[test]
fn a_second_connection_of_a_host_replaces_the_first() {
    let cluster = Cluster::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut first = connected(&cluster, "host-h1").await;
        first.send(&hello("h1", (1, 1))).await.unwrap();
        assert!(within("a welcome", first.recv()).await.unwrap().is_some());
        let mut second = connected(&cluster, "host-h1").await;
        second.send(&hello("h1", (1, 1))).await.unwrap();
        assert!(within("a welcome", second.recv()).await.unwrap().is_some());
        within("the first one's end", async { while let Ok(Some(_)) = first.recv().await {} }).await;
    });
    wait_until("the log says so", || cluster.log().contains("connects a second time"));
}

#[test]
fn a_silent_host_counts_as_lost() {
    let cluster = Cluster::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut connection = connected(&cluster, "host-h1").await;
        connection.send(&hello("h1", (1, 1))).await.unwrap();
        within("the end", async { while let Ok(Some(_)) = connection.recv().await {} }).await;
    });
    assert!(cluster.log().contains("lost host h1: it was silent for 5 s"), "{}", cluster.log());
}

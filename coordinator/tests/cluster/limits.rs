//! What a peer can take from the others by coming often, slowly, or with too much: a bounded piece.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use unasnap_channel::{Connection, connect};
use unasnap_protocol::control::{CoordinatorSession, Hello, HostSession, Inventory};
use unasnap_protocol::frame::Frame;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::Request;

use crate::support::host::Host;
use crate::support::{Cluster, wait_until, within};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn inventory() -> Inventory {
    Inventory::default()
}

fn hello(host: &str) -> Vec<u8> {
    let (protocol, host, agent_version) = ((1, 1), Name::new(host).unwrap(), "1".to_owned());
    HostSession::Hello(Hello { protocol, host, agent_version, inventory: inventory(), undecided: vec![] })
        .encode(&())
}

async fn connected(cluster: &Cluster, stem: &str) -> Connection {
    connect(&cluster.address(), &cluster.identity(stem)).await.unwrap()
}

fn goodbye(frame: &Frame) -> Option<String> {
    match CoordinatorSession::decode(frame) {
        Ok(((), CoordinatorSession::Goodbye(why))) => Some(why),
        _ => None,
    }
}

/// Is the connection still open? Reads what is there.
fn is_open(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    match stream.read(&mut [0; 64]) {
        Ok(0) => false,
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    }
}

#[test]
fn a_thousand_idle_connections_do_not_stop_an_operator() {
    let cluster = Cluster::start();
    let _host = Host::start(&cluster, "h1", &["vm1"]);
    cluster.wait_for_vms(1);
    let mut idle: Vec<_> = (0..1000).map(|_| TcpStream::connect(cluster.address()).unwrap()).collect();
    assert_eq!(cluster.run(&["status"]).code, 0);
    assert!(idle.iter_mut().any(is_open), "it waited until they had run out of time");
    assert_eq!(cluster.run(&["snapshot", "take"]).code, 0);
    let open = idle.iter_mut().map(is_open).filter(|open| *open).count();
    assert!(open <= 256, "{open} are open");
    assert!(cluster.log().contains("too many connections without a handshake"));
    wait_until("the rest has run out of time", || !idle.iter_mut().any(is_open));
}

/// Not the time between bytes counts, but the whole.
#[test]
fn a_handshake_byte_by_byte_is_ended_in_time() {
    let cluster = Cluster::start();
    let mut drip = TcpStream::connect(cluster.address()).unwrap();
    // The header of a TLS record that announces a hello of 500 bytes.
    let mut bytes = [0x16, 3, 1, 1, 0xf4, 1, 0, 1, 0xf0, 3, 3].into_iter().chain(std::iter::repeat(0));
    let begun = Instant::now();
    while is_open(&mut drip) {
        assert!(begun.elapsed() < Duration::from_secs(60), "it is still open");
        // An error shows at the next look.
        let _ = drip.write_all(&[bytes.next().unwrap()]);
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(begun.elapsed() > Duration::from_secs(4), "it had its time: {:?}", begun.elapsed());
    wait_until("the log says so", || cluster.log().contains("did not finish the TLS handshake"));
}

#[test]
fn a_first_message_byte_by_byte_is_ended_in_time() {
    let cluster = Cluster::start();
    for (stem, frame) in [("host-h1", hello("h1")), ("operator", Request::Status(()).encode(&()))] {
        runtime().block_on(async {
            let (mut reader, mut writer) = connected(&cluster, stem).await.split();
            let begun = Instant::now();
            let told = loop {
                let at = usize::try_from(begun.elapsed().as_secs()).unwrap();
                assert!(at < 8, "{stem} is still listened to");
                // An error shows when we read.
                let _ = writer.send(&frame[at..=at]).await;
                match tokio::time::timeout(Duration::from_secs(1), reader.recv()).await {
                    Ok(Ok(Some(frame))) => break goodbye(&frame).unwrap(),
                    Ok(other) => panic!("no goodbye: {other:?}"),
                    Err(_) => {}
                }
            };
            assert!(told.contains("said nothing for 5 s"), "{told}");
        });
    }
}

#[test]
fn one_operator_does_not_take_every_place() {
    let cluster = Cluster::start();
    assert_eq!(cluster.run(&["pki", "operator", "bob", "--dir", "pki"]).code, 0);
    runtime().block_on(async {
        let mut open = Vec::new();
        for _ in 0..32 {
            open.push(connected(&cluster, "operator-bob").await);
        }
        // Our end of a handshake is done first.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut more = connected(&cluster, "operator-bob").await;
        let told = goodbye(&within("a goodbye", more.recv()).await.unwrap().unwrap()).unwrap();
        assert!(told.contains("operator bob (role operate) has 32 connections open already"), "{told}");
        let done = cluster.run(&["status"]);
        assert_eq!(done.code, 0, "another operator has places of its own: {}", done.stderr);
    });
}

/// Everything it says is heard in its turn; the others' words are not behind all of it.
#[test]
fn a_host_that_floods_delays_nobody() {
    let cluster = Cluster::start();
    let _host = Host::start(&cluster, "h1", &["vm1"]);
    cluster.wait_for_vms(1);
    let since = cluster.json(&["host", "list"])["hosts"][0]["since"].clone();
    let (enough, until_enough) = tokio::sync::oneshot::channel();
    let flood = {
        let (address, identity) = (cluster.address(), cluster.identity("host-h2"));
        std::thread::spawn(move || {
            runtime().block_on(async {
                let mut connection = connect(&address, &identity).await.unwrap();
                connection.send(&hello("h2")).await.unwrap();
                let report = HostSession::Inventory(inventory()).encode(&()).repeat(2000);
                // It is throttled or ended, both is right.
                let flood = async { while connection.send(&report).await.is_ok() {} };
                tokio::select! { () = flood => {} _ = until_enough => {} }
            });
        })
    };
    wait_until("the flood has begun", || cluster.log().contains("host h2 is connected"));
    for _ in 0..5 {
        assert_eq!(cluster.run(&["snapshot", "take"]).code, 0);
    }
    // The flood may have been ended before.
    let _ = enough.send(());
    flood.join().unwrap();
    assert_eq!(cluster.json(&["host", "list"])["hosts"][0]["since"], since, "h1 was never lost");
}

/// A host that says it lives and reads nothing: its orders wait, up to a bound.
#[test]
fn a_host_that_does_not_read_is_lost_alone() {
    let cluster = Cluster::start();
    let _host = Host::start(&cluster, "h1", &["vm1"]);
    cluster.wait_for_vms(1);
    runtime().block_on(async {
        let (reader, mut writer) = connected(&cluster, "host-h2").await.split();
        writer.send(&hello("h2")).await.unwrap();
        for _ in 0..20 {
            writer.send(&HostSession::Inventory(inventory()).encode(&())).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(cluster.run(&["snapshot", "take"]).code, 0);
        drop(reader);
    });
}

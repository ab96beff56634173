//! Members of a bank as they run: traffic, freezing, read-out and the check.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use unasnap_tests::bank::book::State;
use unasnap_tests::bank::check::check;
use unasnap_tests::bank::control::{Request, ask};
use unasnap_tests::bank::member::{MemberConfig, run};

const MEMBERS: u32 = 3;
const LIMIT: Duration = Duration::from_secs(60);

/// Addresses that nobody listens at.
fn free(count: u32) -> Vec<SocketAddr> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap()).collect()
}

fn all(controls: &[SocketAddr], request: Request) -> Vec<State> {
    controls.iter().map(|control| ask(*control, request).unwrap()).collect()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "{what} did not come within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn received(states: &[State]) -> u64 {
    states.iter().flat_map(|state| &state.peers).map(|peer| peer.received.tcp.last).sum()
}

#[test]
fn members_pay_each_other_until_they_are_frozen_and_go_on() {
    let (members, controls) = (free(MEMBERS), free(MEMBERS));
    let observer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let window = observer.local_addr().unwrap();
    for (member, control) in (1..).zip(controls.clone()) {
        let (members, pause) = (members.clone(), Duration::from_millis(1));
        let config = MemberConfig { member, members, control, pause, show: Some(window) };
        // They run until the test's process ends.
        std::thread::spawn(move || run(&config).unwrap());
    }
    wait_until("300 transfers", || received(&all(&controls, Request::Look)) >= 300);
    // Receiver, sender and transport of every channel.
    let mut shown = BTreeSet::new();
    observer.set_read_timeout(Some(LIMIT)).unwrap();
    while shown.len() < (MEMBERS * (MEMBERS - 1) * 2) as usize {
        let mut arrival = [0; 3];
        assert_eq!(observer.recv(&mut arrival).unwrap(), 3);
        shown.insert(arrival);
    }

    assert!(all(&controls, Request::Freeze).iter().all(|state| state.frozen));
    wait_until("the last transfer", || {
        let states = all(&controls, Request::Look);
        let sent: u64 = states.iter().flat_map(|state| &state.peers).map(|peer| peer.sent.tcp.last).sum();
        received(&states) == sent
    });
    let states = all(&controls, Request::State);
    let verdict = check(&states).unwrap();
    assert_eq!(verdict.violations, []);
    assert!(verdict.transfers >= 300 && verdict.datagrams > 0, "{verdict:?}");
    assert_eq!(all(&controls, Request::State), states, "a frozen bank moved");

    all(&controls, Request::Go);
    let so_far = received(&states);
    wait_until("going on", || received(&all(&controls, Request::Look)) > so_far);
}

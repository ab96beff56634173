//! A member that is told nothing lets traffic through again by itself.

use std::{thread::sleep, time::Duration};

use unasnap_protocol::guest::{Flip, GuestReply, GuestRequest, WordState};

use crate::{
    bench::{Bench, FAMILIES, word},
    frames,
    net::{A_WHILE, Datagrams},
};

const LEASE: Duration = Duration::from_millis(400);
const PORT: u16 = 9;
/// Epochs 0, 1, 2 mod 3.
const CODES: [u8; 3] = [3, 5, 7];
const FLIP: Flip = Flip { from: 3, to: 4 };

fn bench() -> (Bench, Datagrams) {
    let mut bench = Bench::new();
    bench.set_members(CODES, LEASE.as_millis() as u32);
    let [guest, ..] = FAMILIES[0];
    (bench, Datagrams::bind(guest, PORT))
}

/// Has the packet arrived when the sender has sent it? Over a veth pair it then has, if at all.
fn arrives(bench: &Bench, socket: &Datagrams, dscp: u8) -> bool {
    let [guest, peer, _] = FAMILIES[0];
    bench.wire().send(&frames::udp(peer, guest, PORT, dscp << 2, b"to you"));
    socket.receive(A_WHILE).is_some()
}

#[test]
fn a_member_that_drops_the_future_for_longer_than_the_lease_advances() {
    let (mut bench, socket) = bench();
    let armed = word(3, 3, true, true);
    bench.set_word(armed);
    assert!(!arrives(&bench, &socket, CODES[1]));
    assert!(!arrives(&bench, &socket, CODES[1]));
    assert_eq!(bench.word(), armed, "within the lease nothing advances");
    sleep(LEASE);
    assert!(!arrives(&bench, &socket, CODES[1]), "the packet that ends the lease is still dropped");
    assert_eq!(bench.word(), word(4, 4, true, false));
    assert_eq!(bench.counter("self_advanced"), 1);
    assert!(arrives(&bench, &socket, CODES[1]));
    assert!(arrives(&bench, &socket, 0));
}

#[test]
fn dropping_the_uncoloured_counts_as_well() {
    let (mut bench, socket) = bench();
    bench.set_word(word(3, 3, true, true));
    assert!(!arrives(&bench, &socket, 0));
    sleep(LEASE);
    assert!(!arrives(&bench, &socket, 0));
    assert_eq!(bench.word(), word(4, 4, true, false));
}

#[test]
fn a_member_that_advanced_refuses_the_cut() {
    for half_way in [false, true] {
        let (mut bench, socket) = bench();
        bench.set_word(WordState::colouring(3));
        if half_way {
            bench.ask(&GuestRequest::FlipSend(FLIP));
        }
        arrives(&bench, &socket, CODES[1]);
        sleep(LEASE);
        arrives(&bench, &socket, CODES[1]);
        let late = GuestReply::Late(word(4, 4, true, false));
        assert_eq!(bench.ask(&GuestRequest::FlipSend(FLIP)), late);
        assert_eq!(bench.ask(&GuestRequest::FlipReceive(FLIP)), late);
        assert_eq!(bench.ask(&GuestRequest::SetStrict(3)), late);
    }
}

#[test]
fn a_member_that_drops_at_rest_stays_at_rest() {
    let (mut bench, socket) = bench();
    bench.set_word(WordState::idle(3));
    arrives(&bench, &socket, CODES[1]);
    sleep(LEASE);
    arrives(&bench, &socket, CODES[1]);
    assert_eq!(bench.word(), WordState::idle(4));
}

#[test]
fn the_lease_begins_anew_with_every_word_and_every_epoch() {
    let (mut bench, socket) = bench();
    bench.set_word(WordState::colouring(3));
    assert!(!arrives(&bench, &socket, CODES[1]));
    sleep(LEASE);
    bench.set_word(WordState::colouring(3));
    assert!(!arrives(&bench, &socket, CODES[1]));
    assert_eq!(bench.word(), WordState::colouring(3), "PREPARE has forgotten the first drop");
    sleep(LEASE);
    bench.ask(&GuestRequest::FlipSend(FLIP));
    assert!(!arrives(&bench, &socket, CODES[1]));
    assert_eq!(bench.word(), word(4, 3, true, false), "so has the send flip");
    bench.ask(&GuestRequest::FlipReceive(FLIP));
    assert!(!arrives(&bench, &socket, CODES[2]));
    assert_eq!(bench.word(), WordState::colouring(4), "the first drop was of the epoch before");
}

#[test]
fn it_needs_no_agent() {
    let (mut bench, socket) = bench();
    bench.set_word(word(3, 3, true, true));
    bench.kill();
    assert!(!arrives(&bench, &socket, CODES[1]));
    sleep(LEASE);
    assert!(!arrives(&bench, &socket, CODES[1]));
    assert!(arrives(&bench, &socket, CODES[1]));
    bench.start();
    assert_eq!(bench.word(), word(4, 4, true, false));
}

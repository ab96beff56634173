//! What comes to the guest.

use std::net::IpAddr;

use unasnap_protocol::guest::{Flip, GuestRequest, WordState};

use crate::{
    bench::{Attach, Bench, FAMILIES, GUEST_INTERFACE, wait_for, word},
    frames,
    net::{A_WHILE, Datagrams, SOON, Wire, run},
};

const PORT: u16 = 9;
const UNCOLOURED: u8 = 10;
/// Epochs 0, 1, 2 mod 3.
const CODES: [u8; 3] = [3, 5, 7];

struct Row {
    name: &'static str,
    word: WordState,
    dscp: u8,
    /// DSCP that the guest's stack sees; `None` when the packet is dropped.
    seen: Option<u8>,
    counter: Option<&'static str>,
}

fn rows(epoch: u32) -> Vec<Row> {
    let code = |offset: u32| CODES[(epoch + offset) as usize % 3];
    let calm = WordState::colouring(epoch);
    let idle = WordState::idle(epoch);
    let strict = word(epoch, epoch, true, true);
    let straddling = word(epoch + 1, epoch, true, true);
    let row = |name, word, dscp, seen, counter| Row { name, word, dscp, seen, counter };
    vec![
        row("own colour", calm, code(0), Some(0), Some("accepted_coloured")),
        row("own colour at rest", idle, code(0), Some(0), Some("accepted_coloured")),
        row("own colour, strict", strict, code(0), Some(0), Some("accepted_coloured")),
        row("colour before", calm, code(2), Some(0), Some("in_transit")),
        row("colour before at rest", idle, code(2), Some(0), Some("in_transit")),
        row("future", calm, code(1), None, Some("post_dropped")),
        row("future, strict", strict, code(1), None, Some("post_dropped")),
        row("future in the straddle", straddling, code(1), None, Some("post_dropped")),
        row("own colour in the straddle", straddling, code(0), Some(0), Some("accepted_coloured")),
        row("uncoloured", calm, UNCOLOURED, Some(UNCOLOURED), None),
        row("uncoloured, strict", strict, UNCOLOURED, None, Some("uncoloured_dropped")),
        row("bleached, strict", strict, 0, None, Some("uncoloured_dropped")),
    ]
}

/// The guest's socket and the peer's wire, of one address family.
struct Path {
    guest: IpAddr,
    peer: IpAddr,
    stranger: IpAddr,
    socket: Datagrams,
    wire: Wire,
}

impl Path {
    fn all(bench: &Bench) -> [Self; 2] {
        FAMILIES.map(|[guest, peer, stranger]| {
            let socket = Datagrams::bind(guest, PORT);
            Self { guest, peer, stranger, socket, wire: bench.wire() }
        })
    }

    /// Sends one datagram to the guest; it has to arrive with this traffic class, or with `None` not at all.
    fn deliver(&self, from: IpAddr, traffic_class: u8, seen: Option<u8>, context: &str) {
        self.wire.send(&frames::udp(from, self.guest, PORT, traffic_class, b"to you"));
        let limit = if seen.is_some() { SOON } else { A_WHILE };
        let arrived = self.socket.receive(limit).map(|(_, traffic_class)| traffic_class);
        assert_eq!(arrived, seen, "{from}: {context}");
    }
}

#[test]
fn every_row_of_the_table_in_every_colour() {
    for attach in Attach::BOTH {
        let mut bench = Bench::attached(attach);
        for path in Path::all(&bench) {
            for epoch in 3..6 {
                for row in rows(epoch) {
                    let context = format!("{attach:?}, epoch {epoch}, {}", row.name);
                    bench.set_word(row.word);
                    let before = row.counter.map(|name| bench.counter(name));
                    path.deliver(path.peer, row.dscp << 2, row.seen.map(|dscp| dscp << 2), &context);
                    let after = row.counter.map(|name| bench.counter(name));
                    assert_eq!(after, before.map(|count| count + 1), "{context}");
                    assert_eq!(bench.word(), row.word, "{context}");
                }
            }
        }
    }
}

#[test]
fn ecn_is_kept_when_the_colour_is_taken_off() {
    let mut bench = Bench::new();
    bench.set_word(WordState::colouring(1));
    for path in Path::all(&bench) {
        for ecn in 0..4 {
            path.deliver(path.peer, CODES[1] << 2 | ecn, Some(ecn), "own colour");
        }
    }
}

#[test]
fn packets_of_strangers_are_neither_dropped_nor_touched() {
    let mut bench = Bench::new();
    bench.set_word(word(1, 1, true, true));
    for path in Path::all(&bench) {
        for dscp in [CODES[0], CODES[1], CODES[2], UNCOLOURED, 0] {
            path.deliver(path.stranger, dscp << 2 | 1, Some(dscp << 2 | 1), "a stranger's packet");
        }
    }
    // The peer's kernel may have reported its multicast groups, as no member.
    assert!(bench.counter("non_member") >= 10);
}

/// This kernel delivers tagged frames to nobody, so the counters tell what the programs made of them.
#[test]
fn vlan_tagged_frames_are_judged() {
    let mut bench = Bench::new();
    bench.set_word(word(1, 1, true, true));
    let wire = bench.wire();
    for (tags, count) in [(&[0x8100][..], 1), (&[0x88a8, 0x8100], 2)] {
        for [guest, peer, _] in FAMILIES {
            wire.send(&frames::tagged(&frames::udp(peer, guest, PORT, CODES[2] << 2, b"tagged"), tags));
            wire.send(&frames::tagged(&frames::udp(peer, guest, PORT, 0, b"tagged"), tags));
            wire.send(&frames::tagged(&frames::udp(peer, guest, PORT, CODES[1] << 2, b"tagged"), tags));
        }
        assert_eq!(bench.counter("post_dropped"), 2 * count);
        assert_eq!(bench.counter("uncoloured_dropped"), 2 * count);
        assert_eq!(bench.counter("accepted_coloured"), 2 * count);
    }
}

#[test]
fn addresses_are_resolved_while_everything_else_is_dropped() {
    let mut bench = Bench::new();
    bench.set_word(word(1, 1, true, true));
    let wire = bench.wire();
    for [guest, peer, _] in FAMILIES {
        run(&format!("ip neighbour del {peer} dev {GUEST_INTERFACE}"));
        let exempt = bench.counter("exempt");
        Datagrams::bind(guest, 0).send(peer, PORT, 0, b"who has");
        let arrived = wire.receive(SOON, |frame| frames::parse(frame).filter(|packet| packet.protocol == 17));
        assert_eq!(arrived.expect("the peer's address was resolved").destination, peer);
        assert!(bench.counter("exempt") >= exempt + 2, "a question and an answer");
    }
}

#[test]
fn flips_move_the_filter() {
    let mut bench = Bench::new();
    let flip = Flip { from: 3, to: 4 };
    let [path, _] = Path::all(&bench);
    let post = CODES[1] << 2;
    bench.set_word(WordState::colouring(3));
    bench.ask(&GuestRequest::SetStrict(3));
    bench.ask(&GuestRequest::FlipSend(flip));
    path.deliver(path.peer, post, None, "before the receive flip");
    bench.ask(&GuestRequest::FlipReceive(flip));
    path.deliver(path.peer, post, Some(0), "after it");
    path.deliver(path.peer, 0, Some(0), "a member that has cut is not strict");
}

#[test]
fn the_programs_log_drops_if_and_only_if_they_are_told_to() {
    let mut bench = Bench::new();
    let [path, _] = Path::all(&bench);
    bench.set_word(WordState::colouring(0));
    path.deliver(path.peer, CODES[1] << 2, None, "the future");
    assert!(!bench.log().contains("dropped"), "{}", bench.log());
    bench.kill();
    bench.start_with(&["--ebpf-log"]);
    path.deliver(path.peer, CODES[1] << 2, None, "the future");
    let line = "debug: dropped: dscp 5, send 0, receive 0";
    wait_for("the programs' line", || bench.log().contains(line).then_some(()));
}

//! What leaves the guest.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
};

use unasnap_protocol::guest::WordState;

use crate::{
    bench::{Attach, Bench, FAMILIES, GUEST_INTERFACE, GUEST4, PEER4},
    frames::{self, Packet},
    net::{A_WHILE, Datagrams, SOON, Wire},
};

/// Epochs 0, 1, 2 mod 3.
const CODES: [u8; 3] = [3, 5, 7];

fn is_udp(packet: &Packet) -> bool {
    packet.protocol == 17
}

fn next_udp(wire: &Wire) -> Packet {
    wire.receive(SOON, |frame| frames::parse(frame).filter(is_udp)).expect("a datagram on the wire")
}

#[test]
fn every_epoch_has_its_colour_and_ecn_is_kept() {
    for attach in Attach::BOTH {
        let mut bench = Bench::attached(attach);
        let wire = bench.wire();
        let mut sent = 0;
        for [guest, peer, _] in FAMILIES {
            let socket = Datagrams::bind(guest, 0);
            for epoch in 0..4 {
                bench.set_word(WordState::colouring(epoch));
                for ecn in 0..4 {
                    socket.send(peer, 9, 46 << 2 | ecn, b"hello");
                    let packet = next_udp(&wire);
                    assert_eq!(packet.destination, peer);
                    assert_eq!(packet.dscp, CODES[epoch as usize % 3], "{attach:?} epoch {epoch}");
                    assert_eq!(packet.ecn, ecn);
                    sent += 1;
                }
            }
        }
        assert_eq!(bench.counter("coloured"), sent);
    }
}

#[test]
fn other_code_points_can_be_configured() {
    let mut bench = Bench::new();
    bench.set_members([10, 20, 30], 1000);
    bench.set_word(WordState::colouring(2));
    let wire = bench.wire();
    Datagrams::bind(GUEST4, 0).send(PEER4, 9, 0, b"hello");
    assert_eq!(next_udp(&wire).dscp, 30);
}

#[test]
fn at_rest_only_our_code_points_are_taken_from_the_application() {
    let mut bench = Bench::new();
    bench.set_word(WordState::idle(5));
    let wire = bench.wire();
    for [guest, peer, _] in FAMILIES {
        let socket = Datagrams::bind(guest, 0);
        for dscp in [0, 1, 8, 46, 63] {
            socket.send(peer, 9, dscp << 2 | 1, b"mine");
            assert_eq!(next_udp(&wire).dscp, dscp);
        }
        for dscp in CODES {
            socket.send(peer, 9, dscp << 2 | 1, b"yours");
            let packet = next_udp(&wire);
            assert_eq!((packet.dscp, packet.ecn), (0, 1));
        }
    }
    assert_eq!(bench.counter("sanitised"), 6);
    assert_eq!(bench.counter("coloured"), 0);
}

#[test]
fn packets_to_strangers_are_never_touched() {
    let mut bench = Bench::new();
    let wire = bench.wire();
    for word in [WordState::colouring(4), WordState::idle(4)] {
        bench.set_word(word);
        for [guest, _, stranger] in FAMILIES {
            let socket = Datagrams::bind(guest, 0);
            for dscp in [0, 5, 46] {
                socket.send(stranger, 9, dscp << 2 | 2, b"hello");
                let packet = next_udp(&wire);
                assert_eq!((packet.destination, packet.dscp, packet.ecn), (stranger, dscp, 2));
            }
        }
    }
    assert_eq!(bench.counter("coloured"), 0);
    assert_eq!(bench.counter("sanitised"), 0);
    // While colouring each of the six; at rest only the two that might have been sanitised. The guest's
    // kernel may have reported its multicast groups besides, as no member.
    assert!(bench.counter("non_member") >= 8);
}

#[test]
fn every_fragment_carries_the_colour() {
    const IPV6_FRAGMENT: u8 = 44;
    let mut bench = Bench::new();
    bench.set_word(WordState::colouring(1));
    let wire = bench.wire();
    for [guest, peer, _] in FAMILIES {
        Datagrams::bind(guest, 0).send(peer, 9, 0, &[7; 4000]);
        for _ in 0..3 {
            let packet = wire
                .receive(SOON, |frame| {
                    frames::parse(frame).filter(|packet| is_udp(packet) || packet.protocol == IPV6_FRAGMENT)
                })
                .expect("three fragments");
            assert_eq!((packet.destination, packet.dscp), (peer, CODES[1]));
        }
    }
    assert_eq!(bench.counter("coloured"), 6);
}

/// The kernel takes the outermost tag off before a raw socket sees a frame; what is behind it is what counts.
#[test]
fn vlan_tagged_frames_are_coloured() {
    let mut bench = Bench::new();
    bench.set_word(WordState::colouring(2));
    let wire = bench.wire();
    let own = Wire::on(GUEST_INTERFACE);
    for [guest, peer, _] in FAMILIES {
        for tags in [&[][..], &[0x8100], &[0x88a8, 0x8100]] {
            own.send(&frames::tagged(&frames::udp(guest, peer, 9, 2, b"tagged"), tags));
            let packet = next_udp(&wire);
            assert_eq!((packet.destination, packet.dscp, packet.ecn), (peer, CODES[2], 2), "{tags:x?}");
        }
    }
    assert_eq!(bench.counter("coloured"), 6);
}

#[test]
fn a_frame_with_three_tags_or_cut_short_is_left_alone() {
    let mut bench = Bench::new();
    bench.set_word(WordState::colouring(2));
    let own = Wire::on(GUEST_INTERFACE);
    let [guest, peer, _] = FAMILIES[0];
    let frame = frames::udp(guest, peer, 9, 0, b"deep");
    own.send(&frames::tagged(&frame, &[0x88a8, 0x8100, 0x8100]));
    own.send(&frame[..20]);
    own.send(&frame[..14]);
    assert_eq!(bench.counter("coloured"), 0);
}

/// Multicast reaches members, so it is coloured like anything else a member sends.
#[test]
fn multicast_and_broadcast_are_coloured() {
    let mut bench = Bench::new();
    bench.set_word(WordState::colouring(0));
    let wire = bench.wire();
    let own = Wire::on(GUEST_INTERFACE);
    for (source, expected) in [(GUEST4, CODES[0]), (Ipv4Addr::UNSPECIFIED, 0)] {
        let mut frame = frames::udp(IpAddr::V4(source), IpAddr::V4(Ipv4Addr::BROADCAST), 9, 0, b"all");
        frame[..6].fill(0xff);
        own.send(&frame);
        assert_eq!(next_udp(&wire).dscp, expected, "from {source}");
    }
}

#[test]
fn every_segment_of_a_bulk_transfer_is_coloured_offloaded_or_not() {
    const BYTES: usize = 4 << 20;
    const MTU: usize = 1500;
    for address in FAMILIES {
        let [_, peer, _] = address;
        let mut bench = Bench::new();
        bench.set_word(WordState::colouring(1));
        let wire = bench.wire();
        let listener = bench.peer.within(|| TcpListener::bind((peer, 7000)).unwrap());
        let sink = std::thread::spawn(move || {
            let mut received = Vec::new();
            listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
            received.len()
        });
        let mut stream = TcpStream::connect((peer, 7000)).unwrap();
        stream.write_all(&vec![1; BYTES]).unwrap();
        drop(stream);
        assert_eq!(sink.join().unwrap(), BYTES);
        let mut largest = 0;
        let mut segments = 0;
        while let Some(packet) = wire.receive(A_WHILE, frames::parse) {
            if packet.destination == peer && packet.protocol == 6 {
                assert_eq!(packet.dscp, CODES[1], "segment {segments}");
                largest = largest.max(packet.payload.len());
                segments += 1;
            }
        }
        assert!(segments > 2, "a handshake at least");
        assert!(largest > MTU, "segmentation was not offloaded: the largest had {largest} bytes");
    }
}

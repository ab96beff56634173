//! Where the programs hang when others come and go: cards, and programs on the same hook.

use std::path::PathBuf;

use aya::programs::{LinkOrder, SchedClassifier, tc::TcAttachOptions};
use unasnap_loader::{
    Pins, Side,
    programs::{Hook, Programs},
};
use unasnap_protocol::guest::{GuestReply, GuestRequest, WordState};

use crate::{
    bench::{Attach, Bench, GUEST_INTERFACE, GUEST4, PEER4},
    frames,
    net::{Datagrams, SOON},
};

fn leaves_with(bench: &Bench, dscp: u8) {
    let wire = bench.wire();
    Datagrams::bind(GUEST4, 0).send(PEER4, 9, 0, b"hello");
    let packet = wire.receive(SOON, |frame| frames::parse(frame).filter(|packet| packet.protocol == 17));
    assert_eq!(packet.expect("a datagram").dscp, dscp);
}

#[test]
fn a_card_that_was_plugged_in_later_is_found_by_the_next_self_check() {
    for attach in Attach::BOTH {
        let mut bench = Bench::attached(attach);
        bench.set_word(WordState::colouring(4));
        leaves_with(&bench, 5);
        bench.replug();
        leaves_with(&bench, 0);
        assert_eq!(bench.ask(&GuestRequest::SelfCheck(())), GuestReply::Health(vec![]), "{attach:?}");
        leaves_with(&bench, 5);
    }
}

#[test]
fn a_card_that_is_gone_is_named() {
    let mut bench = Bench::new();
    bench.unplug();
    let GuestReply::Health(problems) = bench.ask(&GuestRequest::SelfCheck(())) else { panic!() };
    assert!(problems[0].contains("there is no interface guest0"), "{problems:?}");
}

/// Somebody else's programs, attached later, would be met first on the way in and last on the way out.
#[test]
fn a_program_that_was_displaced_takes_its_place_back() {
    let mut bench = Bench::new();
    let mut others = Programs::load(&others_pins(), false).unwrap();
    for (hook, order) in [(Hook::Ingress, LinkOrder::first()), (Hook::Egress, LinkOrder::last())] {
        let (kind, other) = (hook.attach_type(Side::Guest), others.get(hook).unwrap());
        other.attach_with_options(GUEST_INTERFACE, kind, TcAttachOptions::TcxOrder(order)).unwrap();
        let place_of_other = || {
            let id = other.info().unwrap().id();
            let (_, hanging) = SchedClassifier::query_tcx(GUEST_INTERFACE, kind).unwrap();
            assert_eq!(hanging.len(), 2);
            hanging.iter().position(|found| found.id() == id).unwrap()
        };
        let displaced = place_of_other();
        assert_eq!(bench.ask(&GuestRequest::SelfCheck(())), GuestReply::Health(vec![]));
        assert_ne!(place_of_other(), displaced, "{hook:?}");
    }
    bench.set_word(WordState::colouring(4));
    leaves_with(&bench, 5);
}

fn others_pins() -> Pins {
    let pins = Pins::at(PathBuf::from("/sys/fs/bpf/others"));
    pins.prepare().unwrap();
    pins
}

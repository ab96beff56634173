//! Restores in which a member's files come from elsewhere, and an old instance ends elsewhere.

use super::*;
use crate::control::Moved;

/// `vm1` is fetched from h1 and leaves it; `vm2` stays.
fn moving() -> (Restore, Vec<Command<Decision>>) {
    let source = Source { host: name("h1"), address: "h1:7421".to_owned(), digest: [7; 32] };
    let moves = Moves { fetch: [(name("vm1"), source)].into(), evict: [(name("vm1"), name("h2"))].into() };
    begin_with(&[], moves)
}

fn fetching(sent: u64) -> Answer {
    Answer::Fetching(Moved { sent, to_send: 9, total: 9 })
}

fn lost(kind: FailureKind) -> Answer {
    Answer::Refused(Failure::new(kind, Phase::Fetch, "it broke off"))
}

/// In which phase, by how many steps.
fn in_phase(phase: Phase) -> Restore {
    let (mut restore, _) = moving();
    let steps =
        [Answer::Fetched(Moved::default()), Answer::Ready(()), Answer::Evicted(()), Answer::Loaded(())];
    for step in steps {
        if restore.phase() == phase {
            break;
        }
        answer(&mut restore, "vm1", step.clone());
        answer(&mut restore, "vm2", step);
    }
    assert_eq!(restore.phase(), phase);
    restore
}

#[test]
fn files_come_first_and_the_old_instance_ends_before_anything_is_loaded() {
    let (mut restore, commands) = moving();
    assert_eq!(said(&commands), ["vm1 Fetch", "wake 120"]);
    assert_eq!(answer(&mut restore, "vm2", Answer::Fetched(Moved::default())), [], "it was not asked");
    assert_eq!(
        said(&answer(&mut restore, "vm1", Answer::Fetched(Moved::default()))),
        ["vm1 Poll", "vm2 Poll", "wake 30"]
    );
    answer(&mut restore, "vm1", Answer::Ready(()));
    assert_eq!(
        said(&answer(&mut restore, "vm2", Answer::Ready(()))),
        ["journal Loading", "vm1 Evict", "wake 60"]
    );
    for early in [Answer::Loaded(()), Answer::Started(vec![]), Answer::Ready(())] {
        assert_eq!(answer(&mut restore, "vm1", early.clone()), []);
        assert_eq!(answer(&mut restore, "vm2", early), []);
    }
    assert_eq!(
        said(&answer(&mut restore, "vm1", Answer::Evicted(()))),
        ["vm1 Restore", "vm2 Restore", "wake 300"]
    );
}

#[test]
fn time_counts_from_the_last_byte_that_came() {
    let (mut restore, _) = moving();
    assert_eq!(answer(&mut restore, "vm1", fetching(0)), [], "an attempt is no byte");
    assert_eq!(said(&answer(&mut restore, "vm1", fetching(5))), ["wake 120"]);
    assert_eq!(answer(&mut restore, "vm1", fetching(5)), []);
    assert_eq!(said(&answer(&mut restore, "vm1", fetching(6))), ["wake 120"]);
    assert_eq!(answer(&mut restore, "vm2", fetching(7)), [], "it was not asked");
    assert_eq!(said(&restore.handle(Event::Deadline)), ["failed FETCH: vm1: no answer in 120 s"]);
}

#[test]
fn a_transfer_that_broke_off_is_asked_for_again_and_what_will_not_do_ends_the_restore() {
    for kind in [FailureKind::HostLost, FailureKind::TimedOut] {
        let (mut restore, _) = moving();
        assert_eq!(answer(&mut restore, "vm1", lost(kind)), []);
        assert!(restore.asks_again());
        assert!(matches!(restore.order_again(&name("vm1")), Some(Order::Fetch(_))));
        assert_eq!(restore.order_again(&name("vm2")), None);
        assert_eq!(said(&restore.handle(Event::Deadline)), ["failed FETCH: vm1: it broke off"]);
    }
    for kind in [FailureKind::Files, FailureKind::NoSpace, FailureKind::BadRequest, FailureKind::Internal] {
        let (mut restore, _) = moving();
        assert_eq!(said(&answer(&mut restore, "vm1", lost(kind))), ["failed FETCH: vm1: it broke off"]);
    }
}

#[test]
fn hosts_that_go_are_waited_for_until_an_instance_was_ended() {
    let mut fetching = in_phase(Phase::Fetch);
    assert_eq!(fetching.handle(Event::HostLost(name("vm1"))), []);
    assert_eq!(fetching.handle(Event::HostLost(name("vm2"))), []);
    assert_eq!(said(&answer(&mut fetching, "vm1", Answer::Fetched(Moved::default())))[0], "vm1 Poll");
    let mut evicting = in_phase(Phase::Evict);
    assert!(!evicting.asks_again());
    assert_eq!(evicting.handle(Event::HostLost(name("vm2"))), [], "the next order tells");
    let end = said(&evicting.handle(Event::HostLost(name("vm1"))));
    assert!(end[0].starts_with("failed EVICT: vm1: the connection"), "{end:?}");
    let refusal = said(&answer(&mut in_phase(Phase::Evict), "vm1", refused("QEMU lives")));
    assert_eq!(refusal, ["failed POLL: vm1: QEMU lives"]);
    assert!(said(&in_phase(Phase::Evict).handle(Event::Deadline))[0].contains("vm1: no answer in 60 s"));
}

/// One that is there again in time is waited for; later it is told when it says hello.
#[test]
fn a_host_that_is_back_has_to_end_its_instance_too() {
    for phase in [Phase::Fetch, Phase::Poll] {
        let mut restore = in_phase(phase);
        restore.evict_too(&name("vm2"), &name("h3"));
        answer(&mut restore, "vm1", Answer::Fetched(Moved::default()));
        answer(&mut restore, "vm1", Answer::Ready(()));
        let commands = said(&answer(&mut restore, "vm2", Answer::Ready(())));
        assert_eq!(commands, ["journal Loading", "vm1 Evict", "vm2 Evict", "wake 60"]);
        assert_eq!(answer(&mut restore, "vm1", Answer::Evicted(())), []);
        assert_eq!(said(&answer(&mut restore, "vm2", Answer::Evicted(())))[0], "vm1 Restore");
    }
    for phase in [Phase::Evict, Phase::Restore, Phase::Start] {
        let mut restore = in_phase(phase);
        restore.evict_too(&name("vm2"), &name("h3"));
        assert!(!restore.awaited().contains(&name("vm2")) || phase != Phase::Evict);
        assert_eq!(restore.moves.evict.len(), 1, "{phase}");
    }
}

//! Files that are damaged where a member is to run, and come anew from another host.

use super::*;
use crate::control::Moved;

fn source(host: &str) -> Source {
    Source { host: name(host), address: format!("{host}:7421"), digest: [7; 32] }
}

fn moved(sent: u64) -> Moved {
    Moved { sent, to_send: 9, total: 9 }
}

fn failure(kind: FailureKind, phase: Phase, text: &str) -> Answer {
    Answer::Refused(Failure::new(kind, phase, text))
}

/// Both are polled, and the files of `vm1` are damaged.
fn mending() -> Restore {
    let (mut restore, _) = begin();
    let damage = Failure::new(FailureKind::Files, Phase::Poll, "ram is damaged");
    answer(&mut restore, "vm1", Answer::Refused(damage.clone()));
    assert!(!restore.fetches(&name("vm1")));
    let commands = restore.mend(&name("vm1"), source("h2"), damage);
    assert_eq!(said(&commands), ["vm1 Fetch", "wake 120"]);
    assert!(restore.fetches(&name("vm1")) && restore.phase() == Phase::Poll);
    restore
}

#[test]
fn what_is_damaged_comes_anew_and_is_compared_again() {
    let mut restore = mending();
    assert_eq!(said(&answer(&mut restore, "vm1", Answer::Fetching(moved(5)))), ["wake 120"]);
    // An answer from before.
    assert_eq!(answer(&mut restore, "vm1", Answer::Ready(())), []);
    assert_eq!(answer(&mut restore, "vm1", failure(FailureKind::Files, Phase::Poll, "ram")), []);
    assert_eq!(answer(&mut restore, "vm2", Answer::Ready(())), [], "one is not there yet");
    assert_eq!(said(&answer(&mut restore, "vm1", Answer::Fetched(moved(9)))), ["vm1 Poll", "wake 30"]);
    assert!(!restore.fetches(&name("vm1")));
    assert_eq!(said(&answer(&mut restore, "vm1", Answer::Ready(())))[0], "journal Loading");
    let damage = Failure::new(FailureKind::Files, Phase::Poll, "late");
    assert_eq!(restore.mend(&name("vm1"), source("h2"), damage), [], "too late");
}

#[test]
fn a_transfer_that_broke_off_is_asked_for_again_from_whoever_has_them() {
    let mut restore = mending();
    assert_eq!(answer(&mut restore, "vm1", failure(FailureKind::HostLost, Phase::Fetch, "it broke off")), []);
    restore.fetch_from(&name("vm1"), source("h3"));
    assert_eq!(restore.order_again(&name("vm1")), Some(Order::Fetch(source("h3"))));
    assert_eq!(restore.order_again(&name("vm2")), Some(Order::Poll(())));
    answer(&mut restore, "vm2", Answer::Ready(()));
    assert_eq!(said(&restore.handle(Event::Deadline)), ["failed POLL: vm1: it broke off"]);
}

#[test]
fn what_does_not_come_is_named_with_the_damage() {
    let mut restore = mending();
    let end =
        said(&answer(&mut restore, "vm1", failure(FailureKind::NoSpace, Phase::Fetch, "the disk is full")));
    assert_eq!(end, ["failed FETCH: vm1: ram is damaged; host h2 has them, too, but: the disk is full"]);
    let mut restore = mending();
    answer(&mut restore, "vm2", Answer::Ready(()));
    assert_eq!(
        said(&restore.handle(Event::Deadline)),
        ["failed POLL: vm1: ram is damaged; host h2 has them, too, but nothing of them came in 120 s"]
    );
}

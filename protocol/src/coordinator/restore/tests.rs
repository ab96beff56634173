//! Every event in every state; nothing runs before everything is loaded.

use super::*;

mod mending;
mod moves;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn begin() -> (Restore, Vec<Command<Decision>>) {
    let addresses = [Prefix::V4([10, 0, 0, 1], 32)];
    begin_with(&addresses, Moves::default())
}

fn begin_with(addresses: &[Prefix], moves: Moves) -> (Restore, Vec<Command<Decision>>) {
    Restore::begin(&[name("vm1"), name("vm2")].into(), addresses, moves, Limits::default())
}

fn refused(text: &str) -> Answer {
    Answer::Refused(Failure::new(FailureKind::Files, Phase::Poll, text))
}

fn answer(restore: &mut Restore, vm: &str, answer: Answer) -> Vec<Command<Decision>> {
    restore.handle(Event::Answer(name(vm), answer))
}

const STATES: [&str; 4] = ["polling", "loading", "starting", "done"];

fn in_state(state: &str) -> Restore {
    let (mut restore, _) = begin();
    let steps = [Answer::Ready(()), Answer::Loaded(()), Answer::Started(vec![])];
    let count = STATES.iter().position(|name| *name == state).unwrap();
    for step in &steps[..count] {
        answer(&mut restore, "vm1", step.clone());
        answer(&mut restore, "vm2", step.clone());
    }
    restore
}

fn said(commands: &[Command<Decision>]) -> Vec<String> {
    let word = |command: &Command<Decision>| match command {
        Command::Journal(decision) => format!("journal {decision:?}"),
        Command::Send(vm, order) => format!("{vm} {}", order.name()),
        Command::WakeAfter(limit) => format!("wake {}", limit.as_secs()),
        Command::Finished(Ok(())) => "finished".to_owned(),
        Command::Finished(Err(failure)) => format!("failed {failure}"),
    };
    commands.iter().map(word).collect()
}

#[test]
fn a_restore_from_begin_to_end() {
    let (mut restore, commands) = begin();
    assert_eq!(said(&commands), ["vm1 Poll", "vm2 Poll", "wake 30"]);
    let steps: [(Answer, &[&str]); 3] = [
        (Answer::Ready(()), &["journal Loading", "vm1 Restore", "vm2 Restore", "wake 300"]),
        (Answer::Loaded(()), &["vm1 Start", "vm2 Start", "wake 30"]),
        (Answer::Started(vec!["no clock".to_owned()]), &["journal Started", "finished"]),
    ];
    for (reply, expected) in steps {
        assert_eq!(said(&answer(&mut restore, "vm2", reply.clone())), [""; 0], "the other is awaited");
        assert_eq!(said(&answer(&mut restore, "vm1", reply)), expected);
    }
    assert_eq!(restore.warnings(), ["vm2: no clock", "vm1: no clock"]);
    assert_eq!(restore.order_again(&name("vm1")), None);
}

#[test]
fn every_answer_in_every_state() {
    let replies = [
        Answer::Ready(()),
        Answer::Loaded(()),
        Answer::Started(vec![]),
        Answer::Settled(()),
        Answer::Prepared(()),
    ];
    for (at, state) in STATES.iter().enumerate() {
        for (kind, reply) in replies.iter().enumerate() {
            let mut restore = in_state(state);
            let phase = restore.phase();
            let first = answer(&mut restore, "vm1", reply.clone());
            let second = answer(&mut restore, "vm2", reply.clone());
            assert_eq!(first, [], "{} in {state}", reply.name());
            let fits = kind == at && at < 3;
            assert_eq!(!second.is_empty(), fits, "{} in {state}", reply.name());
            assert!(fits || restore.phase() == phase, "{} in {state}", reply.name());
        }
    }
}

#[test]
fn a_refusal_is_asked_again_while_polling_and_fails_afterwards() {
    let mut polling = in_state("polling");
    assert_eq!(answer(&mut polling, "vm1", refused("a file is missing")), []);
    assert!(polling.awaited().contains(&name("vm1")));
    assert!(polling.asks_again());
    assert!(matches!(polling.order_again(&name("vm1")), Some(Order::Poll(()))));
    for state in ["loading", "starting"] {
        let mut restore = in_state(state);
        assert_eq!(said(&answer(&mut restore, "vm1", refused("no room"))), ["failed POLL: vm1: no room"]);
        assert_eq!(restore.handle(Event::Deadline), [], "it is over");
    }
    assert_eq!(answer(&mut in_state("done"), "vm1", refused("late")), []);
}

/// A member that was ready and then lost its host has to be ready again before anything is loaded.
#[test]
fn a_host_that_goes_while_polling_is_awaited_again() {
    let mut restore = in_state("polling");
    answer(&mut restore, "vm1", Answer::Ready(()));
    assert_eq!(restore.handle(Event::HostLost(name("vm1"))), []);
    assert_eq!(answer(&mut restore, "vm2", Answer::Ready(())), []);
    assert_eq!(said(&answer(&mut restore, "vm1", Answer::Ready(())))[0], "journal Loading");
}

#[test]
fn a_host_that_goes_later_fails_it() {
    for (state, phase) in [("loading", "RESTORE"), ("starting", "START")] {
        let end = said(&in_state(state).handle(Event::HostLost(name("vm2"))));
        assert_eq!(end.len(), 1);
        assert!(end[0].starts_with(&format!("failed {phase}: vm2: the connection")), "{end:?}");
    }
    assert_eq!(in_state("done").handle(Event::HostLost(name("vm2"))), []);
    assert_eq!(in_state("loading").handle(Event::HostLost(name("vm9"))), []);
}

#[test]
fn a_deadline_names_who_was_late_and_why() {
    let mut restore = in_state("polling");
    answer(&mut restore, "vm1", refused("a file is missing"));
    assert_eq!(
        said(&restore.handle(Event::Deadline)),
        ["failed POLL: vm1: a file is missing; vm2: no answer in 30 s"]
    );
    let mut ready_later = in_state("polling");
    answer(&mut ready_later, "vm1", refused("not yet"));
    answer(&mut ready_later, "vm1", Answer::Ready(()));
    assert_eq!(said(&ready_later.handle(Event::Deadline)), ["failed POLL: vm2: no answer in 30 s"]);
    assert!(said(&in_state("loading").handle(Event::Deadline))[0].contains("vm1: no answer in 300 s"));
    assert!(said(&in_state("starting").handle(Event::Deadline))[0].contains("failed START"));
    assert_eq!(in_state("done").handle(Event::Deadline), []);
}

/// The fence: with any one LOADED missing, no START has left.
#[test]
fn nothing_starts_before_everything_is_loaded() {
    let mut restore = in_state("loading");
    let mut commands = answer(&mut restore, "vm1", Answer::Loaded(()));
    commands.extend(answer(&mut restore, "vm1", Answer::Loaded(())));
    commands.extend(answer(&mut restore, "vm1", Answer::Started(vec![])));
    commands.extend(answer(&mut restore, "vm9", Answer::Loaded(())));
    assert_eq!(commands, []);
}

#[test]
fn a_restore_starts_at_a_new_epoch_of_the_old_colour() {
    for last in 1..12 {
        for snapshot in 1..=last {
            let epoch = epoch_for(snapshot, last);
            assert!(epoch > last && epoch <= last + 3, "{snapshot} of {last}: {epoch}");
            assert_eq!(epoch % 3, snapshot % 3);
        }
    }
}

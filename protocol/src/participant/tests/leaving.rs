//! EVICT: the VM lives on another host from its incarnation on.

use super::*;
use crate::control::Source;

fn evict(incarnation: u64) -> (Envelope, Order) {
    (Envelope { incarnation, ..envelope("s1") }, Order::Evict(Name::new("h2").unwrap()))
}

#[test]
fn a_member_leaves_from_any_state_and_undoes_what_was_begun() {
    for (state, expected) in [
        ("idle", vec!["EVICT"]),
        ("prepared", vec!["UNDO", "EVICT"]),
        ("armed", vec!["UNDO", "EVICT"]),
        ("saving", vec!["UNDO", "EVICT"]),
        ("saved", vec!["EVICT"]),
        ("loaded", vec!["EVICT"]),
    ] {
        let mut participant = in_state(state);
        let (envelope, order) = evict(participant.incarnation() + 3);
        let mut commands = participant.handle(Event::Order(envelope, order));
        let mut steps = Vec::new();
        let mut answers = Vec::new();
        while let Some(command) = commands.first().cloned() {
            commands.remove(0);
            match command {
                Command::Do(job) => {
                    steps.push(if job.step == Step::Undo { "UNDO" } else { "EVICT" });
                    commands.extend(participant.handle(Event::JobDone(Ok(outcome(&job.step)))));
                }
                Command::Answer(_, answer) => answers.push(answer.name()),
                Command::Save(_) | Command::WakeAfter(_) => {}
            }
        }
        assert_eq!((steps, answers.last()), (expected, Some(&"Evicted")), "{state}");
        assert_eq!(participant.open(), None, "{state}");
    }
}

#[test]
fn what_has_left_obeys_no_older_incarnation_and_may_come_back_with_a_newer_one() {
    let mut participant = in_state("idle");
    let (before, order) = evict(participant.incarnation() - 1);
    let answers = obeyed(&mut participant, before, order);
    assert!(matches!(answers[..], [Answer::Refused(_)]), "an order of before a restore");
    let (envelope, order) = evict(5);
    assert_eq!(obeyed(&mut participant, envelope.clone(), order.clone()), [Answer::Evicted(())]);
    assert_eq!(obeyed(&mut participant, envelope.clone(), order), [Answer::Evicted(())], "once more");
    assert_eq!(participant.incarnation(), 5);
    let answers =
        obeyed(&mut participant, Envelope { incarnation: 4, ..envelope.clone() }, Order::Restore(()));
    assert!(matches!(answers[..], [Answer::Refused(_)]));
    let answers = obeyed(&mut participant, Envelope { incarnation: 6, ..envelope }, Order::Restore(()));
    assert_eq!(answers, [Answer::Loaded(())]);
}

#[test]
fn an_instance_that_cannot_be_ended_is_said_and_may_be_tried_again() {
    let mut participant = in_state("idle");
    let (envelope, order) = evict(5);
    participant.handle(Event::Order(envelope.clone(), order.clone()));
    let commands = participant.handle(Event::JobDone(Err(failure())));
    assert!(matches!(settle(&mut participant, commands)[..], [Answer::Refused(_)]));
    assert_eq!(obeyed(&mut participant, envelope, order), [Answer::Evicted(())]);
}

/// Files are the host's affair.
#[test]
fn a_member_does_not_fetch() {
    let source = Source { host: Name::new("h2").unwrap(), address: "h2:7421".to_owned(), digest: [7; 32] };
    for state in ["idle", "prepared", "saved", "loaded"] {
        let mut participant = in_state(state);
        let current = Envelope { incarnation: participant.incarnation(), ..envelope("s1") };
        let answers = obeyed(&mut participant, current, Order::Fetch(source.clone()));
        assert!(
            matches!(&answers[..], [Answer::Refused(failure)] if failure.phase == Phase::Fetch),
            "{state}: {answers:?}"
        );
    }
}

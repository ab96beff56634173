//! Every order in every state, abort everywhere, every order repeated, every job failed in turn.

use super::*;
use crate::control::Colouring;
use crate::name::Name;
use crate::power::{Controlled, Verb};

mod leaving;

fn envelope(snapshot: &str) -> Envelope {
    let name = |text: &str| Name::new(text).unwrap();
    Envelope {
        vm: name("vm1"),
        deployment: name("ring"),
        snapshot: name(snapshot),
        epoch: 3 + snapshot[1..].parse::<u32>().unwrap(),
        term: 2,
        incarnation: 1,
    }
}

fn cut() -> CutReport {
    CutReport {
        colouring: Colouring::Guest,
        send_flipped_ns: 1,
        stopped_ns: 2,
        instant_ns: 3,
        resumed_ns: 4,
        receive_flipped_ns: 5,
        parts: vec![],
        outside_connections: None,
    }
}

fn saved() -> SavedReport {
    SavedReport { digest: [7; 32], bytes: 9, saved_ns: 6 }
}

fn failure() -> Failure {
    Failure::new(FailureKind::Hypervisor, Phase::Take, "QEMU died")
}

const STATES: [&str; 6] = ["idle", "prepared", "armed", "saving", "saved", "loaded"];

/// Drives a new participant into a state by the orders that lead there.
fn in_state(state: &str) -> Participant {
    let mut participant = Participant::new(1);
    let orders: &[Order] = match state {
        "idle" => &[],
        "prepared" => &[Order::Prepare(vec![])],
        "armed" => &[Order::Prepare(vec![]), Order::Arm(())],
        "saving" | "saved" => &[Order::Prepare(vec![]), Order::Arm(()), Order::Take(None)],
        "loaded" => &[Order::Restore(())],
        other => panic!("no state {other}"),
    };
    for order in orders {
        obeyed(&mut participant, envelope("s1"), order.clone());
    }
    if state == "saved" {
        participant.handle(Event::SaveDone(Ok(saved())));
    }
    participant
}

fn controlled(state: VmState, incarnation: u64) -> Controlled {
    Controlled { state, incarnation, changed: true, note: String::new() }
}

fn outcome(step: &Step) -> Outcome {
    match step {
        Step::Cut(_) => Outcome::Cut(cut()),
        Step::Control(_) => Outcome::Controlled(controlled(VmState::Stopped, 0)),
        _ => Outcome::Done,
    }
}

/// Gives an order, lets every job succeed, and returns the answers.
fn obeyed(participant: &mut Participant, envelope: Envelope, order: Order) -> Vec<Answer> {
    let commands = participant.handle(Event::Order(envelope, order));
    settle(participant, commands)
}

fn settle(participant: &mut Participant, mut commands: Vec<Command>) -> Vec<Answer> {
    let mut answers = Vec::new();
    while !commands.is_empty() {
        let mut next = Vec::new();
        for command in commands {
            match command {
                Command::Answer(_, answer) => answers.push(answer),
                Command::Do(job) => next.extend(participant.handle(Event::JobDone(Ok(outcome(&job.step))))),
                Command::Save(_) | Command::WakeAfter(_) => {}
            }
        }
        commands = next;
    }
    answers
}

fn jobs(commands: &[Command]) -> Vec<Step> {
    let step = |command: &Command| match command {
        Command::Do(job) => Some(job.step.clone()),
        _ => None,
    };
    commands.iter().filter_map(step).collect()
}

/// What one order leads to: names of the answers, in order.
fn answers(state: &str, order: Order) -> Vec<&'static str> {
    obeyed(&mut in_state(state), envelope("s1"), order).iter().map(Answer::name).collect()
}

#[test]
fn every_order_in_every_state() {
    let table: [(Order, [&[&str]; 6]); 12] = [
        (
            Order::Prepare(vec![]),
            [&["Prepared"], &["Prepared"], &["Refused"], &["Refused"], &["Refused"], &["Refused"]],
        ),
        (Order::Arm(()), [&["Refused"], &["Armed"], &["Armed"], &["Refused"], &["Refused"], &["Refused"]]),
        (
            Order::Take(None),
            [&["Refused"], &["Refused"], &["Cut"], &["Cut"], &["Cut", "Saved"], &["Refused"]],
        ),
        (Order::Clear(()), [&[], &["Refused"], &["Refused"], &[], &[], &["Refused"]]),
        (
            Order::Commit(()),
            [&["Settled"], &["Refused"], &["Refused"], &["Refused"], &["Settled"], &["Refused"]],
        ),
        (
            Order::Abort(String::new()),
            [&["Settled"], &["Settled"], &["Settled"], &["Settled"], &["Settled"], &["Refused"]],
        ),
        (Order::Poll(()), [&["Ready"]; 6]),
        (
            Order::Restore(()),
            [
                &["Loaded"],
                &["Settled", "Loaded"],
                &["Settled", "Loaded"],
                &["Settled", "Loaded"],
                &["Loaded"],
                &["Loaded"],
            ],
        ),
        (
            Order::Start(vec![]),
            [&["Started"], &["Refused"], &["Refused"], &["Refused"], &["Refused"], &["Started"]],
        ),
        (Order::Delete(()), [&["Deleted"]; 6]),
        (Order::Verify(()), [&["Ready"]; 6]),
        (
            Order::Control(Verb::Kill),
            [&["Controlled"], &["Refused"], &["Refused"], &["Refused"], &["Refused"], &["Refused"]],
        ),
    ];
    for (order, expected) in table {
        for (state, expected) in STATES.iter().zip(expected) {
            assert_eq!(answers(state, order.clone()), expected, "{order:?} when {state}");
        }
    }
}

#[test]
fn every_order_repeated_has_the_effect_of_one() {
    for state in STATES {
        for order in [
            Order::Prepare(vec![]),
            Order::Arm(()),
            Order::Take(None),
            Order::Commit(()),
            Order::Abort(String::new()),
        ] {
            let mut participant = in_state(state);
            obeyed(&mut participant, envelope("s1"), order.clone());
            let after_one = participant.clone();
            obeyed(&mut participant, envelope("s1"), order.clone());
            assert_eq!(participant.state, after_one.state, "{order:?} twice when {state}");
        }
    }
}

#[test]
fn an_order_repeated_while_its_job_runs_starts_no_second_job() {
    let mut participant = in_state("armed");
    let timed = Order::Take(Some(8));
    assert_eq!(jobs(&participant.handle(Event::Order(envelope("s1"), timed))), [Step::Cut(Some(8))]);
    assert_eq!(participant.handle(Event::Order(envelope("s1"), Order::Take(None))), []);
    let done = participant.handle(Event::JobDone(Ok(Outcome::Cut(cut()))));
    assert_eq!(jobs(&done), []);
    let answers = done.iter().filter(|command| matches!(command, Command::Answer(..)));
    assert_eq!(answers.count(), 1, "{done:?}");
}

#[test]
fn an_abort_that_comes_during_any_job_is_carried_out_after_it() {
    for (state, order) in [
        ("idle", Order::Prepare(vec![])),
        ("prepared", Order::Arm(())),
        ("armed", Order::Take(None)),
        ("saved", Order::Clear(())),
    ] {
        for result in [true, false] {
            let mut participant = in_state(state);
            let commands = participant.handle(Event::Order(envelope("s1"), order.clone()));
            let [step] =
                jobs(&commands)[..].to_vec().try_into().unwrap_or_else(|_| panic!("one job for {order:?}"));
            assert_eq!(participant.handle(Event::Order(envelope("s1"), Order::Abort(String::new()))), []);
            // A later, stale order must not push the abort out of the mailbox.
            assert_eq!(participant.handle(Event::Order(envelope("s1"), Order::Take(None))), []);
            let done = if result { Ok(outcome(&step)) } else { Err(failure()) };
            let commands = participant.handle(Event::JobDone(done));
            assert!(jobs(&commands).contains(&Step::Undo), "{order:?} then abort");
            settle(&mut participant, commands);
            assert_eq!(participant.state, State::Idle);
            assert_eq!(participant.open(), None);
        }
    }
}

#[test]
fn a_failed_step_before_the_commit_undoes_everything() {
    for (state, order) in
        [("idle", Order::Prepare(vec![])), ("prepared", Order::Arm(())), ("armed", Order::Take(None))]
    {
        let mut participant = in_state(state);
        participant.handle(Event::Order(envelope("s1"), order));
        let commands = participant.handle(Event::JobDone(Err(failure())));
        assert_eq!(commands[0], Command::Answer(envelope("s1"), Answer::Refused(failure())));
        assert_eq!(jobs(&commands), [Step::Undo]);
    }
    let commands = in_state("saving").handle(Event::SaveDone(Err(failure())));
    assert_eq!(jobs(&commands), [Step::Undo]);
}

#[test]
fn a_commit_that_fails_does_not_keep_the_member_from_later_snapshots() {
    let mut participant = in_state("saved");
    participant.handle(Event::Order(envelope("s1"), Order::Commit(())));
    participant.handle(Event::JobDone(Err(failure())));
    let answers = obeyed(&mut participant, envelope("s2"), Order::Prepare(vec![]));
    assert_eq!(answers, [Answer::Prepared(())]);
}

#[test]
fn saving_that_fails_while_colouring_is_cleared_is_undone_after_it() {
    let mut participant = in_state("saving");
    participant.handle(Event::Order(envelope("s1"), Order::Clear(())));
    assert_eq!(jobs(&participant.handle(Event::SaveDone(Err(failure())))), []);
    assert_eq!(jobs(&participant.handle(Event::JobDone(Ok(Outcome::Done)))), [Step::Undo]);
}

#[test]
fn a_member_waits_for_orders_only_before_its_cut() {
    for state in STATES {
        let commands = in_state(state).handle(Event::Deadline);
        let expected: &[Step] = if ["prepared", "armed"].contains(&state) { &[Step::Undo] } else { &[] };
        assert_eq!(jobs(&commands), expected, "{state}");
    }
}

#[test]
fn lower_terms_and_other_incarnations_are_refused_in_every_state() {
    let orders = [
        Order::Prepare(vec![]),
        Order::Arm(()),
        Order::Take(None),
        Order::Clear(()),
        Order::Commit(()),
        Order::Abort(String::new()),
    ];
    for state in STATES {
        for order in &orders {
            for (term, incarnation) in [(1, 1), (2, 0), (2, 2)] {
                let mut participant = in_state(state);
                participant.term = 2;
                let stale = Envelope { term, incarnation, ..envelope("s1") };
                let answers = obeyed(&mut participant, stale, order.clone());
                assert!(
                    matches!(&answers[..], [Answer::Refused(Failure { kind: FailureKind::Stale, .. })]),
                    "{order:?} when {state}"
                );
            }
        }
    }
}

#[test]
fn a_coordinator_of_a_higher_term_may_decide_what_the_old_one_began() {
    for state in ["prepared", "armed", "saving", "saved"] {
        let mut participant = in_state(state);
        let successor = Envelope { term: 3, ..envelope("s1") };
        assert_eq!(obeyed(&mut participant, successor, Order::Abort(String::new())), [Answer::Settled(())]);
        assert_eq!(participant.state, State::Idle);
    }
}

#[test]
fn a_decision_about_another_snapshot_leaves_the_open_one_alone() {
    for state in ["prepared", "armed", "saving", "saved", "loaded"] {
        for order in [Order::Commit(()), Order::Abort(String::new())] {
            let mut participant = in_state(state);
            let before = participant.state.clone();
            let answers = obeyed(&mut participant, envelope("s0"), order);
            assert_eq!(answers[0].name(), "Refused");
            assert_eq!(participant.state, before);
        }
    }
}

#[test]
fn a_prepare_whose_predecessor_lost_its_abort_undoes_it_first() {
    for state in ["prepared", "armed"] {
        let mut participant = in_state(state);
        let commands = participant.handle(Event::Order(envelope("s2"), Order::Prepare(vec![])));
        assert_eq!(jobs(&commands), [Step::Undo]);
        let names: Vec<_> = settle(&mut participant, commands).iter().map(Answer::name).collect();
        assert_eq!(names, ["Settled", "Prepared"]);
        assert_eq!(participant.open(), Some(&envelope("s2")));
    }
}

#[test]
fn a_restore_brings_a_new_incarnation_and_fences_the_old_one() {
    let mut participant = in_state("idle");
    let restore = Envelope { incarnation: 2, ..envelope("s1") };
    assert_eq!(obeyed(&mut participant, restore.clone(), Order::Restore(())), [Answer::Loaded(())]);
    assert_eq!(obeyed(&mut participant, restore, Order::Start(vec![])), [Answer::Started(vec![])]);
    assert_eq!(participant.incarnation(), 2);
    assert_eq!(obeyed(&mut participant, envelope("s1"), Order::Restore(()))[0].name(), "Refused");
}

#[test]
fn a_newer_prepare_ends_what_was_never_decided_here() {
    for state in ["prepared", "armed", "saving"] {
        let mut participant = in_state(state);
        let commands = participant.handle(Event::Order(envelope("s2"), Order::Prepare(vec![])));
        assert_eq!(jobs(&commands), [Step::Undo], "{state}: nothing of s1 was committed");
        let answers = settle(&mut participant, commands);
        assert!(matches!(answers.last(), Some(Answer::Prepared(()))), "{state}: {answers:?}");
    }
    let mut participant = in_state("saved");
    let commands = participant.handle(Event::Order(envelope("s2"), Order::Prepare(vec![])));
    assert_eq!(jobs(&commands), [Step::Prepare(vec![])], "s1 may have been committed: its files stay");
    assert_eq!(settle(&mut participant, commands), [Answer::Prepared(())]);
}

#[test]
fn an_older_prepare_ends_nothing() {
    for state in ["prepared", "armed", "saving", "saved"] {
        let mut participant = in_state(state);
        let commands = participant.handle(Event::Order(envelope("s0"), Order::Prepare(vec![])));
        assert_eq!(jobs(&commands), [], "{state}");
        assert_eq!(participant.open(), Some(&envelope("s1")), "{state}");
    }
}

#[test]
fn a_restore_keeps_what_may_have_been_committed() {
    let steps = |state| {
        let mut participant = in_state(state);
        jobs(&participant.handle(Event::Order(envelope("s1"), Order::Restore(()))))
    };
    assert_eq!(steps("saved"), [Step::Restore]);
    assert_eq!(steps("saving"), [Step::Undo]);
}

#[test]
fn a_hello_asks_about_every_snapshot_whose_end_was_not_heard() {
    let waiting = ["prepared", "armed", "saving"].map(|state| (state, Some(false)));
    for (state, asks) in waiting.into_iter().chain([("idle", None), ("saved", Some(true))]) {
        assert_eq!(in_state(state).undecided().map(|one| one.saved), asks, "{state}");
    }
    let mut cutting = in_state("armed");
    cutting.handle(Event::Order(envelope("s1"), Order::Take(None)));
    assert_eq!(cutting.undecided().map(|one| one.saved), Some(false), "the cut may be made by now");
}

#[test]
fn a_later_course_does_not_displace_a_decision_that_waits() {
    let mut participant = in_state("armed");
    participant.handle(Event::Order(envelope("s1"), Order::Take(None)));
    for order in [Order::Abort(String::new()), Order::Prepare(vec![]), Order::Abort(String::new())] {
        let of =
            if matches!(order, Order::Prepare(_)) || participant.decision.is_some() { "s2" } else { "s1" };
        participant.handle(Event::Order(envelope(of), order));
    }
    let commands = participant.handle(Event::JobDone(Ok(Outcome::Cut(cut()))));
    assert_eq!(jobs(&commands), [Step::Undo], "the cut of s1 is undone first");
    let answers = settle(&mut participant, commands);
    assert!(answers.iter().filter(|answer| **answer == Answer::Settled(())).count() == 2, "{answers:?}");
    assert_eq!(participant.open(), None);
}

#[test]
fn a_decision_reaches_the_files_of_a_vm_that_has_died() {
    for order in [Order::Commit(()), Order::Abort(String::new())] {
        let answers = obeyed(&mut Participant::new(0), envelope("s1"), order);
        assert_eq!(answers, [Answer::Settled(())]);
    }
    let answers = obeyed(&mut Participant::new(0), envelope("s1"), Order::Prepare(vec![]));
    assert!(matches!(answers.as_slice(), [Answer::Refused(failure)] if failure.kind == FailureKind::Stale));
}

#[test]
fn a_poll_before_the_cut_does_not_end_the_lease() {
    for (state, lease) in [("prepared", PREPARED_LEASE), ("armed", ARMED_LEASE)] {
        for result in [Ok(Outcome::Done), Err(failure())] {
            let mut participant = in_state(state);
            participant.handle(Event::Order(envelope("s0"), Order::Poll(())));
            let commands = participant.handle(Event::JobDone(result));
            assert!(commands.contains(&Command::WakeAfter(Some(lease))), "{state}: {commands:?}");
        }
    }
}

/// It would be carried out when the operator was told long ago that it failed, perhaps in the middle of a snapshot.
#[test]
fn control_does_not_wait_for_a_job_to_end() {
    let mut participant = in_state("idle");
    participant.handle(Event::Order(envelope("s1"), Order::Prepare(vec![])));
    let busy = participant.handle(Event::Order(envelope("s9"), Order::Control(Verb::Kill)));
    let [Command::Answer(_, Answer::Refused(failure))] = &busy[..] else { panic!("{busy:?}") };
    assert!(failure.phase == Phase::Control && failure.text.contains("s1 is under way"), "{failure}");
    let done = participant.handle(Event::JobDone(Ok(Outcome::Done)));
    assert_eq!(jobs(&done), []);
    assert!(matches!(participant.state, State::Prepared(_)));
}

/// And a snapshot that is ordered during a control waits for it.
#[test]
fn prepare_waits_for_a_control() {
    let mut participant = in_state("idle");
    participant.handle(Event::Order(envelope("s9"), Order::Control(Verb::Stop)));
    assert_eq!(participant.handle(Event::Order(envelope("s1"), Order::Prepare(vec![]))), []);
    let done = participant.handle(Event::JobDone(Ok(Outcome::Controlled(controlled(VmState::Stopped, 0)))));
    assert_eq!(jobs(&done), [Step::Prepare(vec![])]);
}

/// An agent that was started anew beside a dead VM knows incarnation 0; the VM goes on under that of its last run, and one
/// that lost it is refused until it is restored.
#[test]
fn a_vm_that_is_booted_again_is_of_the_incarnation_that_it_says() {
    for (booted, expected) in [(1, "Prepared"), (0, "Refused")] {
        let mut participant = Participant::new(0);
        participant.handle(Event::Order(envelope("s9"), Order::Control(Verb::Start)));
        let done = Outcome::Controlled(controlled(VmState::Starting, booted));
        let commands = participant.handle(Event::JobDone(Ok(done)));
        assert_eq!(
            settle(&mut participant, commands).iter().map(Answer::name).collect::<Vec<_>>(),
            ["Controlled"]
        );
        let answers = obeyed(&mut participant, envelope("s1"), Order::Prepare(vec![]));
        assert_eq!(answers.iter().map(Answer::name).collect::<Vec<_>>(), [expected], "{booted}");
    }
}

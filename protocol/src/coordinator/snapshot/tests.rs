//! Every event in every state; abort everywhere; what is early is kept, what is late changes nothing.

use super::*;
use crate::control::Colouring;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn members() -> BTreeSet<Name> {
    [name("vm1"), name("vm2")].into()
}

fn cut_at(instant_ns: u64) -> Answer {
    Answer::Cut(CutReport {
        colouring: Colouring::Guest,
        send_flipped_ns: 1,
        stopped_ns: 2,
        instant_ns,
        resumed_ns: 4,
        receive_flipped_ns: 5,
        parts: vec![],
        outside_connections: None,
    })
}

fn saved() -> Answer {
    Answer::Saved(SavedReport { digest: [7; 32], bytes: 9, saved_ns: 6 })
}

fn refused(phase: Phase) -> Answer {
    Answer::Refused(Failure::new(FailureKind::Hypervisor, phase, "QEMU died"))
}

fn begin() -> (Snapshot, Vec<Command<Decision>>) {
    Snapshot::begin(&members(), &[Prefix::V4([10, 0, 0, 1], 32)], Limits::default())
}

fn answer(snapshot: &mut Snapshot, vm: &str, answer: Answer) -> Vec<Command<Decision>> {
    snapshot.handle(Event::Answer(name(vm), answer))
}

fn both(snapshot: &mut Snapshot, reply: &Answer) -> Vec<Command<Decision>> {
    let first = answer(snapshot, "vm1", reply.clone());
    [first, answer(snapshot, "vm2", reply.clone())].concat()
}

const STATES: [&str; 7] = ["preparing", "arming", "taking", "saving", "committing", "aborting", "done"];

fn in_state(state: &str) -> Snapshot {
    let (mut snapshot, _) = begin();
    if state == "aborting" {
        snapshot.cancel(Failure::new(FailureKind::BadRequest, Phase::Abort, "enough"));
        return snapshot;
    }
    let steps = [Answer::Prepared(()), Answer::Armed(()), cut_at(3), saved(), Answer::Settled(())];
    let count = match state {
        "done" => 5,
        other => STATES.iter().position(|name| *name == other).unwrap(),
    };
    for step in &steps[..count] {
        both(&mut snapshot, step);
    }
    snapshot
}

/// Journal entries, orders (with how many members get them) and the end, in words.
fn said(commands: &[Command<Decision>]) -> Vec<String> {
    let mut said: Vec<String> = Vec::new();
    for command in commands {
        let text = match command {
            Command::Journal(decision) => format!("journal {}", word(&format!("{decision:?}"))),
            Command::Send(_, order) => format!("send {}", order.name()),
            Command::WakeAfter(_) => continue,
            Command::Finished(result) => format!("finished {}", if result.is_ok() { "ok" } else { "failed" }),
        };
        if said.last() != Some(&text) {
            said.push(text);
        }
    }
    said
}

fn word(debug: &str) -> &str {
    debug.split(['(', ' ']).next().unwrap()
}

fn count(commands: &[Command<Decision>], order: &str) -> usize {
    commands
        .iter()
        .filter(|command| matches!(command, Command::Send(_, sent) if sent.name() == order))
        .count()
}

const ABORT: [&str; 2] = ["journal Aborted", "send Abort"];

#[test]
fn a_snapshot_from_begin_to_end() {
    let (mut snapshot, commands) = begin();
    assert_eq!(said(&commands), ["journal Opened", "send Prepare"]);
    assert_eq!(count(&commands, "Prepare"), 2);
    let steps: [(Answer, Phase, &[&str]); 5] = [
        (Answer::Prepared(()), Phase::Arm, &["send Arm"]),
        (Answer::Armed(()), Phase::Take, &["journal Taken", "send Take"]),
        (cut_at(3), Phase::Save, &["send Clear"]),
        (saved(), Phase::Commit, &["journal Committed", "send Commit"]),
        (Answer::Settled(()), Phase::Commit, &["journal Closed", "finished ok"]),
    ];
    for (reply, phase, expected) in steps {
        assert_eq!(answer(&mut snapshot, "vm1", reply.clone()), [], "the other is awaited");
        assert_eq!(answer(&mut snapshot, "vm1", reply.clone()), [], "a repetition counts once");
        assert_eq!(said(&answer(&mut snapshot, "vm2", reply)), expected);
        assert_eq!(snapshot.phase(), phase);
    }
}

/// What every answer of one member leads to in every state, the other member having answered nothing.
#[test]
fn every_answer_in_every_state() {
    let abort: &[&str] = &ABORT;
    let nothing: &[&str] = &[];
    let table: [(Answer, [&[&str]; 7]); 9] = [
        (Answer::Prepared(()), [nothing; 7]),
        (Answer::Armed(()), [nothing; 7]),
        (cut_at(3), [nothing; 7]),
        (saved(), [nothing; 7]),
        (Answer::Settled(()), [nothing; 7]),
        (Answer::Ready(()), [nothing; 7]),
        (Answer::Deleted(()), [nothing; 7]),
        (refused(Phase::Take), [abort, abort, abort, abort, nothing, nothing, nothing]),
        (refused(Phase::Clear), [nothing; 7]),
    ];
    for (reply, row) in table {
        for (state, expected) in STATES.iter().zip(row) {
            let mut snapshot = in_state(state);
            assert_eq!(
                said(&answer(&mut snapshot, "vm1", reply.clone())),
                expected,
                "{} in {state}",
                reply.name()
            );
        }
    }
}

/// No state is left by answers of the wrong kind, however many members send them.
#[test]
fn answers_that_do_not_fit_change_nothing() {
    let fits = [
        ("preparing", "Prepared"),
        ("arming", "Armed"),
        ("taking", "Cut"),
        ("saving", "Saved"),
        ("committing", "Settled"),
        ("aborting", "Settled"),
    ];
    let replies = [
        Answer::Prepared(()),
        Answer::Armed(()),
        cut_at(3),
        saved(),
        Answer::Settled(()),
        Answer::Loaded(()),
    ];
    for state in STATES {
        for reply in &replies {
            let mut snapshot = in_state(state);
            let phase = snapshot.phase();
            let commands = both(&mut snapshot, reply);
            if fits.contains(&(state, reply.name())) {
                assert_ne!(commands, [], "{} in {state}", reply.name());
            } else {
                assert_eq!(
                    (said(&commands), snapshot.phase()),
                    (vec![], phase),
                    "{} in {state}",
                    reply.name()
                );
            }
        }
    }
}

#[test]
fn strangers_are_ignored() {
    for state in STATES {
        let mut snapshot = in_state(state);
        assert_eq!(answer(&mut snapshot, "vm9", refused(Phase::Take)), []);
        assert_eq!(snapshot.handle(Event::HostLost(name("vm9"))), []);
    }
}

#[test]
fn a_lost_host_aborts_before_the_last_cut_only() {
    for (state, expected) in STATES.iter().zip([&ABORT[..], &ABORT, &ABORT, &[], &[], &[], &[]]) {
        let mut snapshot = in_state(state);
        let phase = snapshot.phase();
        let commands = snapshot.handle(Event::HostLost(name("vm1")));
        assert_eq!(said(&commands), expected, "{state}");
        if let Some(Command::Journal(Decision::Aborted(failure))) = commands.first() {
            assert_eq!((failure.kind, failure.phase), (FailureKind::HostLost, phase));
            assert!(failure.text.starts_with("vm1: "), "{failure}");
            // The lost one is not waited for.
            let end = answer(&mut snapshot, "vm2", Answer::Settled(()));
            assert_eq!(said(&end), ["journal Closed", "finished failed"]);
        }
    }
}

#[test]
fn deadlines_abort_before_commit_and_close_after_it() {
    let closed: &[&str] = &["journal Closed", "finished ok"];
    let failed: &[&str] = &["journal Closed", "finished failed"];
    let rows = [&ABORT[..], &ABORT, &ABORT, &ABORT, closed, failed, &[]];
    for (state, expected) in STATES.iter().zip(rows) {
        let mut snapshot = in_state(state);
        answer(&mut snapshot, "vm2", Answer::Prepared(()));
        let late = snapshot.awaited().iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
        let commands = snapshot.handle(Event::Deadline);
        assert_eq!(said(&commands), expected, "{state}");
        if let Some(Command::Journal(Decision::Aborted(failure))) = commands.first() {
            assert_eq!(failure.kind, FailureKind::TimedOut);
            assert!(failure.text.contains(&format!("no answer from {late} in ")), "{failure}");
        }
    }
}

#[test]
fn cancel_aborts_before_commit_only() {
    for (state, expected) in STATES.iter().zip([&ABORT[..], &ABORT, &ABORT, &ABORT, &[], &[], &[]]) {
        let mut snapshot = in_state(state);
        let commands = snapshot.cancel(Failure::new(FailureKind::BadRequest, Phase::Abort, "enough"));
        assert_eq!(said(&commands), expected, "{state}");
        assert_eq!(count(&commands, "Abort"), if expected.is_empty() { 0 } else { 2 });
    }
}

/// The first failure is the one that is reported; later ones are consequences.
#[test]
fn an_abort_ends_when_all_have_settled_or_refused() {
    let mut snapshot = in_state("taking");
    answer(&mut snapshot, "vm1", refused(Phase::Take));
    assert_eq!(answer(&mut snapshot, "vm1", Answer::Settled(())), []);
    let end = answer(&mut snapshot, "vm2", refused(Phase::Abort));
    let Some(Command::Finished(Err(failure))) = end.last() else { panic!("{end:?}") };
    assert_eq!((failure.phase, failure.text.as_str()), (Phase::Take, "vm1: QEMU died"));
}

#[test]
fn saved_before_the_last_cut_is_kept() {
    let mut snapshot = in_state("taking");
    answer(&mut snapshot, "vm1", cut_at(3));
    assert_eq!(answer(&mut snapshot, "vm1", saved()), []);
    assert_eq!(said(&answer(&mut snapshot, "vm2", cut_at(9))), ["send Clear"]);
    assert_eq!(snapshot.awaited(), &[name("vm2")].into());
    assert_eq!(said(&answer(&mut snapshot, "vm2", saved())), ["journal Committed", "send Commit"]);
}

#[test]
fn all_saved_before_the_last_cut_commits_at_once_and_clears_first() {
    let mut snapshot = in_state("taking");
    answer(&mut snapshot, "vm1", cut_at(3));
    both(&mut snapshot, &saved());
    let commands = answer(&mut snapshot, "vm2", cut_at(3));
    assert_eq!(said(&commands), ["send Clear", "journal Committed", "send Commit"]);
}

/// I3, over every order of two members' answers with one fault or none: COMMIT is journaled only after
/// both have cut and saved, and never beside an abort.
#[test]
fn commit_needs_every_member_saved() {
    let script = |vm: &str, faulty: Option<usize>| -> Vec<Event> {
        let replies = [Answer::Prepared(()), Answer::Armed(()), cut_at(3), saved()];
        let mut events: Vec<_> = replies.into_iter().map(|reply| Event::Answer(name(vm), reply)).collect();
        if let Some(at) = faulty {
            events[at] = Event::Answer(name(vm), refused(Phase::Take));
        }
        events
    };
    for fault in [None, Some(0), Some(1), Some(2), Some(3)] {
        let (one, two) = (script("vm1", None), script("vm2", fault));
        for order in 0u32..256 {
            if order.count_ones() != 4 {
                continue;
            }
            let (mut snapshot, mut all) = begin();
            let (mut first, mut second) = (one.iter(), two.iter());
            for bit in 0..8 {
                let next = if order >> bit & 1 == 0 { first.next() } else { second.next() };
                all.extend(snapshot.handle(next.unwrap().clone()));
                if all.contains(&Command::Journal(Decision::Committed)) {
                    let whole = |member: &Member| member.cut.is_some() && member.saved.is_some();
                    assert!(snapshot.members().values().all(whole), "order {order:08b}, fault {fault:?}");
                    assert!(!said(&all).contains(&"journal Aborted".to_owned()));
                }
            }
        }
    }
}

/// Whatever is decided is durable before anybody hears of it.
#[test]
fn the_journal_comes_before_the_orders() {
    for (state, reply, order) in [
        ("arming", Answer::Armed(()), "Take"),
        ("saving", saved(), "Commit"),
        ("taking", refused(Phase::Take), "Abort"),
    ] {
        let mut snapshot = in_state(state);
        let commands = both(&mut snapshot, &reply);
        let journal = commands.iter().position(|command| matches!(command, Command::Journal(_))).unwrap();
        let sent = commands
            .iter()
            .position(|command| matches!(command, Command::Send(_, sent) if sent.name() == order));
        assert!(journal < sent.unwrap(), "{commands:?}");
    }
}

#[test]
fn after_a_crash_it_is_aborted_or_told_again() {
    let (mut left, commands) = Snapshot::abort_after_crash(&members(), Limits::default());
    assert_eq!(said(&commands), ABORT);
    assert_eq!(said(&both(&mut left, &Answer::Settled(()))), ["journal Closed", "finished failed"]);
    let (mut done, commands) = Snapshot::commit_after_crash(&members(), Limits::default());
    assert_eq!(said(&commands), ["send Commit"]);
    assert_eq!(said(&both(&mut done, &Answer::Settled(()))), ["journal Closed", "finished ok"]);
}

fn begin_with(fault: Fault) -> (Snapshot, Vec<Command<Decision>>) {
    Snapshot::begin_with(fault, &members(), &[Prefix::V4([10, 0, 0, 1], 32)], Limits::default())
}

#[test]
fn without_the_barrier_one_member_cuts_before_the_other_is_prepared() {
    let (mut snapshot, commands) = begin_with(Fault::NoBarrier);
    assert_eq!(said(&commands), ["journal Opened", "send Prepare", "journal Taken"]);
    assert_eq!(said(&answer(&mut snapshot, "vm1", Answer::Prepared(()))), ["send Arm"]);
    assert_eq!(said(&answer(&mut snapshot, "vm1", Answer::Armed(()))), ["send Take"]);
    assert_eq!(answer(&mut snapshot, "vm1", cut_at(3)), []);
    answer(&mut snapshot, "vm2", Answer::Prepared(()));
    answer(&mut snapshot, "vm2", Answer::Armed(()));
    assert_eq!(said(&answer(&mut snapshot, "vm2", cut_at(9))), ["send Clear"]);
    assert_eq!(said(&both(&mut snapshot, &saved())), ["journal Committed", "send Commit"]);
}

#[test]
fn uncolouring_too_early_clears_each_member_at_its_own_cut() {
    let (mut snapshot, _) = begin_with(Fault::UncolouredTooEarly);
    both(&mut snapshot, &Answer::Prepared(()));
    both(&mut snapshot, &Answer::Armed(()));
    let commands = answer(&mut snapshot, "vm1", cut_at(3));
    assert_eq!((said(&commands), count(&commands, "Clear")), (vec!["send Clear".to_owned()], 1));
    assert_eq!(count(&answer(&mut snapshot, "vm2", cut_at(4)), "Clear"), 3);
    assert_eq!(snapshot.phase(), Phase::Save);
}

#[test]
fn faults_are_known_by_their_labels() {
    for (fault, label) in Fault::ALL {
        assert_eq!(Fault::from_label(label), Some(fault));
    }
    assert_eq!(Fault::from_label("none"), None);
}

//! What operators do in a guest gives way to every step of a snapshot, and ends with the instance.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use unasnap_host::works::Works;
use unasnap_protocol::access::{
    AccessAnswer, AccessOrder, Ask, Chunk, Exit, Opened, Refusal, RefusalKind, Right, Said, Stream, Turn,
};
use unasnap_protocol::control::{Failure, FailureKind};
use unasnap_protocol::participant::{Job, Step};
use unasnap_protocol::power::Verb;

use crate::fakes::{Guest, Told};
use crate::{Bench, GUEST, Parts, envelope, made_of};

fn chunk(length: usize) -> Chunk {
    vec![7; length].try_into().unwrap()
}

fn exec() -> Ask {
    Ask::Exec(vec![b"ls".to_vec()].try_into().unwrap(), 60)
}

fn opened() -> Said {
    Said::Opened(Opened { chunk: 16384, file: None })
}

/// A guest that says this, one thing to each question; afterwards it never answers.
async fn bench(says: Vec<Told>) -> Bench {
    let rights: &[Right] = &[Right::Exec, Right::Files];
    made_of(Parts { rights, guest: Guest::Healthy, says: Box::leak(says.into_boxed_slice()), ..GUEST }).await
}

async fn turn(works: &Works, number: u32, ask: Ask) -> Result<Said, Failure> {
    match works.access(AccessOrder::Turn(Turn { session: 9, number, ask })).await {
        AccessAnswer::Said(said) => Ok(said),
        AccessAnswer::Failed(failure) => Err(failure),
        other => panic!("{other:?}"),
    }
}

async fn step(bench: &Bench, step: Step) {
    bench.works.carry_out(Job { envelope: envelope(), step }).await.unwrap();
}

/// From now on time passes by waiting alone, so that what takes long on a slow machine takes no time.
fn stopped() -> Instant {
    tokio::time::pause();
    Instant::now()
}

/// Lines of the log that are questions of an operator's.
fn asked(log: &[String]) -> usize {
    log.iter().filter(|line| *line == "Access").count()
}

#[tokio::test]
async fn nothing_is_asked_of_a_guest_whose_definition_does_not_allow_it() {
    let bench = made_of(Parts { rights: &[Right::Files], ..GUEST }).await;
    let failure = turn(&bench.works, 1, exec()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::NotAllowed, "{failure}");
    assert!(failure.text.contains("definition of vm1 does not allow exec"), "{failure}");
    assert!(failure.text.contains(r#"guest_access = ["files", "exec"]"#), "{failure}");
    assert_eq!(asked(&bench.log.taken()), 0);
}

#[tokio::test]
async fn what_takes_time_is_asked_again_until_it_is_there() {
    let not_yet = || Told::Says(Said::NotYet);
    let says =
        vec![not_yet(), not_yet(), Told::Says(opened()), not_yet(), Told::Says(Said::Exited(Exit::Code(3)))];
    let bench = bench(says).await;
    assert_eq!(turn(&bench.works, 1, exec()).await, Ok(opened()));
    assert_eq!(turn(&bench.works, 2, Ask::More(100)).await, Ok(Said::Exited(Exit::Code(3))));
    // The operator is told after a second that there is none yet.
    let bench =
        self::bench([Told::Says(opened())].into_iter().chain((0..100).map(|_| not_yet())).collect()).await;
    turn(&bench.works, 1, exec()).await.unwrap();
    let begun = stopped();
    assert_eq!(turn(&bench.works, 2, Ask::More(100)).await, Ok(Said::NotYet));
    assert!((1.0..1.5).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
}

/// The heart of it: from ARM to CLEAR the guest hears nothing of an operator's.
#[tokio::test]
async fn between_arm_and_clear_nothing_is_asked_and_afterwards_it_goes_on() {
    let output = Said::Output(Stream::Out, chunk(5));
    let bench = bench(vec![Told::Says(opened()), Told::Says(output.clone())]).await;
    turn(&bench.works, 1, exec()).await.unwrap();
    step(&bench, Step::Prepare(vec![])).await;
    step(&bench, Step::Arm).await;
    bench.log.taken();
    let works = Arc::new(bench.works);
    let turned = tokio::spawn({
        let works = works.clone();
        async move { turn(&works, 2, Ask::More(100)).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    works.carry_out(Job { envelope: envelope(), step: Step::Cut(None) }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!turned.is_finished());
    assert_eq!(asked(&bench.log.taken()), 0);
    works.carry_out(Job { envelope: envelope(), step: Step::Clear }).await.unwrap();
    assert_eq!(turned.await.unwrap(), Ok(output));
    assert_eq!(bench.log.taken(), ["word 7 7 off", "Access"]);
}

#[tokio::test]
async fn a_snapshot_that_is_undone_lets_operators_in_again() {
    let bench = bench(vec![Told::Says(opened())]).await;
    for undone in [Step::Undo, Step::Commit] {
        step(&bench, Step::Prepare(vec![])).await;
        step(&bench, Step::Arm).await;
        // COMMIT of what was never saved fails, and ends the cut all the same.
        let _ = bench.works.carry_out(Job { envelope: envelope(), step: undone }).await;
    }
    assert_eq!(turn(&bench.works, 1, exec()).await, Ok(opened()));
}

/// It waits no longer than it says, and says for what.
#[tokio::test]
async fn a_turn_is_held_for_seconds_and_not_for_ever() {
    let bench = bench(vec![]).await;
    step(&bench, Step::Prepare(vec![])).await;
    step(&bench, Step::Arm).await;
    let begun = stopped();
    let failure = turn(&bench.works, 1, exec()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::TimedOut);
    assert!(failure.text.contains("left alone for 8 s, because s1 is between ARM and CLEAR"), "{failure}");
    assert!((8.0..9.0).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
}

/// A guest that does not answer an operator's question must not delay a step by the two seconds that answers may take.
#[tokio::test]
async fn a_step_does_not_wait_for_an_answer_to_an_operator() {
    let bench = bench(vec![Told::Says(opened()), Told::Nothing]).await;
    turn(&bench.works, 1, exec()).await.unwrap();
    step(&bench, Step::Prepare(vec![])).await;
    let log = bench.log.clone();
    log.taken();
    let works = Arc::new(bench.works);
    let turned = tokio::spawn({
        let works = works.clone();
        async move { turn(&works, 2, Ask::More(100)).await }
    });
    while asked(&log.taken()) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let begun = stopped();
    works.carry_out(Job { envelope: envelope(), step: Step::Arm }).await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    turned.abort();
}

#[tokio::test]
async fn what_was_begun_in_an_instance_ends_with_it() {
    let says = || vec![Told::Says(opened()), Told::Says(Said::Taken), Told::Says(opened())];
    let bench = bench(says()).await;
    turn(&bench.works, 1, exec()).await.unwrap();
    step(&bench, Step::Control(Verb::Reset)).await;
    bench.log.taken();
    let failure = turn(&bench.works, 2, Ask::More(1)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Stale);
    assert!(failure.text.contains("restored, reset or ended since"), "{failure}");
    assert_eq!(asked(&bench.log.taken()), 0);

    // One that waits while the instance goes hears it at once.
    let bench = self::bench(says()).await;
    bench.up_to_the_cut().await;
    bench.works.save(&envelope()).await.unwrap();
    step(&bench, Step::Commit).await;
    turn(&bench.works, 1, exec()).await.unwrap();
    let mut other = envelope();
    other.snapshot = unasnap_protocol::name::Name::new("s2").unwrap();
    for step in [Step::Prepare(vec![]), Step::Arm] {
        bench.works.carry_out(Job { envelope: other.clone(), step }).await.unwrap();
    }
    let works = Arc::new(bench.works);
    let turned = tokio::spawn({
        let works = works.clone();
        async move { turn(&works, 2, Ask::More(1)).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = stopped();
    works.carry_out(Job { envelope: envelope(), step: Step::Restore }).await.unwrap();
    assert_eq!(turned.await.unwrap().unwrap_err().kind, FailureKind::Stale);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

/// The opening question is repeated until it is answered; behind the close it would run the command once more.
#[tokio::test]
async fn a_conversation_that_is_closed_while_it_opens_does_not_begin_anew() {
    let not_yet = (0..20).map(|_| Told::Says(Said::NotYet));
    let bench = bench(not_yet.chain([Told::Says(Said::Closed)]).collect()).await;
    let log = bench.log.clone();
    let works = Arc::new(bench.works);
    let opening = tokio::spawn({
        let works = works.clone();
        async move { turn(&works, 1, exec()).await }
    });
    let mut before = 0;
    while before == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        before = asked(&log.taken());
    }
    // Whatever the guest says to that.
    let _ = turn(&works, 0, Ask::Close).await;
    assert_eq!(opening.await.unwrap().unwrap_err().kind, FailureKind::Stale);
    log.taken();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(asked(&log.taken()), 0);
}

#[tokio::test]
async fn a_guest_that_lies_is_not_believed() {
    let long = format!("\x1b]0;owned\x07{}", "a".repeat(9000));
    let refused = Said::Refused(Refusal { kind: RefusalKind::NoSpace, text: long });
    let lies = [
        (Said::Output(Stream::Out, chunk(101)), "which is no answer to that"),
        (Said::Data(chunk(101)), "which is no answer to that"),
        (opened(), "which is no answer to that"),
        (Said::Taken, "which is no answer to that"),
        (refused, " ]0;owned aaa"),
    ];
    for (lie, words) in lies {
        let bench = bench(vec![Told::Says(opened()), Told::Says(lie)]).await;
        turn(&bench.works, 1, exec()).await.unwrap();
        let failure = turn(&bench.works, 2, Ask::More(100)).await.unwrap_err();
        assert!(failure.text.contains(words), "{failure}");
        assert!(
            failure.text.len() < 400 && failure.text.chars().all(|letter| !letter.is_control()),
            "{failure}"
        );
    }
}

#[tokio::test]
async fn a_console_is_read_where_there_is_one() {
    let bench = bench(vec![]).await;
    let AccessAnswer::Failed(failure) = bench.works.access(AccessOrder::Console(5)).await else { panic!() };
    assert!(failure.text.contains("there is no log of vm1's serial console"), "{failure}");
    assert_eq!(asked(&bench.log.taken()), 0);
}

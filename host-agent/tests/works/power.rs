//! What operators do to single VMs: start, stop, pause, resume, reset.

use unasnap_protocol::control::{Envelope, Failure, FailureKind, Phase, VmState};
use unasnap_protocol::participant::{Job, Outcome, Step};
use unasnap_protocol::power::{Controlled, Verb};

use super::{Bench, Guest, Machine, bench, envelope};

impl Bench {
    /// In a deployment whose incarnation is that of the fakes.
    async fn control(&self, verb: Verb) -> Result<Controlled, Failure> {
        self.control_at(verb, 4).await
    }

    async fn control_at(&self, verb: Verb, incarnation: u64) -> Result<Controlled, Failure> {
        let envelope = Envelope { incarnation, ..envelope() };
        match self.works.carry_out(Job { envelope, step: Step::Control(verb) }).await? {
            Outcome::Controlled(done) => Ok(done),
            other => panic!("{other:?}"),
        }
    }
}

async fn with(machine: Machine) -> Bench {
    bench(Guest::Healthy, machine, 0).await
}

fn is(done: &Controlled, state: VmState, changed: bool) {
    assert_eq!((done.state, done.changed), (state, changed), "{done:?}");
}

#[tokio::test]
async fn each_verb_does_what_it_says_and_twice_the_same_as_once() {
    let bench = with(Machine::Healthy).await;
    let steps: [(Verb, VmState, &[&str]); 5] = [
        (Verb::Pause, VmState::Paused, &["pause"]),
        (Verb::Resume, VmState::Running, &["resume"]),
        (Verb::Stop, VmState::Stopped, &["power button", "tap: remove", "destroy"]),
        (Verb::Start, VmState::Starting, &["boot", "tap: remove"]),
        (Verb::Kill, VmState::Stopped, &["tap: remove", "destroy"]),
    ];
    for (verb, state, expected) in steps {
        is(&bench.control(verb).await.unwrap(), state, true);
        assert_eq!(bench.log.taken(), expected, "{verb}");
        let again = bench.control(verb).await.unwrap();
        let stands = if verb == Verb::Start { VmState::Running } else { state };
        is(&again, stands, false);
        assert!(
            !bench.log.taken().iter().any(|line| ["boot", "resume", "power button"].contains(&&**line)),
            "{verb}"
        );
    }
}

#[tokio::test]
async fn a_reset_is_a_new_boot_with_new_programs() {
    let bench = with(Machine::Healthy).await;
    let done = bench.control(Verb::Reset).await.unwrap();
    is(&done, VmState::Starting, true);
    assert!(done.incarnation == 4 && done.note.contains("a new boot"), "{done:?}");
    assert_eq!(bench.log.taken(), ["tap: remove", "destroy", "boot", "tap: remove"]);
}

#[tokio::test]
async fn a_guest_that_does_not_shut_down_runs_on_and_the_answer_says_so() {
    let bench = with(Machine::Deaf).await;
    let failure = bench.control(Verb::Stop).await.unwrap_err();
    assert_eq!((failure.kind, failure.phase), (FailureKind::TimedOut, Phase::Control));
    assert!(failure.text.contains("runs on") && failure.text.contains("--force"), "{failure}");
    assert_eq!(bench.log.taken(), ["power button"], "it was asked once, and not killed");
    is(&bench.control(Verb::Kill).await.unwrap(), VmState::Stopped, true);
}

#[tokio::test]
async fn a_vm_that_is_not_there_can_be_started_and_nothing_else() {
    for machine in [Machine::Healthy, Machine::Dead] {
        let bench = with(machine).await;
        if machine == Machine::Healthy {
            bench.control(Verb::Kill).await.unwrap();
        }
        for verb in [Verb::Pause, Verb::Resume, Verb::Reset] {
            let failure = bench.control(verb).await.unwrap_err();
            assert_eq!(failure.kind, FailureKind::VmNotRunning, "{verb}");
            assert!(failure.text.contains("start it"), "{verb}: {failure}");
        }
        is(&bench.control(Verb::Start).await.unwrap(), VmState::Starting, true);
    }
}

/// The last word of a deployment's restore must not be spoken for it, nor that of the coordinator on a fenced VM.
#[tokio::test]
async fn what_a_restore_or_the_fence_stopped_is_not_let_go() {
    let loaded = with(Machine::Loaded).await;
    for verb in [Verb::Pause, Verb::Resume, Verb::Start, Verb::Stop, Verb::Reset] {
        let failure = loaded.control(verb).await.unwrap_err();
        assert!(failure.kind == FailureKind::VmNotRunning, "{verb}: {failure}");
    }
    let fenced = with(Machine::Healthy).await;
    fenced.works.fence().await;
    let failure = fenced.control(Verb::Resume).await.unwrap_err();
    assert!(failure.text.contains("its host was cut off"), "{failure}");
    assert_eq!(fenced.log.taken(), ["fence"]);
}

#[tokio::test]
async fn a_vm_without_a_disk_goes_on_when_it_is_resumed() {
    let bench = with(Machine::NoDisk).await;
    for verb in [Verb::Pause, Verb::Start, Verb::Stop, Verb::Reset] {
        let failure = bench.control(verb).await.unwrap_err();
        assert!(failure.text.contains("make room and resume it"), "{verb}: {failure}");
    }
    is(&bench.control(Verb::Resume).await.unwrap(), VmState::Running, true);
}

#[tokio::test]
async fn a_paused_or_stopped_vm_refuses_the_next_snapshot() {
    let bench = with(Machine::Healthy).await;
    for verb in [Verb::Pause, Verb::Kill] {
        bench.control(verb).await.unwrap();
        let failure = bench.job(Step::Prepare(vec![])).await.unwrap_err();
        assert_eq!((failure.kind, failure.phase), (FailureKind::VmNotRunning, Phase::Prepare), "{failure}");
        bench.job(Step::Undo).await.unwrap();
    }
}

/// It lost its record of incarnation 4, say.
#[tokio::test]
async fn a_new_boot_of_another_incarnation_than_the_deployments_says_what_comes_of_it() {
    let bench = with(Machine::Dead).await;
    let done = bench.control_at(Verb::Start, 7).await.unwrap();
    assert!(done.note.contains("incarnation 4") && done.note.contains("snapshots refuse it"), "{done:?}");
    bench.control(Verb::Kill).await.unwrap();
    let done = bench.control(Verb::Start).await.unwrap();
    assert!(!done.note.contains("refuse"), "{done:?}");
}

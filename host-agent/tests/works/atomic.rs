//! The ways that flip both halves at once in the pause, and what becomes of a member where they cannot be had.

use unasnap_guest_ebpf::StateWord;
use unasnap_protocol::control::{Colouring, FailureKind, Phase};
use unasnap_protocol::participant::{Outcome, Step};

use crate::fakes::{Guest, Machine, TapState};
use crate::{Bench, GUEST, Parts, envelope, made_of};

const HOST: Parts = Parts { colouring: "host", guest: Guest::Silent, ..GUEST };
const MEMORY: Parts = Parts { colouring: "memory", ..GUEST };
const AUTO: Parts = Parts { colouring: "auto", ..GUEST };

fn armed() -> StateWord {
    StateWord::new(6, 6, true, true)
}

fn flipped() -> StateWord {
    StateWord::new(7, 7, true, false)
}

impl Bench {
    async fn prepare(&self) {
        self.job(Step::Prepare(vec![])).await.unwrap();
    }

    /// PREPARE, then ARM with the word in RAM as the guest agent would have it.
    async fn arm(&self) {
        self.prepare().await;
        self.ram.set_word(armed());
        self.job(Step::Arm).await.unwrap();
    }

    async fn cut_by(&self, way: Colouring) {
        let Ok(Outcome::Cut(report)) = self.job(Step::Cut(None)).await else { panic!("no cut") };
        assert_eq!(report.colouring, way);
        assert_eq!(report.send_flipped_ns == report.receive_flipped_ns, way != Colouring::Guest);
    }

    async fn way_and_note(&self) -> (Colouring, String) {
        let report = self.works.report().await;
        (report.colouring, report.colouring_note)
    }
}

#[tokio::test]
async fn host_flips_in_the_pause_and_asks_nothing_of_the_guest() {
    let bench = made_of(HOST).await;
    bench.works.report().await;
    bench.log.taken();
    bench.arm().await;
    bench.cut_by(Colouring::Host).await;
    let expected = [
        "tap: word {send 6, receive 6, off}",
        "tap: members",
        "overlays",
        "tap: word {send 6, receive 6, on}",
        "flush",
        "tap: word {send 6, receive 6, on, strict}",
        "stop",
        "tap: word {send 7, receive 7, on}",
        "fix",
        "resume after the cut",
    ];
    assert_eq!(bench.log.taken(), expected);
    bench.job(Step::Clear).await.unwrap();
    assert_eq!(bench.log.taken(), ["tap: word {send 7, receive 7, off}"]);
}

#[tokio::test]
async fn host_makes_programs_of_the_guest_stand_aside_if_there_are_any() {
    let bench = made_of(Parts { guest: Guest::Healthy, ..HOST }).await;
    bench.arm().await;
    let Ok(Outcome::Cut(report)) = bench.job(Step::Cut(None)).await else { panic!("no cut") };
    assert_eq!(report.outside_connections, Some(3), "only a guest agent can count them");
    let log = bench.log.taken();
    assert_eq!(
        log[..4],
        ["tap: word {send 6, receive 6, off}", "tap: members", "word 6 6 off", "SetMembers"]
    );
    assert!(!log.iter().any(|line| line.contains("Flip")), "{log:?}");
}

#[tokio::test]
async fn host_refuses_a_late_cut() {
    let bench = made_of(Parts { taps: TapState::Advanced, ..HOST }).await;
    bench.arm().await;
    let failure = bench.job(Step::Cut(None)).await.unwrap_err();
    assert_eq!((failure.kind, failure.phase), (FailureKind::LateCut, Phase::Take), "{failure}");
    bench.job(Step::Undo).await.unwrap();
    let log = bench.log.taken();
    assert!(log.contains(&"discard".to_owned()), "{log:?}");
    assert_eq!(log.last().unwrap(), "tap: word {send 7, receive 7, off}");
    assert_eq!(bench.left(), [""; 0]);
}

#[tokio::test]
async fn host_that_cannot_be_had_is_refused_with_the_reason() {
    for (taps, words) in
        [(TapState::Refused, "the kernel has no BPF"), (TapState::Vanished, "there is no interface us0")]
    {
        let bench = made_of(Parts { taps, ..HOST }).await;
        let failure = bench.job(Step::Prepare(vec![])).await.unwrap_err();
        assert_eq!((failure.kind, failure.phase), (FailureKind::Colouring, Phase::Prepare));
        assert!(failure.text.contains(words), "{failure}");
        bench.job(Step::Undo).await.unwrap();
        assert_eq!(bench.left(), [""; 0]);
    }
}

#[tokio::test]
async fn a_host_coloured_vm_is_restored_with_its_word_before_it_runs() {
    let bench = made_of(HOST).await;
    bench.works.report().await;
    bench.up_to_the_cut().await;
    bench.works.save(&envelope()).await.unwrap();
    bench.job(Step::Commit).await.unwrap();
    bench.log.taken();
    bench.job(Step::Restore).await.unwrap();
    let Ok(Outcome::Started(notes)) = bench.job(Step::Start(vec![])).await else { panic!("not started") };
    assert!(notes[0].contains("clock, entropy and neighbours were not told"), "{notes:?}");
    let log = bench.log.taken();
    let expected = [
        "tap: remove",
        "destroy",
        "load",
        "tap: remove",
        "tap: install",
        "tap: members",
        "tap: word {send 6, receive 6, off}",
        "resume",
    ];
    assert_eq!(log[..expected.len()], expected);
}

#[tokio::test]
async fn memory_flips_in_the_pause_and_the_rest_goes_by_the_agent() {
    let bench = made_of(MEMORY).await;
    bench.arm().await;
    bench.cut_by(Colouring::Memory).await;
    assert_eq!(bench.ram.word(), flipped());
    let expected = [
        "word 6 6 off",
        "SelfCheck",
        "LocateWord",
        "ram: nonce",
        "SetMembers",
        "CountOutside",
        "overlays",
        "word 6 6 on",
        "flush",
        "SetStrict",
        "stop",
        "fix",
        "ram: flip",
        "resume after the cut",
    ];
    assert_eq!(bench.log.taken(), expected);
}

#[tokio::test]
async fn memory_falls_back_to_the_straddle_and_says_so() {
    for (parts, words) in [
        (Parts { guest: Guest::Lies, ..MEMORY }, "there is not the word that its agent announced"),
        (Parts { machine: Machine::NoRam, ..MEMORY }, "the hypervisor is gone"),
    ] {
        let bench = made_of(parts).await;
        bench.arm().await;
        bench.cut_by(Colouring::Guest).await;
        let (way, note) = bench.way_and_note().await;
        assert_eq!(way, Colouring::Guest);
        assert!(note.contains(words), "{note}");
        assert!(bench.log.taken().contains(&"FlipReceive".to_owned()));
    }
}

/// At ARM the word in RAM is not the one that the agent set: what the host sees is not what the guest has.
#[tokio::test]
async fn memory_that_is_not_the_guests_falls_back_at_arm() {
    let bench = made_of(MEMORY).await;
    bench.prepare().await;
    bench.job(Step::Arm).await.unwrap();
    bench.cut_by(Colouring::Guest).await;
    let (_, note) = bench.way_and_note().await;
    assert!(note.contains("has advanced by itself or was never prepared"), "{note}");
}

#[tokio::test]
async fn memory_refuses_a_cut_whose_word_moved_after_arm() {
    let bench = made_of(MEMORY).await;
    bench.arm().await;
    bench.ram.set_word(flipped());
    let failure = bench.job(Step::Cut(None)).await.unwrap_err();
    assert_eq!((failure.kind, failure.phase), (FailureKind::LateCut, Phase::Take), "{failure}");
    assert_eq!(bench.ram.word(), flipped(), "nothing was written");
}

#[tokio::test]
async fn auto_takes_the_first_way_that_works() {
    let refused = Parts { taps: TapState::Refused, ..AUTO };
    for (parts, way, words) in [
        (AUTO, Colouring::Host, ""),
        (refused, Colouring::Memory, "the kernel has no BPF"),
        (Parts { taps: TapState::Vanished, ..AUTO }, Colouring::Memory, "no interface us0"),
        (Parts { guest: Guest::Lies, ..refused }, Colouring::Guest, "there is not the word"),
    ] {
        let bench = made_of(parts).await;
        bench.arm().await;
        bench.cut_by(way).await;
        let (found, note) = bench.way_and_note().await;
        assert_eq!(found, way);
        assert!(note.contains(words) && note.is_empty() == words.is_empty(), "{note}");
    }
}

#[tokio::test]
async fn status_knows_the_way_before_the_first_snapshot() {
    let bench = made_of(AUTO).await;
    assert_eq!(bench.way_and_note().await, (Colouring::Host, String::new()));
    let bench = made_of(MEMORY).await;
    assert_eq!(bench.way_and_note().await, (Colouring::Memory, String::new()));
    let bench = made_of(Parts { guest: Guest::Lies, ..MEMORY }).await;
    assert_eq!(bench.way_and_note().await.0, Colouring::Guest);
}

/// While a job holds the VM, what was seen last is shown: the incarnation among it.
#[tokio::test]
async fn a_busy_vm_is_reported_as_it_was() {
    let bench = made_of(Parts { machine: Machine::SavesForEver, ..HOST }).await;
    let before = bench.works.report().await;
    bench.up_to_the_cut().await;
    let envelope = envelope();
    let saving = bench.works.save(&envelope);
    let asked = async {
        tokio::task::yield_now().await;
        bench.works.report().await
    };
    tokio::select! {
        biased;
        _ = saving => panic!("saving ended"),
        report = asked => assert_eq!(report, before),
    }
}

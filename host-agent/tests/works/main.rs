//! A member's jobs against a guest agent and a hypervisor that misbehave on purpose: the order of the
//! straddle, what each failure says, and that nothing is left behind. Both are fakes here; the same jobs
//! with real VMs run in the demo.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod access;
mod atomic;
#[path = "../transfer/authority.rs"]
mod authority;
mod fakes;
mod fencing;
mod households;
mod power;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fakes::{FakeHypervisor, FakeTaps, FakeVm, Guest, Log, Machine, Ram, TapState, Told, facts, serve_guest};
use unasnap_channel::steady_ns;
use unasnap_host::definition::VmDefinition;
use unasnap_host::guest_channel::Pace;
use unasnap_host::store::Store;
use unasnap_host::store::space::Limits;
use unasnap_host::switches::Switches;
use unasnap_host::works::{Origin, Works};
use unasnap_protocol::access::Right;
use unasnap_protocol::control::{Envelope, Failure, FailureKind, Phase};
use unasnap_protocol::fault::Fault;
use unasnap_protocol::name::Name;
use unasnap_protocol::participant::{Job, Outcome, Step};

struct Bench {
    works: Works,
    store: Store,
    log: Log,
    ram: Ram,
    folder: tempfile::TempDir,
}

/// What a bench is made of.
#[derive(Clone, Copy)]
struct Parts {
    colouring: &'static str,
    guest: Guest,
    pace: Pace,
    machine: Machine,
    taps: TapState,
    space_needed: u64,
    fault: Fault,
    /// What the definition allows operators in the guest.
    rights: &'static [Right],
    /// What the guest says to operators, in this order.
    says: &'static [Told],
}

const GUEST: Parts = Parts {
    colouring: "guest",
    guest: Guest::Healthy,
    pace: Pace::PORT,
    machine: Machine::Healthy,
    taps: TapState::Healthy,
    space_needed: 0,
    fault: Fault::None,
    rights: &[],
    says: &[],
};

fn envelope() -> Envelope {
    let name = |text: &str| Name::new(text).unwrap();
    Envelope {
        vm: name("vm1"),
        deployment: name("ring"),
        snapshot: name("s1"),
        epoch: 6,
        term: 1,
        incarnation: 0,
    }
}

fn definition(folder: &Path, colouring: &str) -> VmDefinition {
    let path = folder.join("vm1.toml");
    std::fs::write(folder.join("kernel"), b"k").unwrap();
    let text = format!(
        "name = 'vm1'\ndeployment = 'ring'\nmemory_mb = 64\ncpus = 1\nkernel = 'kernel'\ncolouring = '{colouring}'\n"
    );
    std::fs::write(&path, text).unwrap();
    VmDefinition::load(&path).unwrap()
}

async fn bench(guest: Guest, machine: Machine, space_needed: u64) -> Bench {
    made_of(Parts { guest, machine, space_needed, ..GUEST }).await
}

async fn made_of(parts: Parts) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let (log, socket) = (Log::default(), folder.path().join("guest.sock"));
    serve_guest(&socket, parts.guest, parts.says, log.clone());
    let store = Store::open(folder.path(), Limits::default()).unwrap();
    let mut vm = FakeVm::new(parts.machine, log.clone(), socket.clone(), parts.space_needed);
    vm.pace = parts.pace;
    let ram = vm.ram.clone();
    let hypervisor = FakeHypervisor { facts: facts(), log: log.clone(), socket };
    let taps = FakeTaps(parts.taps, log.clone());
    let guest_access = parts.rights.to_vec();
    let definition = VmDefinition { guest_access, ..definition(folder.path(), parts.colouring) };
    let shut_down_limit = Some(Duration::from_millis(300));
    let switches = Switches { fault: parts.fault, shut_down_limit, ..Switches::default() };
    let works = Works::new(definition, Arc::new(hypervisor), store.clone(), Arc::new(taps), switches);
    works.take_charge(Some((Box::new(vm), Origin::Started))).await;
    log.taken();
    Bench { works, store, log, ram, folder }
}

impl Bench {
    async fn job(&self, step: Step) -> Result<Outcome, Failure> {
        self.works.carry_out(Job { envelope: envelope(), step }).await
    }

    async fn up_to_the_cut(&self) {
        for step in [Step::Prepare(vec![]), Step::Arm, Step::Cut(None)] {
            self.job(step).await.unwrap();
        }
    }

    /// Everything below the store's folder.
    fn left(&self) -> Vec<String> {
        let root = self.folder.path().join("snapshots");
        let names =
            std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }
}

#[tokio::test]
async fn the_straddle_flips_send_before_and_receive_after_the_instant() {
    let bench = bench(Guest::Healthy, Machine::Healthy, 0).await;
    bench.job(Step::Prepare(vec![])).await.unwrap();
    bench.job(Step::Arm).await.unwrap();
    let Ok(Outcome::Cut(report)) = bench.job(Step::Cut(None)).await else { panic!("no cut") };
    assert_eq!((report.pause_ns(), report.outside_connections), (20, Some(3)));
    let expected = [
        "word 6 6 off",
        "SelfCheck",
        "SetMembers",
        "CountOutside",
        "overlays",
        "word 6 6 on",
        "flush",
        "SetStrict",
        "FlipSend",
        "stop",
        "fix",
        "resume after the cut",
        "FlipReceive",
    ];
    assert_eq!(bench.log.taken(), expected);
}

#[tokio::test]
async fn a_cut_begins_at_its_instant_and_at_once_when_that_has_passed() {
    let bench = bench(Guest::Healthy, Machine::Healthy, 0).await;
    for (ahead_ns, what) in [(0, "past"), (30_000_000, "ahead")] {
        bench.job(Step::Prepare(vec![])).await.unwrap();
        bench.job(Step::Arm).await.unwrap();
        let at_ns = steady_ns() + ahead_ns;
        let Ok(Outcome::Cut(report)) = bench.job(Step::Cut(Some(at_ns))).await else { panic!("no cut") };
        assert!(report.send_flipped_ns >= at_ns, "{what}: the send half was flipped before the instant");
        bench.job(Step::Undo).await.unwrap();
    }
}

/// The limit is there against clocks that jumped; the VM must not stand prepared for hours.
#[tokio::test]
async fn an_instant_that_nobody_can_mean_is_refused_before_anything_is_flipped() {
    let bench = bench(Guest::Healthy, Machine::Healthy, 0).await;
    for at_ns in [u64::MAX, steady_ns() + 60_000_000_000] {
        bench.job(Step::Prepare(vec![])).await.unwrap();
        bench.job(Step::Arm).await.unwrap();
        bench.log.taken();
        let failure = bench.job(Step::Cut(Some(at_ns))).await.unwrap_err();
        assert_eq!((failure.kind, failure.phase), (FailureKind::Stale, Phase::Take), "{failure}");
        assert!(failure.text.contains("s ahead on this host's clock"), "{failure}");
        assert_eq!(bench.log.taken(), [""; 0]);
        bench.job(Step::Undo).await.unwrap();
        assert_eq!(bench.left(), [""; 0]);
    }
}

#[tokio::test]
async fn mistakes_that_tests_put_back_change_the_straddle_and_nothing_else() {
    let straddles: [(Fault, &[&str]); 5] = [
        (Fault::NoBarrier, &["SetStrict", "FlipSend", "stop", "fix", "resume after the cut", "FlipReceive"]),
        (Fault::UncolouredTooEarly, &["FlipSend", "stop", "fix", "resume after the cut", "FlipReceive"]),
        (
            Fault::SendFlippedLate,
            &["SetStrict", "stop", "fix", "resume after the cut", "FlipSend", "FlipReceive"],
        ),
        (
            Fault::ReceiveFlippedEarly,
            &["SetStrict", "FlipSend", "FlipReceive", "stop", "fix", "resume after the cut"],
        ),
        (Fault::BleachedWithoutStrict, &["FlipSend", "stop", "fix", "resume after the cut", "FlipReceive"]),
    ];
    for (fault, expected) in straddles {
        let bench = made_of(Parts { fault, ..GUEST }).await;
        bench.up_to_the_cut().await;
        let log = bench.log.taken();
        let armed = log.iter().position(|entry| entry == "flush").unwrap();
        assert_eq!(log[armed + 1..], *expected, "{fault:?}");
    }
}

#[tokio::test]
async fn a_snapshot_that_commits_is_durable_and_ends_idle_at_the_next_epoch() {
    let bench = bench(Guest::Healthy, Machine::Healthy, 0).await;
    bench.up_to_the_cut().await;
    bench.job(Step::Clear).await.unwrap();
    bench.works.save(&envelope()).await.unwrap();
    bench.job(Step::Commit).await.unwrap();
    assert_eq!(bench.log.taken().last().unwrap(), "word 7 7 off");
    assert!(bench.store.is_committed(&envelope().snapshot));
    bench.job(Step::Poll).await.unwrap();
    let refused = bench.job(Step::Undo).await.unwrap_err();
    assert_eq!(refused.kind, FailureKind::Stale, "a committed snapshot is never undone: {refused}");
    bench.job(Step::Poll).await.unwrap();
    bench.job(Step::Delete).await.unwrap();
    assert_eq!(bench.left(), [""; 0]);
}

#[tokio::test]
async fn a_guest_agent_that_does_not_answer_is_named_and_nothing_is_left() {
    let bench = bench(Guest::Silent, Machine::Healthy, 0).await;
    let failure = bench.job(Step::Prepare(vec![])).await.unwrap_err();
    assert_eq!((failure.kind, failure.phase), (FailureKind::GuestAgent, Phase::Prepare));
    assert!(failure.text.contains("did not answer SelfCheck"), "{failure}");
    assert!(failure.text.contains("is unasnap-guest running"), "{failure}");
    bench.job(Step::Undo).await.unwrap();
    assert_eq!(bench.left(), [""; 0]);
}

#[tokio::test]
async fn a_member_that_advanced_by_itself_refuses_its_cut() {
    let bench = bench(Guest::AdvancesInTheStraddle, Machine::Healthy, 0).await;
    bench.job(Step::Prepare(vec![])).await.unwrap();
    bench.job(Step::Arm).await.unwrap();
    let failure = bench.job(Step::Cut(None)).await.unwrap_err();
    assert_eq!((failure.kind, failure.phase), (FailureKind::LateCut, Phase::Take));
    bench.job(Step::Undo).await.unwrap();
    assert!(bench.log.taken().contains(&"discard".to_owned()), "the cut that was made is given up");
    assert_eq!(bench.left(), [""; 0]);
}

#[tokio::test]
async fn a_vm_that_does_not_run_is_refused() {
    let bench = bench(Guest::Healthy, Machine::Dead, 0).await;
    let failure = bench.job(Step::Prepare(vec![])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::VmNotRunning, "{failure}");
}

#[tokio::test]
async fn a_disk_too_small_is_refused_before_anything_is_written() {
    let bench = bench(Guest::Healthy, Machine::Healthy, u64::MAX / 2).await;
    let failure = bench.job(Step::Prepare(vec![])).await.unwrap_err();
    assert_eq!((failure.kind, failure.phase), (FailureKind::NoSpace, Phase::Prepare), "{failure}");
    assert!(!bench.log.taken().contains(&"overlays".to_owned()));
    assert_eq!(bench.left(), [""; 0]);
}

#[tokio::test]
async fn a_hypervisor_that_dies_while_saving_leaves_no_snapshot() {
    let bench = bench(Guest::Healthy, Machine::DiesWhileSaving, 0).await;
    bench.up_to_the_cut().await;
    let failure = bench.works.save(&envelope()).await.unwrap_err();
    assert!(failure.text.contains("qemu.log"), "the error says where its last words are: {failure}");
    bench.job(Step::Undo).await.unwrap();
    assert_eq!(bench.left(), [""; 0]);
}

#[tokio::test]
async fn saving_that_is_broken_off_can_be_undone() {
    let bench = bench(Guest::Healthy, Machine::SavesForEver, 0).await;
    bench.up_to_the_cut().await;
    let saving = tokio::time::timeout(Duration::from_millis(50), bench.works.save(&envelope())).await;
    assert!(saving.is_err());
    bench.job(Step::Undo).await.unwrap();
    let log = bench.log.taken();
    assert_eq!(log[log.len() - 2..], ["discard", "word 7 7 off"]);
    assert_eq!(bench.left(), [""; 0]);
}

/// Its files do not wait for it, and it is told again.
#[tokio::test]
async fn a_hypervisor_that_hangs_when_a_cut_is_undone_hears_of_it_later() {
    let bench = bench(Guest::Healthy, Machine::HangsWhenUndone, 0).await;
    bench.up_to_the_cut().await;
    bench.job(Step::Undo).await.unwrap();
    assert_eq!(bench.left(), [""; 0]);
    bench.log.taken();
    for _ in 0..2 {
        bench.works.report().await;
    }
    let discards = bench.log.taken().iter().filter(|line| *line == "discard").count();
    assert_eq!(discards, 1);
}

#[tokio::test]
async fn a_restore_destroys_before_it_loads_and_is_strict_until_the_hooks_have_run() {
    let bench = bench(Guest::Healthy, Machine::Healthy, 0).await;
    bench.up_to_the_cut().await;
    bench.works.save(&envelope()).await.unwrap();
    bench.job(Step::Commit).await.unwrap();
    bench.log.taken();
    bench.job(Step::Restore).await.unwrap();
    bench.job(Step::Start(vec![])).await.unwrap();
    let expected = [
        "tap: remove",
        "destroy",
        "load",
        "tap: remove",
        "resume",
        "word 6 6 on, strict",
        "SetMembers",
        "StartHooks",
        "word 6 6 off",
    ];
    assert_eq!(bench.log.taken(), expected);
}

/// An agent died in the middle of a cut, and what it knew of that: nobody else would turn colouring off again.
#[tokio::test]
async fn what_an_earlier_agent_left_open_is_closed() {
    for (guest, expected) in [(Guest::InACut, 1), (Guest::Healthy, 0)] {
        let bench = bench(guest, Machine::Healthy, 0).await;
        let adopted =
            FakeVm::new(Machine::Healthy, bench.log.clone(), bench.folder.path().join("guest.sock"), 0);
        bench.works.take_charge(Some((Box::new(adopted), Origin::Adopted))).await;
        for _ in 0..2 {
            bench.works.report().await;
        }
        let log = bench.log.taken();
        assert_eq!(log.iter().filter(|line| *line == "word 7 7 off").count(), expected, "{log:?}");
    }
    let parts = Parts { colouring: "host", taps: TapState::Healthy, ..GUEST };
    let bench = made_of(parts).await;
    let adopted = FakeVm::new(Machine::Healthy, bench.log.clone(), bench.folder.path().join("guest.sock"), 0);
    bench.works.take_charge(Some((Box::new(adopted), Origin::Adopted))).await;
    let log = bench.log.taken();
    assert!(log.iter().any(|line| line.starts_with("tap: word")), "{log:?}");
}

/// Each question there is a program that the hypervisor runs in the guest.
#[tokio::test]
async fn a_guest_that_is_slow_to_ask_is_not_asked_every_second() {
    for (pace, expected) in [(Pace::PORT, 3), (Pace::CALLS, 1)] {
        let bench = made_of(Parts { pace, ..GUEST }).await;
        for _ in 0..3 {
            assert!(bench.works.report().await.guest);
        }
        let log = bench.log.taken();
        assert_eq!(log.iter().filter(|line| *line == "Identify").count(), expected, "{log:?}");
    }
}

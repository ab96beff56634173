//! The bytes of every message are pinned: whoever changes a type, its order of fields or a number
//! fails here, and has to raise the protocol's version or take the change back.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::fmt::Write;

use unasnap_protocol::access::{AccessReply, AccessRequest, Ask, ConsoleReport, ConsoleRequest, Said, Turn};
use unasnap_protocol::control::*;
use unasnap_protocol::elsewhere::*;
use unasnap_protocol::frame::{Decoder, Frame, MAX_CONTROL_PAYLOAD};
use unasnap_protocol::guest::*;
use unasnap_protocol::household::*;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::*;
use unasnap_protocol::placement::Capacity;
use unasnap_protocol::power::*;

use self::household::{household_report, tasks};
use self::status::status;
use self::transfers::{copies, fetched, moved, restore_at};

#[path = "golden/household.rs"]
mod household;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn envelope() -> Envelope {
    Envelope {
        vm: name("vm1"),
        deployment: name("ring"),
        snapshot: name("ring-000004"),
        epoch: 4,
        term: 300,
        incarnation: 2,
    }
}

fn prefixes() -> Vec<Prefix> {
    vec![Prefix::V4([10, 0, 0, 1], 32), Prefix::V6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 128)]
}

fn failure() -> Failure {
    Failure::new(FailureKind::LateCut, Phase::Take, "late")
}

fn frame_of(bytes: &[u8]) -> Frame {
    let mut decoder = Decoder::strict(MAX_CONTROL_PAYLOAD);
    decoder.push(bytes);
    decoder.next_frame().unwrap().unwrap()
}

/// One line per message, in the order of the set's table; each is also read back.
macro_rules! pin {
    ($set:ident, $head:expr, [$($message:expr),+ $(,)?]) => {{
        let messages = [$($message),+];
        let numbers: Vec<u16> = messages.iter().map($set::number).collect();
        assert_eq!(numbers, $set::NUMBERS, "every message of {} is pinned", stringify!($set));
        let mut lines = String::new();
        for message in messages {
            let bytes = message.encode(&$head);
            assert_eq!($set::decode(&frame_of(&bytes)), Ok(($head, message.clone())));
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(lines, "{:>3} {} {hex}", message.number(), message.name()).unwrap();
        }
        insta::assert_snapshot!(stringify!($set), lines);
    }};
}

#[path = "golden/access.rs"]
mod access;
#[path = "golden/images.rs"]
mod images;
#[path = "golden/status.rs"]
mod status;
#[path = "golden/transfers.rs"]
mod transfers;

#[test]
fn guest_requests() {
    let members = SetMembers { prefixes: prefixes(), code_points: [3, 5, 7], future_lease_ms: 2000 };
    let word = WordState { send: 4, receive: 5, colouring: true, strict: false };
    let flip = Flip { from: 4, to: 5 };
    pin!(
        GuestRequest,
        RequestHead { sequence: 700, incarnation: 2 },
        [
            GuestRequest::Identify(()),
            GuestRequest::SetMembers(members),
            GuestRequest::SetWord(word),
            GuestRequest::SetStrict(4),
            GuestRequest::FlipSend(flip),
            GuestRequest::FlipReceive(flip),
            GuestRequest::ReadCounters(()),
            GuestRequest::SelfCheck(()),
            GuestRequest::StartHooks(StartHooks { unix_ns: 1_700_000_000_000_000_000, entropy: [9; 32] }),
            GuestRequest::CountOutside(()),
            GuestRequest::LocateWord(()),
            GuestRequest::Access(Turn { session: 300, number: 2, ask: Ask::More(16384) }),
        ]
    );
}

#[test]
fn guest_replies() {
    let word = WordState { send: 4, receive: 5, colouring: true, strict: false };
    let interface = Interface { name: "eth0".to_owned(), mac: [2, 0, 0, 0, 0, 1], addresses: prefixes() };
    let identity = Identity {
        agent_version: "0.1.0".to_owned(),
        kernel: "6.12".to_owned(),
        boot_id: "b00t".to_owned(),
        hostname: "vm1".to_owned(),
        interfaces: vec![interface],
        attach: AttachKind::Tcx,
        word,
    };
    pin!(
        GuestReply,
        ReplyHead { sequence: 700 },
        [
            GuestReply::Identity(identity),
            GuestReply::Done(()),
            GuestReply::Word(word),
            GuestReply::Late(word),
            GuestReply::Counters(vec![("post_dropped".to_owned(), 300)]),
            GuestReply::Health(vec!["no programs".to_owned()]),
            GuestReply::Failed("why".to_owned()),
            GuestReply::OldIncarnation(3),
            GuestReply::Outside(2),
            GuestReply::Located(Located { guest_physical: 0x0123_4000, nonce: 300 }),
            GuestReply::Access(Said::Taken),
        ]
    );
}

fn inventory() -> Inventory {
    let vm = VmReport {
        name: name("vm1"),
        deployment: name("ring"),
        memory_mb: 128,
        cpus: 2,
        addresses: prefixes(),
        state: VmState::Running,
        colouring: Colouring::Guest,
        colouring_note: "why".to_owned(),
        ram_way: "live".to_owned(),
        accelerator: "kvm".to_owned(),
        guest: true,
        incarnation: 2,
    };
    Inventory { vms: vec![vm], free_bytes: 5 << 30, capacity: Capacity { cores: 4, memory_mb: 800 } }
}

#[test]
fn sessions() {
    let hello = Hello {
        protocol: (1, 1),
        host: name("h1"),
        agent_version: "0.1.0".to_owned(),
        inventory: inventory(),
        undecided: vec![Undecided { envelope: envelope(), saved: true }],
    };
    let reading = ClockReading { asked_ns: 700, received_ns: 800, answered_ns: 900 };
    pin!(
        HostSession,
        (),
        [
            HostSession::Hello(hello),
            HostSession::Inventory(inventory()),
            HostSession::ClockReading(reading),
            HostSession::Household(HostWord::Gone(vec![name("vm1")])),
            HostSession::Serves(TransferAddress { ip: Some([10, 0, 0, 1].into()), port: 7421 }),
            HostSession::Standing(Standing { vm: name("vm1"), snapshot: name("ring-000001") }),
            HostSession::UserHere(true),
        ]
    );
    pin!(
        CoordinatorSession,
        (),
        [
            CoordinatorSession::Welcome(Welcome { protocol: 1, term: 300 }),
            CoordinatorSession::Goodbye("why".to_owned()),
            CoordinatorSession::StillHere(700),
            CoordinatorSession::Incarnations(vec![(name("ring"), 300)]),
            CoordinatorSession::Household(HostOrder::Missing(vec![name("vm1")])),
            CoordinatorSession::RunOn(name("ring-000001")),
        ]
    );
}

#[test]
fn orders() {
    pin!(
        Order,
        envelope(),
        [
            Order::Prepare(prefixes()),
            Order::Arm(()),
            Order::Take(Some(800)),
            Order::Clear(()),
            Order::Commit(()),
            Order::Abort("why".to_owned()),
            Order::Poll(()),
            Order::Restore(()),
            Order::Start(prefixes()),
            Order::Delete(()),
            Order::Verify(()),
            Order::Fetch(Source { host: name("h1"), address: "10.0.0.1:7421".to_owned(), digest: [7; 32] }),
            Order::Evict(name("h2")),
            Order::Control(Verb::Kill),
        ]
    );
}

fn cut() -> CutReport {
    CutReport {
        colouring: Colouring::Host,
        send_flipped_ns: 1,
        stopped_ns: 2,
        instant_ns: 3,
        resumed_ns: 400,
        receive_flipped_ns: 500,
        parts: vec![("ram".to_owned(), 300)],
        outside_connections: Some(1),
    }
}

fn saved() -> SavedReport {
    SavedReport { digest: [7; 32], bytes: 4096, saved_ns: 600 }
}

#[test]
fn answers() {
    pin!(
        Answer,
        envelope(),
        [
            Answer::Prepared(()),
            Answer::Armed(()),
            Answer::Cut(cut()),
            Answer::Saved(saved()),
            Answer::Settled(()),
            Answer::Ready(()),
            Answer::Loaded(()),
            Answer::Started(vec!["no clock".to_owned()]),
            Answer::Fetching(moved()),
            Answer::Fetched(moved()),
            Answer::Evicted(()),
            Answer::Deleted(()),
            Answer::Controlled(Controlled {
                state: VmState::Paused,
                incarnation: 300,
                changed: true,
                note: "why".to_owned(),
            }),
            Answer::Refused(failure()),
        ]
    );
}

#[test]
fn requests() {
    pin!(
        Request,
        (),
        [
            Request::Status(()),
            Request::Take(Some(name("ring"))),
            Request::List(true),
            Request::Show(name("ring-000004")),
            Request::Delete(name("ring-000004")),
            Request::Restore(None),
            Request::Verify(name("ring-000004")),
            Request::Control(ControlRequest {
                verb: Verb::Start,
                vms: vec![Pattern::new("ring-*").unwrap()].try_into().unwrap(),
            }),
            Request::Pause(name("ring")),
            Request::Resume(name("ring")),
            Request::Bases(Some(name("h1"))),
            Request::Household(HouseholdRequest { host: Some(name("h1")), task: tasks().remove(3) }),
            Request::RestoreAt(restore_at()),
            Request::Image(images::requests().remove(1)),
            Request::Access(AccessRequest::Turn(name("vm1"), 2, Ask::Close)),
            Request::Console(ConsoleRequest { vm: name("vm1"), lines: 20 }),
            Request::GiveWay(GivingWay { deployment: name("ring"), on: true }),
        ]
    );
}

fn record() -> SnapshotRecord {
    let mut member = MemberRecord::new(name("vm1"), name("h1"), Colouring::Guest, "stop-and-save".to_owned());
    member.set_cut(&cut(), Some(250_000));
    member.after_first_ms = Some(0.75);
    member.set_saved(&saved());
    SnapshotRecord {
        id: name("ring-000004"),
        deployment: name("ring"),
        epoch: 4,
        state: SnapshotState::Aborted,
        failure: Some(failure()),
        consistent: true,
        ram_way: "stop-and-save".to_owned(),
        created: "2026-01-01T00:00:00Z".to_owned(),
        members: vec![member],
        phases: PhaseTimes {
            prepare_ns: Some(1),
            arm_ns: Some(2),
            take_ns: Some(3),
            cut_at_ns: Some(5),
            clear_ns: Some(4),
            commit_ns: None,
        },
        skew_ms: Some(0.5),
        skew_bound_ms: Some(0.25),
        save_ms: Some(1.5),
        global_ms: None,
    }
}

fn controlled() -> ControlledVm {
    ControlledVm {
        vm: name("vm1"),
        host: name("h1"),
        state: Some(VmState::Running),
        changed: true,
        note: Some("a new boot".to_owned()),
        problem: Some("why".to_owned()),
        timed_out: true,
        ms: 2.5,
    }
}

#[test]
fn replies() {
    let place = Place { vm: name("vm1"), host: name("h1") };
    let progress = Progress {
        snapshot: name("ring-000004"),
        phase: Phase::Prepare,
        members: vec![name("vm1"), name("vm2")],
        waiting: vec![name("vm2")],
    };
    let fetched = fetched();
    let restored = RestoreReport {
        snapshot: name("ring-000004"),
        incarnation: 2,
        restore_ms: 3.0,
        fetch_ms: 0.5,
        poll_ms: 0.5,
        load_ms: 0.75,
        start_ms: 1.25,
        members: vec![place.clone()],
        fetched: vec![fetched.clone()],
        warnings: vec!["no clock".to_owned()],
    };
    let member =
        VerifiedMember { vm: name("vm1"), host: name("h1"), problem: Some("ram is damaged".to_owned()) };
    let verified = VerifyReport { snapshot: name("ring-000004"), members: vec![member] };
    let deleted = DeleteReport { snapshot: name("ring-000004"), waiting: vec![place.clone()] };
    pin!(
        Reply,
        (),
        [
            Reply::Progress(progress),
            Reply::Record(Box::new(record())),
            Reply::End(()),
            Reply::Restored(restored),
            Reply::Deleted(deleted),
            Reply::Status(Box::new(status())),
            Reply::Verified(verified),
            Reply::Controlled(ControlReport { verb: Verb::Stop, vms: vec![controlled()] }),
            Reply::Paused(PauseReport {
                deployment: name("ring"),
                snapshot: name("ring-000004"),
                vms: vec![controlled()],
            }),
            Reply::Runs(name("ring")),
            Reply::Household(household_report()),
            Reply::Fetching(FetchProgress { snapshot: name("ring-000004"), members: vec![fetched] }),
            Reply::Image(Box::new(images::record())),
            Reply::Access(AccessReply::Said(name("vm1"), Said::Taken)),
            Reply::Console(ConsoleReport { place, bytes: b"login:".to_vec() }),
            Reply::GivesWay(GivingWay { deployment: name("ring"), on: false }),
            Reply::Failed(RequestError::new(RequestErrorKind::Refused, "why")),
            Reply::Copies(copies()),
        ]
    );
}

/// Enums travel by the order of their variants: each one is pinned, not only those used above.
#[test]
fn variants() {
    use FailureKind as Kind;
    let kinds = [
        Kind::VmNotRunning,
        Kind::GuestAgent,
        Kind::NoSpace,
        Kind::Hypervisor,
        Kind::LateCut,
        Kind::Files,
        Kind::Stale,
        Kind::TimedOut,
        Kind::HostLost,
        Kind::BadRequest,
        Kind::Internal,
        Kind::Colouring,
        Kind::NotAllowed,
    ];
    let phases = [
        Phase::Prepare,
        Phase::Arm,
        Phase::Take,
        Phase::Save,
        Phase::Clear,
        Phase::Commit,
        Phase::Abort,
        Phase::Poll,
        Phase::Restore,
        Phase::Start,
        Phase::Delete,
        Phase::Verify,
        Phase::Control,
        Phase::Access,
        Phase::Fetch,
        Phase::Evict,
    ];
    let mut lines = String::new();
    for at in 0..kinds.len().max(phases.len()) {
        let (kind, phase) = (kinds[at % kinds.len()], phases[at % phases.len()]);
        let bytes = Answer::Refused(Failure::new(kind, phase, "")).encode(&envelope());
        let body = &bytes[bytes.len() - 3..];
        assert_eq!(usize::from(body[0]), at % kinds.len(), "{kind:?}");
        assert_eq!(usize::from(body[1]), at % phases.len(), "{phase:?}");
        writeln!(lines, "{at} {kind:?} {phase:?}").unwrap();
    }
    let states = [VmState::Stopped, VmState::Starting, VmState::Running, VmState::Paused, VmState::Failed];
    let snapshots =
        [SnapshotState::Open, SnapshotState::Committed, SnapshotState::Aborted, SnapshotState::Deleting];
    use RequestErrorKind as Error;
    let errors = [
        Error::NotAllowed,
        Error::NotFound,
        Error::Refused,
        Error::Aborted,
        Error::TimedOut,
        Error::Internal,
    ];
    let attach = [AttachKind::Tcx, AttachKind::Clsact];
    let colouring = [Colouring::Guest, Colouring::None, Colouring::Host, Colouring::Memory];
    writeln!(lines, "{states:?} {:?}", states.map(|state| state as u8)).unwrap();
    writeln!(lines, "{snapshots:?} {:?}", snapshots.map(|state| state as u8)).unwrap();
    writeln!(lines, "{errors:?} {:?}", errors.map(|kind| kind as u8)).unwrap();
    writeln!(lines, "{attach:?} {:?}", attach.map(|kind| kind as u8)).unwrap();
    writeln!(lines, "{colouring:?} {:?}", colouring.map(|way| way as u8)).unwrap();
    insta::assert_snapshot!("variants", lines);
}

//! The agent itself: its port, its death, its successor.

use std::{
    fs,
    process::Command,
    thread::sleep,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aya::programs::{SchedClassifier, TcAttachType};
use unasnap_protocol::guest::{
    AttachKind, Flip, GuestReply, GuestRequest, MAX_MEMBER_PREFIXES, Prefix, SetMembers, StartHooks,
    WordState,
};

use crate::{
    bench::{Attach, Bench, GUEST_INTERFACE, GUEST4, GUEST6, PEER4, word},
    frames::{self, GUEST_MAC},
    net::{Datagrams, SOON},
};

const PINS: &str = "/sys/fs/bpf/unasnap";

fn leaves_with(bench: &Bench, dscp: u8) {
    let wire = bench.wire();
    Datagrams::bind(GUEST4, 0).send(PEER4, 9, 0, b"hello");
    let packet = wire.receive(SOON, |frame| frames::parse(frame).filter(|packet| packet.protocol == 17));
    assert_eq!(packet.expect("a datagram").dscp, dscp);
}

/// Lines that tc(8) prints about our programs, and links on the TCX hooks.
fn programs_attached() -> usize {
    let hooks = [("egress", TcAttachType::Egress), ("ingress", TcAttachType::Ingress)];
    hooks
        .map(|(name, hook)| {
            SchedClassifier::query_tcx(GUEST_INTERFACE, hook).unwrap().1.len() + filters(name)
        })
        .iter()
        .sum()
}

fn filters(hook: &str) -> usize {
    tc(&["filter", "show", "dev", GUEST_INTERFACE, hook]).matches("name unasnap_").count()
}

fn tc(arguments: &[&str]) -> String {
    let output = Command::new("tc").args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn it_says_who_it_is() {
    for (attach, kind) in [(Attach::Tcx, AttachKind::Tcx), (Attach::Clsact, AttachKind::Clsact)] {
        let mut bench = Bench::attached(attach);
        let GuestReply::Identity(identity) = bench.ask(&GuestRequest::Identify(())) else { panic!() };
        assert_eq!(identity.agent_version, env!("CARGO_PKG_VERSION"));
        assert_eq!(identity.kernel, fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim());
        assert_eq!(identity.boot_id.len(), 36);
        assert_eq!(identity.attach, kind);
        assert_eq!(identity.word, WordState::idle(0));
        let [interface] = &identity.interfaces[..] else { panic!("{:?}", identity.interfaces) };
        assert_eq!((interface.name.as_str(), interface.mac), (GUEST_INTERFACE, GUEST_MAC));
        assert!(interface.addresses.contains(&Prefix::V4(GUEST4.octets(), 32)));
        assert!(interface.addresses.contains(&Prefix::V6(GUEST6.octets(), 128)));
    }
}

#[test]
fn a_killed_agent_harms_nobody_and_its_successor_takes_over() {
    for attach in Attach::BOTH {
        let mut bench = Bench::attached(attach);
        bench.set_word(WordState::colouring(4));
        bench.kill();
        leaves_with(&bench, 5);
        bench.start();
        assert_eq!(bench.word(), WordState::colouring(4), "{attach:?}");
        leaves_with(&bench, 5);
        assert_eq!(programs_attached(), 2, "{attach:?}");
        assert_eq!(bench.counter("coloured"), 2, "{attach:?}");
        assert_eq!(bench.ask(&GuestRequest::SelfCheck(())), GuestReply::Health(vec![]), "{attach:?}");
    }
}

#[test]
fn detach_leaves_nothing_behind() {
    for attach in Attach::BOTH {
        let mut bench = Bench::attached(attach);
        bench.set_word(WordState::colouring(4));
        assert_eq!(programs_attached(), 2);
        bench.kill();
        assert!(bench.command("detach").status.success());
        assert_eq!(programs_attached(), 0, "{attach:?}");
        assert!(!fs::exists(PINS).unwrap());
        assert!(!tc(&["qdisc", "show", "dev", GUEST_INTERFACE]).contains("clsact"));
        leaves_with(&bench, 0);
        assert!(bench.command("detach").status.success(), "a second time");
    }
}

#[test]
fn counters_can_be_read_without_the_agent() {
    let mut bench = Bench::new();
    bench.set_word(WordState::colouring(4));
    leaves_with(&bench, 5);
    bench.kill();
    let output = bench.command("counters");
    assert!(String::from_utf8(output.stdout).unwrap().lines().any(|line| line == "coloured 1"));
    bench.command("detach");
    let output = bench.command("counters");
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("is its agent running?"));
}

#[test]
fn garbage_and_torn_frames_are_survived() {
    let mut bench = Bench::new();
    let head = unasnap_protocol::guest::RequestHead { sequence: 77, incarnation: 1 };
    let torn = GuestRequest::SetWord(WordState::colouring(9)).encode(&head);
    bench.write(b"\x00\xff garbage USNP garbage");
    for kept in [1, 4, 12, 16, torn.len() - 1] {
        bench.write(&torn[..kept]);
        assert_eq!(bench.word(), WordState::idle(0));
    }
    bench.write(&unasnap_protocol::frame::encode(999, b"what is this"));
    bench.write(&unasnap_protocol::frame::encode(3, b""));
    assert_eq!(bench.word(), WordState::idle(0));
}

#[test]
fn a_host_that_hangs_up_finds_the_agent_again() {
    let mut bench = Bench::new();
    bench.set_word(WordState::colouring(4));
    bench.hang_up();
    assert_eq!(bench.word(), WordState::colouring(4));
}

#[test]
fn older_incarnations_are_refused() {
    let mut bench = Bench::new();
    bench.incarnation = 5;
    bench.set_word(WordState::colouring(4));
    bench.incarnation = 4;
    let refused = bench.ask(&GuestRequest::SetWord(WordState::idle(9)));
    assert_eq!(refused, GuestReply::OldIncarnation(5));
    bench.incarnation = 5;
    assert_eq!(bench.word(), WordState::colouring(4));
}

#[test]
fn a_straddle_by_requests_each_of_them_twice() {
    let mut bench = Bench::new();
    let flip = Flip { from: 3, to: 4 };
    bench.set_word(WordState::colouring(3));
    for _ in 0..2 {
        let armed = GuestReply::Word(word(3, 3, true, true));
        assert_eq!(bench.ask(&GuestRequest::SetStrict(3)), armed);
    }
    for _ in 0..2 {
        let straddling = GuestReply::Word(word(4, 3, true, true));
        assert_eq!(bench.ask(&GuestRequest::FlipSend(flip)), straddling);
    }
    for _ in 0..2 {
        let cut = GuestReply::Word(word(4, 4, true, false));
        assert_eq!(bench.ask(&GuestRequest::FlipReceive(flip)), cut);
    }
    let late = GuestReply::Late(word(4, 4, true, false));
    assert_eq!(bench.ask(&GuestRequest::FlipSend(flip)), late);
    bench.set_word(WordState::idle(4));
    assert_eq!(bench.ask(&GuestRequest::FlipReceive(flip)), GuestReply::Late(WordState::idle(4)));
}

#[test]
fn bad_requests_are_answered_in_words_and_change_nothing() {
    let mut bench = Bench::new();
    let members = |prefixes, code_points| {
        GuestRequest::SetMembers(SetMembers { prefixes, code_points, future_lease_ms: 1000 })
    };
    let bad = [
        members(vec![], [3, 3, 7]),
        members(vec![], [0, 5, 7]),
        members(vec![Prefix::V4([10, 0, 0, 1], 33)], [3, 5, 7]),
        members(vec![Prefix::V4([10, 0, 0, 1], 32); MAX_MEMBER_PREFIXES + 1], [3, 5, 7]),
        GuestRequest::SetWord(WordState::idle(u32::MAX)),
        GuestRequest::FlipSend(Flip { from: 3, to: 5 }),
        GuestRequest::FlipReceive(Flip { from: 3, to: 3 }),
    ];
    for request in bad {
        let reply = bench.ask(&request);
        assert!(matches!(reply, GuestReply::Failed(_)), "{request:?}: {reply:?}");
    }
    bench.set_word(WordState::colouring(0));
    leaves_with(&bench, 3);
}

#[test]
fn members_are_replaced_and_not_added_to() {
    let mut bench = Bench::new();
    let only_the_guest = SetMembers {
        prefixes: vec![Prefix::V4(GUEST4.octets(), 32)],
        code_points: [3, 5, 7],
        future_lease_ms: 1000,
    };
    bench.ask(&GuestRequest::SetMembers(only_the_guest.clone()));
    bench.set_word(WordState::colouring(0));
    leaves_with(&bench, 0);
    let everybody = SetMembers { prefixes: vec![Prefix::V4([10, 77, 9, 9], 16)], ..only_the_guest };
    bench.ask(&GuestRequest::SetMembers(everybody));
    leaves_with(&bench, 3);
}

#[test]
fn self_check_notices_programs_that_are_gone() {
    for attach in Attach::BOTH {
        let mut bench = Bench::attached(attach);
        for word in [WordState::idle(1), WordState::colouring(1), word(2, 1, true, true)] {
            bench.set_word(word);
            assert_eq!(bench.ask(&GuestRequest::SelfCheck(())), GuestReply::Health(vec![]));
        }
        assert!(bench.command("detach").status.success());
        let GuestReply::Health(problems) = bench.ask(&GuestRequest::SelfCheck(())) else { panic!() };
        assert_eq!(problems.len(), 2, "{attach:?}: {problems:?}");
        assert!(problems[0].contains("egress program does not hang on guest0"), "{problems:?}");
    }
}

/// Steps the machine's wall clock to what it is.
#[test]
fn start_hooks_announce_every_address() {
    let mut bench = Bench::new();
    let [for_arp, for_discovery] = [bench.wire(), bench.wire()];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let hooks = StartHooks { unix_ns: u64::try_from(now.as_nanos()).unwrap(), entropy: [7; 32] };
    assert_eq!(bench.ask(&GuestRequest::StartHooks(hooks)), GuestReply::Done(()));
    let arp =
        |frame: &[u8]| (frame[12..14] == [0x08, 0x06] && frame[28..32] == GUEST4.octets()).then_some(());
    assert!(for_arp.receive(SOON, arp).is_some(), "a gratuitous ARP");
    let advertisement = |frame: &[u8]| {
        let packet = frames::parse(frame)?;
        (packet.protocol == 58 && packet.payload[0] == 136 && packet.payload[8..24] == GUEST6.octets())
            .then_some(())
    };
    assert!(for_discovery.receive(SOON, advertisement).is_some(), "a neighbour advertisement");
}

#[test]
fn the_agent_is_small_and_sleeps() {
    let mut bench = Bench::new();
    bench.ask(&GuestRequest::SelfCheck(()));
    let resident = resident_kilobytes(bench.agent_id());
    assert!(resident < 10_000, "resident: {resident} kB");
    let before = processor_ticks(bench.agent_id());
    sleep(Duration::from_millis(500));
    assert!(processor_ticks(bench.agent_id()) - before <= 1, "an idle agent uses the processor");
}

fn resident_kilobytes(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// User and system time, in hundredths of a second: fields 14 and 15 of proc_pid_stat(5).
fn processor_ticks(process: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let behind_name = stat.rsplit(')').next().unwrap();
    behind_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

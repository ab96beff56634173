//! The same programs on the other side of the card: on the host's tap devices, where everything is mirrored.
//!
//! The test is both VMs and the switch's far end: it writes and reads frames where a hypervisor would.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Write},
    os::fd::{AsFd, AsRawFd},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use unasnap_guest_ebpf::{Counter, StateWord};
use unasnap_loader::{Installation, Pins, Side, Site, attach::detach_taps};
use unasnap_protocol::guest::{AttachKind, Prefix, SetMembers};

use crate::{
    bench::{FAMILIES, own_bpf_file_system},
    frames::{self, Packet},
    net::{A_WHILE, Namespace, SOON, run},
};

/// Epochs 0, 1, 2 mod 3.
const CODES: [u8; 3] = [3, 5, 7];
const PORT: u16 = 9;
const KINDS: [AttachKind; 2] = [AttachKind::Tcx, AttachKind::Clsact];

/// A tap device on the bridge, and the end of it that a hypervisor holds.
struct Tap {
    name: &'static str,
    end: File,
}

impl Tap {
    fn new(name: &'static str) -> Self {
        run(&format!("ip tuntap add dev {name} mode tap"));
        run(&format!("ip link set dev {name} master br0 up"));
        let end =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
        let end = end.unwrap();
        // SAFETY: a C structure of integers and arrays, for which zeros are a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: the request is the structure that this ioctl takes.
        let taken = unsafe { libc::ioctl(end.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
        assert_eq!(taken, 0, "{}", std::io::Error::last_os_error());
        Self { name, end }
    }

    fn send(&self, frame: &[u8]) {
        assert_eq!((&self.end).write(frame).unwrap(), frame.len());
    }

    /// The next datagram of a test that comes out here within `limit`.
    fn receive(&self, limit: Duration) -> Option<Packet> {
        let deadline = Instant::now() + limit;
        let mut buffer = [0; 4096];
        loop {
            match (&self.end).read(&mut buffer) {
                Ok(count) => {
                    if let Some(packet) =
                        frames::parse(&buffer[..count]).filter(|packet| packet.protocol == 17)
                    {
                        return Some(packet);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    let limit = PollTimeout::from(u16::try_from(left.as_millis() + 1).unwrap());
                    poll(&mut [PollFd::new(self.end.as_fd(), PollFlags::POLLIN)], limit).unwrap();
                }
                Err(error) => panic!("{}: {error}", self.name),
            }
        }
    }
}

/// A bridge in a namespace of its own, with a VM's tap and another port on it.
struct Host {
    _namespace: Namespace,
    vm: Tap,
    other: Tap,
}

impl Host {
    fn new() -> Self {
        let namespace = Namespace::enter_new();
        own_bpf_file_system();
        run("sysctl -q net.ipv6.conf.default.disable_ipv6=1");
        run("ip link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0");
        run("ip link set br0 up");
        Self { _namespace: namespace, vm: Tap::new("vm"), other: Tap::new("other") }
    }
}

fn pins(vm: &str) -> Pins {
    Pins::at(PathBuf::from("/sys/fs/bpf/unasnap-host/test").join(vm))
}

fn site(vm: &str, kind: AttachKind) -> Site {
    Site { side: Side::Tap, pins: pins(vm), without_tcx: kind == AttachKind::Clsact }
}

/// Guest and peer are members, the stranger is none.
fn install(vm: &str, kind: AttachKind, interfaces: &[&str]) -> Installation {
    let interfaces: Vec<String> = interfaces.iter().map(|name| (*name).to_owned()).collect();
    let mut installation = Installation::install(&site(vm, kind), &interfaces, false).unwrap();
    assert_eq!(installation.kind(), kind);
    let prefixes = FAMILIES.iter().flat_map(|family| &family[..2]).map(|address| match address {
        std::net::IpAddr::V4(address) => Prefix::V4(address.octets(), 32),
        std::net::IpAddr::V6(address) => Prefix::V6(address.octets(), 128),
    });
    let prefixes = prefixes.collect();
    installation.set_members(&SetMembers { prefixes, code_points: CODES, future_lease_ms: 60_000 }).unwrap();
    installation
}

fn counter(installation: &Installation, wanted: Counter) -> u64 {
    let counters = installation.maps().counters().unwrap();
    counters.into_iter().find(|(counter, _)| *counter == wanted).unwrap().1
}

fn code(epoch: u32) -> u8 {
    CODES[epoch as usize % 3]
}

/// A datagram from `from` with this DSCP comes out at `to` with the DSCP `seen`, or with `None` not at all.
fn passes(from: &Tap, to: &Tap, dscp: u8, seen: Option<u8>, context: &str) {
    // The bridge has flooded earlier datagrams to every port.
    while to.receive(Duration::ZERO).is_some() {}
    for [source, destination, _] in FAMILIES {
        from.send(&frames::udp(source, destination, PORT, dscp << 2 | 1, b"over the bridge"));
        let packet = to.receive(if seen.is_some() { SOON } else { A_WHILE });
        assert_eq!(packet.as_ref().map(|packet| packet.dscp), seen, "{context}, from {source}");
        assert!(packet.is_none_or(|packet| packet.ecn == 1), "{context}: ECN is kept");
    }
}

#[test]
fn what_leaves_the_vm_is_coloured_where_it_comes_in() {
    for kind in KINDS {
        let host = Host::new();
        let mut vm = install("vm", kind, &["vm"]);
        for epoch in 3..6 {
            vm.set_word(StateWord::new(epoch, epoch, true, false)).unwrap();
            passes(&host.vm, &host.other, 46, Some(code(epoch)), "colouring");
        }
        assert_eq!(counter(&vm, Counter::Coloured), 6);
        vm.set_word(StateWord::new(3, 3, false, false)).unwrap();
        passes(&host.vm, &host.other, 46, Some(46), "idle");
        passes(&host.vm, &host.other, 5, Some(0), "idle, and the application uses a code point of ours");
        let [guest, _, stranger] = FAMILIES[0];
        vm.set_word(StateWord::new(3, 3, true, true)).unwrap();
        host.vm.send(&frames::udp(guest, stranger, PORT, 46 << 2, b"elsewhere"));
        assert_eq!(host.other.receive(SOON).unwrap().dscp, 46, "to a stranger");
    }
}

#[test]
fn what_comes_to_the_vm_is_judged_where_it_goes_out() {
    for kind in KINDS {
        let host = Host::new();
        let mut vm = install("vm", kind, &["vm"]);
        for epoch in 3..6 {
            let mut judged = |strict, dscp, seen| {
                vm.set_word(StateWord::new(epoch, epoch, true, strict)).unwrap();
                passes(&host.other, &host.vm, dscp, seen, &format!("{kind:?} epoch {epoch} strict {strict}"));
            };
            for strict in [false, true] {
                judged(strict, code(epoch), Some(0));
                judged(strict, code(epoch + 2), Some(0));
                judged(strict, code(epoch + 1), None);
            }
            judged(false, 46, Some(46));
            judged(true, 46, None);
        }
        let [guest, _, stranger] = FAMILIES[0];
        host.other.send(&frames::udp(stranger, guest, PORT, code(6) << 2, b"from elsewhere"));
        assert_eq!(host.vm.receive(SOON).unwrap().dscp, code(6), "a stranger's");
    }
}

#[test]
fn the_atomic_flip_moves_both_directions() {
    let host = Host::new();
    let mut vm = install("vm", AttachKind::Tcx, &["vm"]);
    vm.set_word(StateWord::new(3, 3, true, true)).unwrap();
    passes(&host.other, &host.vm, code(4), None, "before");
    passes(&host.vm, &host.other, 0, Some(code(3)), "before");
    let flipped = vm.maps().word.change(|word| word.flip(3, 4));
    assert_eq!(flipped, Ok(StateWord::new(4, 4, true, false)));
    passes(&host.other, &host.vm, code(4), Some(0), "after");
    passes(&host.other, &host.vm, code(3), Some(0), "after, in transit");
    passes(&host.vm, &host.other, 0, Some(code(4)), "after");
    assert!(vm.maps().word.change(|word| word.flip(3, 4)).is_err(), "a second time it is late");
}

/// Two cards are one member: one word, one table.
#[test]
fn a_vm_with_two_cards_has_one_word() {
    let host = Host::new();
    let second = Tap::new("vm-b");
    let mut vm = install("vm", AttachKind::Tcx, &["vm", "vm-b"]);
    vm.set_word(StateWord::new(4, 4, true, true)).unwrap();
    passes(&host.vm, &host.other, 0, Some(code(4)), "the first card");
    passes(&second, &host.other, 0, Some(code(4)), "the second card");
    passes(&host.other, &host.vm, code(5), None, "the first card");
    passes(&host.other, &second, code(5), None, "the second card");
    assert_eq!(vm.problems(), [""; 0]);
}

#[test]
fn every_vm_of_a_host_has_a_word_of_its_own() {
    for kind in KINDS {
        let host = Host::new();
        let mut vm = install("vm", kind, &["vm"]);
        let mut other = install("other", kind, &["other"]);
        vm.set_word(StateWord::new(4, 4, true, true)).unwrap();
        other.set_word(StateWord::new(3, 3, true, true)).unwrap();
        passes(&host.vm, &host.other, 0, None, "the sender has cut, the receiver has not");
        passes(&host.other, &host.vm, 0, Some(0), "the other way it is in transit");
        assert_eq!(counter(&other, Counter::PostDropped), 2);
        assert_eq!(counter(&vm, Counter::InTransit), 2);
        drop(other);
        detach_taps(&pins("other"), &["other".to_owned()]).unwrap();
        passes(&host.vm, &host.other, 0, Some(code(4)), "nobody judges at the other");
        assert_eq!(vm.problems(), [""; 0], "{kind:?}: the neighbour's programs are untouched");
    }
}

#[test]
fn they_outlive_their_agent_and_the_next_one_takes_over() {
    for kind in KINDS {
        let host = Host::new();
        let mut vm = install("vm", kind, &["vm"]);
        vm.set_word(StateWord::new(4, 4, true, true)).unwrap();
        drop(vm);
        passes(&host.vm, &host.other, 0, Some(code(4)), "nobody is there");
        passes(&host.other, &host.vm, code(5), None, "nobody is there");
        let mut vm = install("vm", kind, &["vm"]);
        assert_eq!(vm.maps().word.load(), StateWord::new(4, 4, true, true));
        passes(&host.vm, &host.other, 0, Some(code(4)), "the successor");
        assert_eq!(counter(&vm, Counter::Coloured), 4);
        assert_eq!(vm.problems(), [""; 0]);
        drop(vm);
        detach_taps(&pins("vm"), &["vm".to_owned()]).unwrap();
        passes(&host.vm, &host.other, 46, Some(46), "nothing is left");
        assert!(!fs::exists("/sys/fs/bpf/unasnap-host/test/vm").unwrap());
        detach_taps(&pins("vm"), &["vm".to_owned()]).unwrap();
    }
}

#[test]
fn a_tap_that_vanished_is_named() {
    for kind in KINDS {
        let _host = Host::new();
        let mut vm = install("vm", kind, &["vm"]);
        run("ip link delete vm");
        let problems = vm.problems();
        assert!(problems.iter().any(|problem| problem.contains("does not hang on vm")), "{problems:?}");
        drop(vm);
        detach_taps(&pins("vm"), &["vm".to_owned()]).unwrap();
        let missing = Installation::install(&site("vm", kind), &["vm".to_owned()], false);
        let error = format!("{:#}", missing.err().unwrap());
        assert!(error.contains("there is no interface vm"), "{error}");
    }
}

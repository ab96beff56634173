//! A guest with its agent, and a peer.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::net::{UnixListener, UnixStream},
    process::{Child, Command, Output},
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use tempfile::TempDir;
use unasnap_protocol::{
    frame::{Decoder, MAX_GUEST_PAYLOAD},
    guest::{GuestReply, GuestRequest, Prefix, RequestHead, SetMembers, WordState},
};

use crate::{
    frames::{GUEST_MAC, PEER_MAC},
    net::{Namespace, SOON, Wire, run},
};

pub const GUEST4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const PEER4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub const STRANGER4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);
pub const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
pub const PEER6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
pub const STRANGER6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 3);

/// Guest, peer and stranger of each family.
pub const FAMILIES: [[IpAddr; 3]; 2] = [
    [IpAddr::V4(GUEST4), IpAddr::V4(PEER4), IpAddr::V4(STRANGER4)],
    [IpAddr::V6(GUEST6), IpAddr::V6(PEER6), IpAddr::V6(STRANGER6)],
];

/// Interface of the guest, where the agent attaches.
pub const GUEST_INTERFACE: &str = "guest0";
const PEER_INTERFACE: &str = "peer0";

/// How the agent is to attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    Tcx,
    Clsact,
}

impl Attach {
    pub const BOTH: [Self; 2] = [Self::Tcx, Self::Clsact];
}

/// The calling thread lives in the guest's namespaces for the rest of the test.
pub struct Bench {
    pub peer: Namespace,
    attach: Attach,
    directory: TempDir,
    listener: UnixListener,
    agent: Option<Child>,
    channel: Option<UnixStream>,
    decoder: Decoder,
    pub incarnation: u64,
    sequence: u64,
}

impl Bench {
    /// A guest whose agent knows guest and peer as members; the stranger is none.
    pub fn new() -> Self {
        Self::attached(Attach::Tcx)
    }

    pub fn attached(attach: Attach) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("port")).unwrap();
        let peer = Namespace::enter_new();
        let _guest = Namespace::enter_new();
        wire_up(&peer);
        own_bpf_file_system();
        let mut bench = Self {
            peer,
            attach,
            directory,
            listener,
            agent: None,
            channel: None,
            decoder: Decoder::resync(MAX_GUEST_PAYLOAD),
            incarnation: 1,
            sequence: 0,
        };
        bench.start();
        bench.set_members([3, 5, 7], 60_000);
        bench
    }

    /// Starts an agent and waits for it to open its port.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// The same with further arguments.
    pub fn start_with(&mut self, arguments: &[&str]) {
        let port = self.directory.path().join("port");
        self.spawn(&[&["--port", port.to_str().unwrap()], arguments].concat());
        self.listener.set_nonblocking(true).unwrap();
        let channel = wait_for("the agent to open its port", || self.listener.accept().ok());
        self.attend(channel.0);
    }

    /// Starts an agent that has no port.
    pub fn start_without_port(&mut self) {
        self.spawn(&[]);
    }

    fn spawn(&mut self, arguments: &[&str]) {
        let log = fs::File::create(self.directory.path().join("log")).unwrap();
        let mut command = agent_command();
        command.args(["run", "--interface", GUEST_INTERFACE]).args(arguments).stderr(log);
        if self.attach == Attach::Clsact {
            command.env("UNASNAP_ATTACH", "clsact");
        }
        self.agent = Some(command.spawn().unwrap());
    }

    fn attend(&mut self, channel: UnixStream) {
        channel.set_nonblocking(false).unwrap();
        channel.set_read_timeout(Some(SOON)).unwrap();
        self.decoder = Decoder::resync(MAX_GUEST_PAYLOAD);
        self.channel = Some(channel);
    }

    /// Closes the port on the host's side and waits for the agent to open it again.
    pub fn hang_up(&mut self) {
        self.channel = None;
        let channel = wait_for("the agent to open its port again", || self.listener.accept().ok());
        self.attend(channel.0);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut agent = self.agent.take().expect("the agent runs");
        agent.kill().unwrap();
        agent.wait().unwrap();
        self.channel = None;
    }

    pub fn agent_id(&self) -> u32 {
        self.agent.as_ref().expect("the agent runs").id()
    }

    /// Takes the guest's card away.
    pub fn unplug(&self) {
        run(&format!("ip link delete {GUEST_INTERFACE}"));
    }

    /// Takes the guest's card away and gives it one like it.
    pub fn replug(&self) {
        self.unplug();
        wire_up(&self.peer);
    }

    /// What the running agent wrote to stderr.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// Runs another command of the agent's binary to its end.
    pub fn command(&self, name: &str) -> Output {
        self.command_with(&[name])
    }

    /// The same with arguments.
    pub fn command_with(&self, words: &[&str]) -> Output {
        agent_command().args(words).output().unwrap()
    }

    /// Bytes as they are, into the port.
    pub fn write(&mut self, bytes: &[u8]) {
        self.channel.as_mut().expect("the port is open").write_all(bytes).unwrap();
    }

    /// One request and its reply.
    pub fn ask(&mut self, request: &GuestRequest) -> GuestReply {
        self.sequence += 1;
        let head = RequestHead { sequence: self.sequence, incarnation: self.incarnation };
        self.write(&request.encode(&head));
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                let (head, reply) = GuestReply::decode(&frame).unwrap();
                assert_eq!(head.sequence, self.sequence);
                return reply;
            }
            let mut chunk = [0; 4096];
            let read = self.channel.as_mut().expect("the port is open").read(&mut chunk);
            match read {
                Ok(count) if count > 0 => self.decoder.push(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => panic!("no reply to {}: {other:?}\n{}", request.name(), self.log()),
            }
        }
    }

    /// Members are the guest and the peer.
    pub fn set_members(&mut self, code_points: [u8; 3], future_lease_ms: u32) {
        let prefixes = vec![
            Prefix::V4(GUEST4.octets(), 32),
            Prefix::V4(PEER4.octets(), 32),
            Prefix::V6(GUEST6.octets(), 128),
            Prefix::V6(PEER6.octets(), 128),
        ];
        let members = SetMembers { prefixes, code_points, future_lease_ms };
        assert_eq!(self.ask(&GuestRequest::SetMembers(members)), GuestReply::Done(()));
    }

    pub fn set_word(&mut self, word: WordState) {
        assert_eq!(self.ask(&GuestRequest::SetWord(word)), GuestReply::Word(word));
    }

    /// The word as the agent finds it.
    pub fn word(&mut self) -> WordState {
        match self.ask(&GuestRequest::Identify(())) {
            GuestReply::Identity(identity) => identity.word,
            other => panic!("{other:?}"),
        }
    }

    pub fn counter(&mut self, name: &str) -> u64 {
        let GuestReply::Counters(counters) = self.ask(&GuestRequest::ReadCounters(())) else {
            panic!("no counters")
        };
        counters.iter().find(|(found, _)| found == name).expect("a counter of this name").1
    }

    /// A raw socket at the peer's end.
    pub fn wire(&self) -> Wire {
        self.peer.within(|| Wire::on(PEER_INTERFACE))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if self.agent.is_some() {
            self.kill();
        }
    }
}

pub fn word(send: u32, receive: u32, colouring: bool, strict: bool) -> WordState {
    WordState { send, receive, colouring, strict }
}

/// Asks again until there is an answer.
pub fn wait_for<T>(what: &str, attempt: impl Fn() -> Option<T>) -> T {
    for _ in 0..500 {
        if let Some(found) = attempt() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("waited 10 s for {what}");
}

fn agent_command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_unasnap-guest"))
}

/// Neighbours are known from the start, so that nothing but the test's packets crosses the wire.
fn wire_up(peer: &Namespace) {
    run(&format!("ip link add {GUEST_INTERFACE} type veth peer name {PEER_INTERFACE}"));
    peer.adopt(PEER_INTERFACE);
    configure(GUEST_INTERFACE, GUEST_MAC, &["10.77.0.1/24", "fd77::1/64"]);
    neighbours(GUEST_INTERFACE, PEER_MAC, &FAMILIES.map(|[_, peer, stranger]| [peer, stranger]).concat());
    peer.within(|| {
        let addresses = ["10.77.0.2/24", "10.77.0.3/24", "fd77::2/64", "fd77::3/64"];
        configure(PEER_INTERFACE, PEER_MAC, &addresses);
        neighbours(PEER_INTERFACE, GUEST_MAC, &FAMILIES.map(|[guest, ..]| guest));
    });
}

fn configure(interface: &str, mac: [u8; 6], addresses: &[&str]) {
    run(&format!("ip link set {interface} address {}", written(mac)));
    run(&format!("ip link set {interface} up"));
    for address in addresses {
        let option = if address.contains(':') { "nodad" } else { "" };
        run(&format!("ip address add {address} dev {interface} {option}"));
    }
}

fn neighbours(interface: &str, mac: [u8; 6], addresses: &[IpAddr]) {
    for address in addresses {
        run(&format!("ip neighbour replace {address} lladdr {} dev {interface}", written(mac)));
    }
}

fn written(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Pins of one test are not seen by another.
pub fn own_bpf_file_system() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
}

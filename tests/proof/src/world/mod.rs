//! The whole system in one value: coordinator with its journal, connections, participants with their jobs, VMs with their
//! words, and the packets under way. What decides is the code that ships; only what surrounds it is written here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use unasnap_guest_ebpf::StateWord;
use unasnap_guest_ebpf::layout::DropStamp;
use unasnap_protocol::control::{Answer, Envelope, Order};
use unasnap_protocol::guest::Epoch;
use unasnap_protocol::participant::{Job, Participant};

use self::coordinator::Coordinator;
use crate::setup::Setup;

pub mod coordinator;
mod jobs;
pub use jobs::next_part;
mod links;
mod members;
pub mod network;

/// Everything that can change.
#[derive(Debug, Clone, Hash)]
pub struct World {
    /// The coordinator.
    pub coordinator: Coordinator,
    /// Hosts with their agents.
    pub hosts: Vec<Host>,
    /// One per VM.
    pub members: Vec<Member>,
    /// Packets between members. Of two that are alike one is enough: the network may double it.
    pub packets: BTreeSet<Packet>,
}

/// A host agent and its connection.
#[derive(Debug, Clone, Hash, Default)]
pub struct Host {
    /// Does the agent run?
    pub up: bool,
    /// The connection to the coordinator.
    pub link: Option<Link>,
    /// Answers that wait for a connection.
    pub waiting: VecDeque<(Envelope, Answer)>,
}

/// A connection: in order, until it breaks.
#[derive(Debug, Clone, Hash, Default)]
pub struct Link {
    /// Towards the host.
    pub down: VecDeque<(Envelope, Order)>,
    /// Towards the coordinator.
    pub up: VecDeque<(Envelope, Answer)>,
}

/// A member: its participant with what surrounds it in the host agent, its VM, and its part of the store.
#[derive(Debug, Clone, Hash)]
pub struct Member {
    /// Decides.
    pub participant: Participant,
    /// The job that runs.
    pub job: Option<Running>,
    /// The saving that runs beside it.
    pub saving: Option<Envelope>,
    /// Does a lease run?
    pub wake: bool,
    /// The instance.
    pub vm: Option<Vm>,
    /// The local snapshot that is being made.
    pub draft: Option<Draft>,
    /// Those that are in the store.
    pub locals: BTreeMap<Epoch, Local>,
    /// Did what undoes fail? What it left is removed by the next PREPARE, hello or start of the agent.
    pub undo_failed: bool,
}

/// A job and how far it is.
#[derive(Debug, Clone, Hash)]
pub struct Running {
    /// As the participant gave it.
    pub job: Job,
    /// The next of its actions.
    pub next: usize,
    /// Did a flip in the pause come too late?
    pub late: bool,
}

/// From PREPARE to SAVED.
#[derive(Debug, Clone, Hash)]
pub struct Draft {
    /// Of this snapshot.
    pub snapshot: Epoch,
    /// After the cut.
    pub image: Option<Arc<Image>>,
}

/// A local snapshot in the store.
#[derive(Debug, Clone, Hash)]
pub struct Local {
    /// RAM.
    pub image: Arc<Image>,
    /// Is the mark of COMMIT there?
    pub committed: bool,
    /// Has every byte reached the disk?
    pub durable: bool,
}

/// What of a VM is in its snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Image {
    /// The application and its TCP.
    pub app: App,
    /// Frames in its card that nobody has judged yet.
    pub ring: Vec<Packet>,
    /// Of in-guest programs.
    pub word: StateWord,
    /// Of in-guest programs.
    pub stamp: DropStamp,
}

/// An instance.
#[derive(Debug, Clone, Hash)]
pub struct Vm {
    /// Of the deployment, when it was started.
    pub incarnation: u64,
    /// Do its vCPUs run?
    pub running: bool,
    /// Loaded, and START has not come.
    pub awaits_start: bool,
    /// What it is.
    pub image: Image,
    /// Frames that its host's programs have accepted while it stood still.
    pub held: Vec<Packet>,
}

/// Both ends of the streams of one member.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct App {
    /// In the order of the channels that it sends on.
    pub sent: Vec<Sent>,
    /// In the order of the channels that it receives from: the contents of every message.
    pub received: Vec<Vec<u8>>,
}

/// The sending end of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Sent {
    /// Contents of every message: the incarnation that made it, which is all that may differ after a restore.
    pub log: Vec<u8>,
    /// How many the other end is known to have.
    pub acknowledged: u32,
}

/// A packet between members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packet {
    /// The stream that it belongs to.
    pub channel: usize,
    /// What it carries.
    pub body: Body,
    /// As it stands in its header.
    pub dscp: u8,
}

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Body {
    /// A message.
    Data {
        /// Its place in the stream.
        number: u32,
        /// Its contents.
        content: u8,
    },
    /// The receiver has all messages before this one.
    Acknowledgement(u32),
}

/// Something that will happen by itself; a simulation gives it a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Todo {
    /// An order travels to this host.
    Down(usize),
    /// An answer travels from this host.
    Up(usize),
    /// A packet travels.
    Packet(Packet),
    /// This member's job goes on.
    Act(usize),
    /// This member saves.
    Save(usize),
    /// This member wants to be woken.
    Wake(usize, Option<Duration>),
    /// The coordinator wants to be woken.
    Deadline(Duration),
    /// A frame waits in this member's card.
    Judge(usize),
}

/// What every change needs besides the world.
pub struct Context<'a> {
    /// What stays the same.
    pub setup: &'a Setup,
    /// What will happen by itself.
    pub todo: &'a mut Vec<Todo>,
}

impl World {
    /// All VMs have just booted, and every agent is connected.
    #[must_use]
    pub fn new(setup: &Setup) -> Self {
        let host = Host { up: true, link: Some(Link::default()), ..Host::default() };
        let streams = |end: fn(&crate::setup::Channel) -> usize, member: usize| {
            setup.channels.iter().filter(|channel| end(channel) == member).count()
        };
        let member = |member| {
            let app = App {
                sent: vec![Sent::default(); streams(|channel| channel.from, member)],
                received: vec![Vec::new(); streams(|channel| channel.to, member)],
            };
            let image = Image { app, ..Image::default() };
            Member {
                participant: Participant::new(0),
                job: None,
                saving: None,
                wake: false,
                vm: Some(Vm { incarnation: 0, running: true, awaits_start: false, image, held: Vec::new() }),
                draft: None,
                locals: BTreeMap::new(),
                undo_failed: false,
            }
        };
        Self {
            coordinator: Coordinator::new(),
            hosts: vec![host; setup.hosts()],
            members: (0..setup.members()).map(member).collect(),
            packets: BTreeSet::new(),
        }
    }
}

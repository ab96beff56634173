//! What stays the same throughout a run: who is there, who talks to whom, and which mistake is put back.

use std::collections::BTreeSet;

use unasnap_protocol::control::Colouring;
use unasnap_protocol::fault::Fault;
use unasnap_protocol::guest::Epoch;
use unasnap_protocol::name::Name;

/// A mistake that is put back to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mistake {
    /// The system as it ships, or with one of the mistakes that its programs know.
    Shipped(Fault),
    /// The six published steps (protocol.md section 6): each member by itself, the colour changed after the resume, no strict,
    /// uncoloured at once.
    Published,
    /// A cut flips the word whatever it finds there: no compare-and-swap.
    LateCut,
    /// A restored deployment starts at the next epoch, whatever its colour.
    RestoredColour,
    /// A restored member is idle before the frames have been judged that lay in its card at the cut.
    IdleAtOnce,
    /// A loaded VM's network devices take frames before START.
    OpenTaps,
    /// Decisions are sent before they are durable.
    SentFirst,
    /// SAVED is said before the bytes are durable.
    SavedFirst,
    /// Nobody advances by itself.
    NoAdvance,
    /// ABORT leaves the files of the local snapshot.
    FilesLeft,
    /// A cut that fails in its pause leaves the VM standing, and so does what undoes it.
    LeftStanding,
}

/// One direction of one stream.
#[derive(Debug, Clone, Copy)]
pub struct Channel {
    /// The sending member.
    pub from: usize,
    /// Place of this channel among those that it sends on.
    pub out: usize,
    /// The receiving member.
    pub to: usize,
    /// Place of this channel among those that it receives from.
    pub inn: usize,
}

/// What stays the same throughout a run.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Host of each member.
    pub host_of: Vec<usize>,
    /// How each member's packets are coloured.
    pub ways: Vec<Colouring>,
    /// All streams.
    pub channels: Vec<Channel>,
    /// Most messages that the application sends on each stream.
    pub messages: usize,
    /// Are messages acknowledged, and sent again until they are?
    pub acknowledged: bool,
    /// Do frames wait in the guest's card before in-guest programs judge them?
    pub ring: bool,
    /// Can an order or answer be lost on a connection that stays? More than TCP does: then files may stay until the next hello.
    pub lossy: bool,
    /// What is wrong, if anything.
    pub mistake: Mistake,
    /// The deployment.
    pub deployment: Name,
    /// Names of the members.
    pub names: Vec<Name>,
}

fn name(text: &str) -> Name {
    Name::new(text).expect("made of letters, digits and dashes")
}

impl Setup {
    /// Members that are coloured in these ways, each on a host of its own, with streams between these pairs.
    #[must_use]
    pub fn new(ways: &[Colouring], pairs: &[(usize, usize)]) -> Self {
        let (mut sends, mut receives) = (vec![0; ways.len()], vec![0; ways.len()]);
        let place = |counts: &mut Vec<usize>, member: usize| {
            counts[member] += 1;
            counts[member] - 1
        };
        let channels = pairs
            .iter()
            .map(|&(from, to)| Channel {
                from,
                out: place(&mut sends, from),
                to,
                inn: place(&mut receives, to),
            })
            .collect();
        Self {
            host_of: (0..ways.len()).collect(),
            ways: ways.to_vec(),
            channels,
            messages: 1,
            acknowledged: false,
            ring: false,
            lossy: false,
            mistake: Mistake::Shipped(Fault::None),
            deployment: name("d"),
            names: (0..ways.len()).map(|member| name(&format!("m{member}"))).collect(),
        }
    }

    /// How many members there are.
    #[must_use]
    pub fn members(&self) -> usize {
        self.ways.len()
    }

    /// How many hosts there are.
    #[must_use]
    pub fn hosts(&self) -> usize {
        self.host_of.iter().max().map_or(0, |last| last + 1)
    }

    /// Members on a host.
    pub fn on(&self, host: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.members()).filter(move |member| self.host_of[*member] == host)
    }

    /// Names of all members.
    #[must_use]
    pub fn all(&self) -> BTreeSet<Name> {
        self.names.iter().cloned().collect()
    }

    /// The member of this name.
    ///
    /// # Panics
    /// There is none: the world is not whole.
    #[must_use]
    pub fn member(&self, name: &Name) -> usize {
        name.as_str()[1..].parse().expect("m and a number")
    }

    /// What the coordinator does wrong.
    #[must_use]
    pub fn coordinators_fault(&self) -> Fault {
        match self.mistake {
            Mistake::Shipped(fault) => fault,
            Mistake::Published => Fault::NoBarrier,
            _ => Fault::None,
        }
    }

    /// What host agents do wrong.
    #[must_use]
    pub fn agents_fault(&self) -> Fault {
        match self.mistake {
            Mistake::Shipped(fault) => fault,
            Mistake::Published => Fault::SendFlippedLate,
            _ => Fault::None,
        }
    }

    /// Does ARM make members strict?
    #[must_use]
    pub fn is_strict(&self) -> bool {
        self.mistake != Mistake::Published && self.agents_fault().is_strict()
    }

    /// Do programs on the host colour for this member?
    #[must_use]
    pub fn by_host(&self, member: usize) -> bool {
        self.ways[member] == Colouring::Host
    }
}

/// The snapshot of an epoch.
///
/// # Panics
/// Never: it is a good name.
#[must_use]
pub fn snapshot_name(epoch: Epoch) -> Name {
    name(&format!("s{epoch}"))
}

/// The epoch of a snapshot.
///
/// # Panics
/// It is not one that [`snapshot_name`] made.
#[must_use]
pub fn snapshot_epoch(name: &Name) -> Epoch {
    name.as_str()[1..].parse().expect("s and a number")
}

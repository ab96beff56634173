//! What can happen next, and what it does.

use unasnap_guest_ebpf::layout::Config;
use unasnap_protocol::coordinator as protocol;
use unasnap_protocol::guest::Epoch;
use unasnap_protocol::participant::Event as MemberEvent;

use crate::setup::Setup;
use crate::world::coordinator::Course;
use crate::world::network::{Arrival, judged};
use crate::world::{Body, Context, Packet, World};

/// A moment of an exploration's clock: only whether a lease has passed since the first drop counts.
pub const EARLY_NS: u64 = 1 << 30;

/// The other moment: a drop now is one lease after any at [`EARLY_NS`].
#[must_use]
pub fn late_ns() -> u64 {
    EARLY_NS + 2 * Config::default().future_lease_ns
}

/// One indivisible happening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The operator asks for a snapshot.
    Take,
    /// The operator asks for this one to be restored.
    Restore(Epoch),
    /// The next order reaches this host.
    Down(usize),
    /// The next order to this host is lost.
    LoseDown(usize),
    /// The next order reaches this host, and will once more.
    RepeatDown(usize),
    /// The next answer of this host reaches the coordinator.
    Up(usize),
    /// The next answer of this host is lost.
    LoseUp(usize),
    /// The next answer of this host reaches the coordinator, and will once more.
    RepeatUp(usize),
    /// The coordinator's wait runs out.
    Deadline,
    /// The coordinator polls again those that were not ready.
    PollAgain,
    /// The coordinator is killed.
    CoordinatorDies,
    /// It is started.
    CoordinatorStarts,
    /// What a mistaken coordinator has not written reaches the disk.
    WriteLate,
    /// A connection breaks.
    Break(usize),
    /// A host agent connects.
    Connect(usize),
    /// A host agent is killed.
    AgentDies(usize),
    /// It is started.
    AgentStarts(usize),
    /// A host loses its power.
    HostDies(usize),
    /// The next part of a member's job.
    Act(usize),
    /// The next part of a member's job is done, but the job fails.
    ActUnheard(usize),
    /// A member's job fails.
    JobFails(usize),
    /// A member's local snapshot is durable.
    SaveEnds(usize),
    /// It cannot be made so.
    SaveFails(usize),
    /// A member's lease runs out.
    Wake(usize),
    /// The application sends on this channel.
    Send(usize),
    /// TCP sends again on this channel.
    SendAgain(usize),
    /// A packet arrives.
    Deliver {
        /// Which.
        packet: Packet,
        /// By the member's clock.
        now_ns: u64,
    },
    /// A packet arrives, and will once more.
    Repeat {
        /// Which.
        packet: Packet,
        /// By the member's clock.
        now_ns: u64,
    },
    /// A packet loses its mark.
    Bleach(Packet),
    /// A packet is lost.
    Lose(Packet),
    /// A frame in a member's card is judged.
    Judge {
        /// The member.
        member: usize,
        /// Place of the frame.
        place: usize,
        /// By the member's clock.
        now_ns: u64,
    },
}

/// What came of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// It cannot happen now.
    Nothing,
    /// It happened.
    Done,
    /// A packet arrived.
    Packet(Arrival),
}

impl From<bool> for Came {
    fn from(done: bool) -> Self {
        if done { Self::Done } else { Self::Nothing }
    }
}

impl From<Option<Arrival>> for Came {
    fn from(arrival: Option<Arrival>) -> Self {
        arrival.map_or(Self::Nothing, Self::Packet)
    }
}

impl World {
    /// Lets it happen.
    pub fn apply(&mut self, cx: &mut Context<'_>, event: Event) -> Came {
        match event {
            Event::Take => self.take(cx).into(),
            Event::Restore(of) => self.restore(cx, of).into(),
            Event::Down(host) => self.down(cx, host, 1),
            Event::RepeatDown(host) => self.down(cx, host, 2),
            Event::LoseDown(host) => self.down(cx, host, 0),
            Event::Up(host) => self.up(cx, host, 1),
            Event::RepeatUp(host) => self.up(cx, host, 2),
            Event::LoseUp(host) => self.up(cx, host, 0),
            Event::Deadline => {
                let woken = self.coordinator.up && std::mem::take(&mut self.coordinator.wake);
                if woken {
                    self.course_event(cx, protocol::Event::Deadline);
                }
                woken.into()
            }
            Event::PollAgain => (self.coordinator.up && self.poll_again(cx)).into(),
            Event::CoordinatorDies => self.when(self.coordinator.up, Self::coordinator_dies),
            Event::CoordinatorStarts => self.when(!self.coordinator.up, |world| world.coordinator_starts(cx)),
            Event::WriteLate => self.when(!self.coordinator.unwritten.is_empty(), Self::write_late),
            Event::Break(host) => {
                self.when(self.hosts[host].link.is_some(), |world| world.break_link(cx, host))
            }
            Event::Connect(host) => self.when(self.may_connect(host), |world| world.connect(cx, host)),
            Event::AgentDies(host) => self.when(self.hosts[host].up, |world| world.agent_dies(cx, host)),
            Event::AgentStarts(host) => self.when(!self.hosts[host].up, |world| world.agent_starts(cx, host)),
            Event::HostDies(host) => self.when(true, |world| world.host_dies(cx, host)),
            Event::Act(member) => self.act(cx, member, false).into(),
            Event::ActUnheard(member) => self.act(cx, member, true).into(),
            Event::JobFails(member) => self.job_fails(cx, member).into(),
            Event::SaveEnds(member) => self.save_ends(cx, member, true).into(),
            Event::SaveFails(member) => self.save_ends(cx, member, false).into(),
            Event::Wake(member) => {
                let woken = std::mem::take(&mut self.members[member].wake);
                if woken {
                    self.member_event(cx, member, MemberEvent::Deadline);
                }
                woken.into()
            }
            Event::Send(channel) => self.send_message(cx, channel).into(),
            Event::SendAgain(channel) => self.send_again(cx, channel).into(),
            Event::Deliver { packet, now_ns } => self.deliver(cx, packet, now_ns, false),
            Event::Repeat { packet, now_ns } => self.deliver(cx, packet, now_ns, true),
            Event::Bleach(packet) => self.bleach(cx, packet).into(),
            Event::Lose(packet) => self.lose(packet).into(),
            Event::Judge { member, place, now_ns } => self.judge(cx, member, place, now_ns).into(),
        }
    }

    fn when(&mut self, possible: bool, act: impl FnOnce(&mut Self)) -> Came {
        if possible {
            act(self);
        }
        possible.into()
    }

    fn write_late(&mut self) {
        self.coordinator.write_late();
    }

    fn may_connect(&self, host: usize) -> bool {
        self.coordinator.up && self.hosts[host].up && self.hosts[host].link.is_none()
    }

    fn down(&mut self, cx: &mut Context<'_>, host: usize, times: u8) -> Came {
        let Some(link) = &mut self.hosts[host].link else { return Came::Nothing };
        let Some((envelope, order)) = link.down.pop_front() else { return Came::Nothing };
        let member = cx.setup.member(&envelope.vm);
        for _ in 0..times {
            self.member_event(cx, member, MemberEvent::Order(envelope.clone(), order.clone()));
        }
        Came::Done
    }

    fn up(&mut self, cx: &mut Context<'_>, host: usize, times: u8) -> Came {
        let Some(link) = &mut self.hosts[host].link else { return Came::Nothing };
        let Some((envelope, answer)) = link.up.pop_front() else { return Came::Nothing };
        for _ in 0..times {
            self.answered(cx, &envelope, answer.clone());
        }
        Came::Done
    }

    fn deliver(&mut self, cx: &mut Context<'_>, packet: Packet, now_ns: u64, stays: bool) -> Came {
        if !self.packets.contains(&packet) {
            return Came::Nothing;
        }
        let arrival = self.arrive(cx, packet, now_ns);
        if arrival.is_some() && !stays {
            self.lose(packet);
        }
        arrival.into()
    }

    /// Everything that can happen now. Whether it may, is the exploration's affair.
    #[must_use]
    pub fn possible(&self, setup: &Setup) -> Vec<Event> {
        let mut events = Vec::new();
        self.possible_to_coordinator(&mut events);
        for (host, state) in self.hosts.iter().enumerate() {
            if let Some(link) = &state.link {
                if !link.down.is_empty() {
                    events.extend([Event::Down(host), Event::RepeatDown(host), Event::LoseDown(host)]);
                }
                if !link.up.is_empty() {
                    events.extend([Event::Up(host), Event::RepeatUp(host), Event::LoseUp(host)]);
                }
                events.push(Event::Break(host));
            } else if self.may_connect(host) {
                events.push(Event::Connect(host));
            }
            events.push(if state.up { Event::AgentDies(host) } else { Event::AgentStarts(host) });
            if setup.on(host).any(|member| self.members[member].vm.is_some()) {
                events.push(Event::HostDies(host));
            }
        }
        for (index, member) in self.members.iter().enumerate() {
            if member.job.is_some() {
                events.extend([Event::Act(index), Event::ActUnheard(index), Event::JobFails(index)]);
            }
            if member.saving.is_some() {
                events.extend([Event::SaveEnds(index), Event::SaveFails(index)]);
            }
            if member.wake {
                events.push(Event::Wake(index));
            }
            if let Some(vm) = &member.vm {
                let frames = if vm.running { vm.image.ring.len() } else { 0 };
                for place in 0..frames {
                    let packet = vm.image.ring[place];
                    let judge = |now_ns| Event::Judge { member: index, place, now_ns };
                    events.extend(self.moments(index, packet).map(judge));
                }
            }
        }
        self.possible_in_network(setup, &mut events);
        events
    }

    fn possible_to_coordinator(&self, events: &mut Vec<Event>) {
        let coordinator = &self.coordinator;
        if !coordinator.up {
            events.push(Event::CoordinatorStarts);
            return;
        }
        events.push(Event::CoordinatorDies);
        if !coordinator.unwritten.is_empty() {
            events.push(Event::WriteLate);
        }
        if coordinator.wake {
            events.push(Event::Deadline);
        }
        if coordinator.course.is_none() && self.hosts.iter().all(|host| host.link.is_some()) {
            events.push(Event::Take);
        }
        let polls = matches!(&coordinator.course, Some(Course::Restoring { again, .. }) if !again.is_empty());
        if polls {
            events.push(Event::PollAgain);
        }
        let free =
            !matches!(coordinator.course, Some(Course::Restoring { .. })) && coordinator.then.is_none();
        let usable = coordinator.journal.snapshots.iter().filter(|(_, record)| free && record.committed);
        events.extend(usable.map(|(epoch, _)| Event::Restore(*epoch)));
    }

    fn possible_in_network(&self, setup: &Setup, events: &mut Vec<Event>) {
        for (index, channel) in setup.channels.iter().enumerate() {
            let Some(vm) = self.members[channel.from].vm.as_ref().filter(|vm| vm.running) else { continue };
            let sent = &vm.image.app.sent[channel.out];
            if sent.log.len() < setup.messages {
                events.push(Event::Send(index));
            }
            let unacknowledged = setup.acknowledged && (sent.acknowledged as usize) < sent.log.len();
            let same =
                |packet: &&Packet| packet.channel == index && packet.body.number() == Some(sent.acknowledged);
            // One copy under way at a time is enough: duplicates are the network's.
            if unacknowledged && !self.packets.iter().any(|packet| same(&packet)) {
                events.push(Event::SendAgain(index));
            }
        }
        for &packet in &self.packets {
            let to = packet.to(setup);
            for now_ns in self.moments(to, packet) {
                events.extend([Event::Deliver { packet, now_ns }, Event::Repeat { packet, now_ns }]);
            }
            if packet.dscp != 0 {
                events.push(Event::Bleach(packet));
            }
            events.push(Event::Lose(packet));
        }
    }

    /// When it can arrive, as far as that makes a difference: only a second drop of the same epoch asks for the time.
    fn moments(&self, member: usize, packet: Packet) -> impl Iterator<Item = u64> + use<> {
        let vm = self.members[member].vm.as_ref();
        let drops = vm.is_some_and(|vm| judged(vm, packet).drops() && vm.image.stamp.bits() != 0);
        [EARLY_NS, late_ns()].into_iter().take(if drops { 2 } else { 1 })
    }
}

impl Body {
    /// Its number, if it is a message.
    #[must_use]
    pub fn number(&self) -> Option<u32> {
        match self {
            Self::Data { number, .. } => Some(*number),
            Self::Acknowledgement(_) => None,
        }
    }
}

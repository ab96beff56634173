//! Packets: an application with streams at each end, the programs' rules in between, and a network that may do anything.

use unasnap_guest_ebpf::layout::{Config, DropStamp};
use unasnap_guest_ebpf::{CodePoints, Dropped, Egress, Ingress, dropped, egress, ingress};

use super::{Body, Context, Packet, Todo, Vm, World};
use crate::setup::{Mistake, Setup};

/// What a packet's arrival came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Nobody there.
    Lost,
    /// It lies in the guest's card.
    Waits,
    /// The rules stopped it.
    Dropped,
    /// The rules stopped it, and the member advanced.
    Advanced,
    /// The application has it.
    Received,
}

impl Packet {
    /// The member that sends it.
    #[must_use]
    pub fn from(&self, setup: &Setup) -> usize {
        let channel = &setup.channels[self.channel];
        if matches!(self.body, Body::Data { .. }) { channel.from } else { channel.to }
    }

    /// The member that it goes to.
    #[must_use]
    pub fn to(&self, setup: &Setup) -> usize {
        let channel = &setup.channels[self.channel];
        if matches!(self.body, Body::Data { .. }) { channel.to } else { channel.from }
    }
}

/// What the programs of this VM make of a packet.
#[must_use]
pub fn judged(vm: &Vm, packet: Packet) -> Ingress {
    ingress(vm.image.word, packet.dscp, CodePoints::DEFAULT)
}

impl Vm {
    /// The DSCP with which it sends.
    #[must_use]
    pub fn colours(&self) -> u8 {
        match egress(self.image.word, 0, CodePoints::DEFAULT) {
            Egress::Colour(dscp) => dscp,
            Egress::Leave | Egress::Sanitise => 0,
        }
    }

    /// As the TC programs do at every packet.
    fn lets_in(&mut self, mistake: Mistake, packet: Packet, now_ns: u64) -> Result<(), Arrival> {
        if !judged(self, packet).drops() {
            return Ok(());
        }
        let lease_ns = Config::default().future_lease_ns;
        match dropped(self.image.word, self.image.stamp, now_ns, lease_ns) {
            Dropped::Remember(stamp) => self.image.stamp = stamp,
            Dropped::Advance(word) if mistake != Mistake::NoAdvance => {
                (self.image.word, self.image.stamp) = (word, DropStamp::default());
                return Err(Arrival::Advanced);
            }
            Dropped::Advance(_) | Dropped::Wait => {}
        }
        Err(Arrival::Dropped)
    }
}

impl World {
    /// The application sends one more message.
    pub(crate) fn send_message(&mut self, cx: &mut Context<'_>, channel: usize) -> bool {
        let ends = cx.setup.channels[channel];
        let Some(vm) = self.members[ends.from].vm.as_mut().filter(|vm| vm.running) else { return false };
        let sent = &mut vm.image.app.sent[ends.out];
        if sent.log.len() >= cx.setup.messages {
            return false;
        }
        let content = vm.incarnation as u8;
        sent.log.push(content);
        let number = sent.log.len() as u32 - 1;
        self.emit(cx, channel, Body::Data { number, content });
        true
    }

    /// TCP sends the first message again that is not acknowledged, if there is one.
    pub(crate) fn send_again(&mut self, cx: &mut Context<'_>, channel: usize) -> bool {
        let ends = cx.setup.channels[channel];
        let Some(vm) = self.members[ends.from].vm.as_ref().filter(|vm| vm.running) else { return false };
        let sent = &vm.image.app.sent[ends.out];
        let Some(&content) = sent.log.get(sent.acknowledged as usize) else { return false };
        self.emit(cx, channel, Body::Data { number: sent.acknowledged, content });
        true
    }

    fn emit(&mut self, cx: &mut Context<'_>, channel: usize, body: Body) {
        let mut packet = Packet { channel, body, dscp: 0 };
        let Some(vm) = &self.members[packet.from(cx.setup)].vm else { return };
        packet.dscp = vm.colours();
        self.put(cx, packet);
    }

    fn put(&mut self, cx: &mut Context<'_>, packet: Packet) {
        if self.packets.insert(packet) {
            cx.todo.push(Todo::Packet(packet));
        }
    }

    /// Takes it out of the network.
    pub(crate) fn lose(&mut self, packet: Packet) -> bool {
        self.packets.remove(&packet)
    }

    /// The network clears its mark.
    pub(crate) fn bleach(&mut self, cx: &mut Context<'_>, packet: Packet) -> bool {
        if packet.dscp == 0 || !self.lose(packet) {
            return false;
        }
        self.put(cx, Packet { dscp: 0, ..packet });
        true
    }

    /// A packet reaches its member. Where the VM stands still, programs on its host judge it, and it waits; in-guest programs
    /// see it when the VM runs.
    pub(crate) fn arrive(&mut self, cx: &mut Context<'_>, packet: Packet, now_ns: u64) -> Option<Arrival> {
        let index = packet.to(cx.setup);
        let by_host = cx.setup.by_host(index);
        let mistake = cx.setup.mistake;
        let Some(vm) = self.members[index].vm.as_mut() else { return Some(Arrival::Lost) };
        if vm.awaits_start && mistake != Mistake::OpenTaps {
            return Some(Arrival::Lost);
        }
        if !vm.running && !by_host {
            return None;
        }
        if cx.setup.ring && !by_host {
            vm.image.ring.push(packet);
            vm.image.ring.sort_unstable();
            cx.todo.push(Todo::Judge(index));
            return Some(Arrival::Waits);
        }
        if let Err(stopped) = vm.lets_in(mistake, packet, now_ns) {
            return Some(stopped);
        }
        if vm.running {
            self.receive(cx, packet);
        } else {
            vm.held.push(packet);
            vm.held.sort_unstable();
        }
        Some(Arrival::Received)
    }

    /// In-guest programs judge a frame that lay in the card.
    pub(crate) fn judge(
        &mut self,
        cx: &mut Context<'_>,
        index: usize,
        place: usize,
        now_ns: u64,
    ) -> Option<Arrival> {
        let mistake = cx.setup.mistake;
        let vm = self.members[index].vm.as_mut().filter(|vm| vm.running && place < vm.image.ring.len())?;
        let packet = vm.image.ring.remove(place);
        match vm.lets_in(mistake, packet, now_ns) {
            Ok(()) => {
                self.receive(cx, packet);
                Some(Arrival::Received)
            }
            Err(stopped) => Some(stopped),
        }
    }

    /// A VM that runs again takes what its host has accepted meanwhile.
    pub(super) fn release(&mut self, cx: &mut Context<'_>, index: usize) {
        let Some(vm) = self.members[index].vm.as_mut().filter(|vm| vm.running) else { return };
        for packet in std::mem::take(&mut vm.held) {
            self.receive(cx, packet);
        }
    }

    /// TCP: in order, each once, and an answer that says how far it is.
    fn receive(&mut self, cx: &mut Context<'_>, packet: Packet) {
        let ends = cx.setup.channels[packet.channel];
        let Some(vm) = &mut self.members[packet.to(cx.setup)].vm else { return };
        match packet.body {
            Body::Data { number, content } => {
                let received = &mut vm.image.app.received[ends.inn];
                if number as usize == received.len() {
                    received.push(content);
                }
                let next = received.len() as u32;
                if cx.setup.acknowledged {
                    self.emit(cx, packet.channel, Body::Acknowledgement(next));
                }
            }
            Body::Acknowledgement(next) => {
                let sent = &mut vm.image.app.sent[ends.out];
                // TCP ignores what acknowledges more than was sent.
                if next as usize <= sent.log.len() {
                    sent.acknowledged = sent.acknowledged.max(next);
                }
            }
        }
    }
}

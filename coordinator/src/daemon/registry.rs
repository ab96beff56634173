//! Who is connected and what each host says: lives as long as the coordinator, nothing is durable.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::{fmt, io};

use jiff::Timestamp;
use unasnap_fault_points::around;
use unasnap_protocol::access::AccessOrder;
use unasnap_protocol::control::{
    CoordinatorSession, Envelope, Inventory, Order, TransferAddress, VmReport, VmState,
};
use unasnap_protocol::coordinator::clock::{HostClock, Reading};
use unasnap_protocol::name::Name;

use super::outbox::Outbox;

/// Number of a connection, so that what an old one still says is not taken for the new one's words.
pub type LinkId = u64;

/// What is wrong with a host that is not here, in words that go on after "its".
pub fn not_connected(host: impl fmt::Display) -> String {
    format!("host {host} is not connected; start the host agent there")
}

/// A host whose agent is connected.
pub struct ConnectedHost {
    /// Of its connection.
    pub link: LinkId,
    /// When it said hello.
    pub since: Timestamp,
    /// What it reported last.
    pub inventory: Inventory,
    clock: HostClock,
    ip: Option<IpAddr>,
    transfer: Option<TransferAddress>,
    user_here: bool,
    outbox: Outbox,
}

/// All connected hosts.
#[derive(Default)]
pub struct Registry {
    hosts: BTreeMap<Name, ConnectedHost>,
    lost: BTreeMap<Name, Timestamp>,
}

impl Registry {
    /// Enters a host; the connection that it had before is returned no more and closes.
    pub fn connect(
        &mut self,
        name: Name,
        link: LinkId,
        ip: Option<IpAddr>,
        inventory: Inventory,
        outbox: Outbox,
    ) {
        self.lost.remove(&name);
        let (since, clock) = (Timestamp::now(), HostClock::default());
        let (transfer, user_here) = (None, false);
        let host = ConnectedHost { link, since, inventory, clock, ip, transfer, user_here, outbox };
        self.hosts.insert(name, host);
    }

    /// Removes a host; its connection closes after what was sent before.
    pub fn disconnect(&mut self, name: &Name) {
        if self.hosts.remove(name).is_some() {
            self.lost.insert(name.clone(), Timestamp::now());
        }
    }

    /// A connected host.
    pub fn host(&self, name: &Name) -> Option<&ConnectedHost> {
        self.hosts.get(name)
    }

    /// Is this the connection that counts?
    pub fn is_current(&self, name: &Name, link: LinkId) -> bool {
        self.hosts.get(name).is_some_and(|host| host.link == link)
    }

    /// Names of all connected hosts.
    pub fn connected(&self) -> Vec<Name> {
        self.hosts.keys().cloned().collect()
    }

    /// Since when a host is lost, if it was connected in this term.
    pub fn lost_since(&self, name: &Name) -> Option<Timestamp> {
        self.lost.get(name).copied()
    }

    /// A host gives files to other hosts.
    pub fn set_transfer(&mut self, name: &Name, address: TransferAddress) {
        if let Some(host) = self.hosts.get_mut(name) {
            host.transfer = Some(address);
        }
    }

    /// Somebody has sat down at a host, or nobody sits there any more.
    pub fn set_user_here(&mut self, name: &Name, here: bool) {
        if let Some(host) = self.hosts.get_mut(name) {
            host.user_here = here;
        }
    }

    /// Is a host connected, and does somebody sit there?
    pub fn user_here(&self, name: &Name) -> bool {
        self.hosts.get(name).is_some_and(|host| host.user_here)
    }

    /// Where a connected host gives files to other hosts, if it does.
    pub fn transfer_address(&self, name: &Name) -> Option<SocketAddr> {
        let host = self.hosts.get(name)?;
        let TransferAddress { ip, port } = host.transfer?;
        Some(SocketAddr::new(ip.or(host.ip)?, port))
    }

    /// Takes what a host reports.
    pub fn set_inventory(&mut self, name: &Name, inventory: Inventory) {
        if let Some(host) = self.hosts.get_mut(name) {
            host.inventory = inventory;
        }
    }

    /// A VM stands as its host has just answered.
    pub fn set_state(&mut self, name: &Name, vm: &Name, state: VmState, incarnation: u64) {
        let host = self.hosts.get_mut(name);
        let report = host.and_then(|host| host.inventory.vms.iter_mut().find(|report| report.name == *vm));
        if let Some(report) = report {
            (report.state, report.incarnation) = (state, incarnation);
        }
    }

    /// A VM is there of which its host has just said so.
    pub fn add_report(&mut self, name: &Name, report: VmReport) {
        if let Some(host) = self.hosts.get_mut(name) {
            host.inventory.vms.retain(|known| known.name != report.name);
            host.inventory.vms.push(report);
        }
    }

    /// A VM is gone of which its host has just said so.
    pub fn remove_report(&mut self, name: &Name, vm: &Name) {
        if let Some(host) = self.hosts.get_mut(name) {
            host.inventory.vms.retain(|known| known.name != *vm);
        }
    }

    /// What is known of a connected host's clock.
    pub fn clock(&self, name: &Name) -> Option<&HostClock> {
        self.hosts.get(name).map(|host| &host.clock)
    }

    /// Takes a reading of a host's clock. Is the next to follow at once?
    pub fn add_reading(&mut self, name: &Name, reading: Reading) -> bool {
        self.hosts.get_mut(name).is_some_and(|host| {
            host.clock.add(reading);
            host.clock.is_new()
        })
    }

    /// What a connected host says of a VM.
    pub fn report(&self, host: &Name, vm: &Name) -> Option<&VmReport> {
        self.hosts.get(host)?.inventory.vms.iter().find(|report| report.name == *vm)
    }

    /// Sends an order; `false` if the host is not connected or does not read.
    pub fn order(&self, host: &Name, envelope: &Envelope, order: &Order) -> bool {
        around("order", order.name(), || self.send(host, order.encode(envelope))).is_ok()
    }

    /// Hands on what an operator wants of a guest; `false` as above.
    pub fn hand_on(&self, host: &Name, envelope: &Envelope, order: &AccessOrder) -> bool {
        around("relay", order.name(), || self.send(host, order.encode(envelope))).is_ok()
    }

    /// Says something about the session; `false` as above.
    pub fn say(&self, host: &Name, message: &CoordinatorSession) -> bool {
        around("say", message.name(), || self.send(host, message.encode(&()))).is_ok()
    }

    fn send(&self, host: &Name, frame: Vec<u8>) -> io::Result<()> {
        let taken = self.hosts.get(host).is_some_and(|host| host.outbox.try_send(frame));
        if taken { Ok(()) } else { Err(io::ErrorKind::NotConnected.into()) }
    }
}

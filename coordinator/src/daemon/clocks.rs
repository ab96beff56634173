//! The clocks of a snapshot's hosts, as they stood when TAKE went out: for which instant the cuts are ordered, and what the
//! times in the hosts' reports are by the coordinator's clock.

use std::collections::BTreeMap;

use unasnap_channel::steady_ns;
use unasnap_protocol::control::{Answer, ClockReading, CoordinatorSession, Order, SavedReport};
use unasnap_protocol::coordinator::clock::{HostClock, Offset, Reading, common_instant};
use unasnap_protocol::name::Name;

use super::owner::Owner;
use super::registry::Registry;

/// Fixed at TAKE, so that all times of one snapshot are translated alike.
#[derive(Debug, Default)]
pub struct Clocks {
    offsets: BTreeMap<Name, Offset>,
    at_ns: Option<u64>,
}

impl Clocks {
    /// As they stand now.
    pub fn fix<'a>(hosts: impl IntoIterator<Item = &'a Name>, registry: &Registry) -> Self {
        let now_ns = steady_ns();
        let unknown = HostClock::default();
        let clocks: BTreeMap<_, _> =
            hosts.into_iter().map(|host| (host, registry.clock(host).unwrap_or(&unknown))).collect();
        let offset = |(host, clock): (&&Name, &&HostClock)| Some(((*host).clone(), clock.offset(now_ns)?));
        Self {
            offsets: clocks.iter().filter_map(offset).collect(),
            at_ns: common_instant(now_ns, clocks.into_values()),
        }
    }

    /// The instant of the cuts by the coordinator's clock; `None` when TAKE means "at once".
    pub fn at_ns(&self) -> Option<u64> {
        self.at_ns
    }

    /// How far the offset of this host may be off.
    pub fn bound_ns(&self, host: &Name) -> Option<u64> {
        self.offsets.get(host).map(|offset| offset.bound_ns)
    }

    /// The order as this host has to get it.
    pub fn time_order(&self, host: &Name, order: Order) -> Order {
        match (order, self.at_ns.zip(self.offsets.get(host))) {
            (Order::Take(None), Some((at_ns, offset))) => Order::Take(Some(offset.to_host(at_ns))),
            (order, _) => order,
        }
    }

    /// The answer with times of the coordinator's clock.
    pub fn translate(&self, host: &Name, answer: Answer) -> Answer {
        match (self.offsets.get(host), answer) {
            (Some(offset), Answer::Cut(cut)) => Answer::Cut(offset.translate(cut)),
            (Some(offset), Answer::Saved(saved)) => {
                Answer::Saved(SavedReport { saved_ns: offset.to_coordinator(saved.saved_ns), ..saved })
            }
            (_, answer) => answer,
        }
    }
}

impl Owner {
    /// Says that we are here, and what time it is; `false` if the host does not take it.
    pub(super) fn ask_clock(&self, host: &Name) -> bool {
        self.registry.say(host, &CoordinatorSession::StillHere(steady_ns()))
    }

    /// A new host is asked again until enough is known.
    pub(super) fn on_clock_reading(&mut self, host: &Name, reading: ClockReading, heard_ns: u64) {
        let ClockReading { asked_ns, received_ns, answered_ns } = reading;
        let is_new =
            self.registry.add_reading(host, Reading { asked_ns, received_ns, answered_ns, heard_ns });
        if is_new {
            // One that does not take it is noticed at the next tick.
            self.ask_clock(host);
        }
    }
}

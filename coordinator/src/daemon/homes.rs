//! Where VMs live that were restored elsewhere. The coordinator alone says so: what other hosts report of such a VM does not
//! count, and a host that it has left is told to end its instance, as often as it takes.

use unasnap_protocol::control::{Envelope, Inventory, Order};
use unasnap_protocol::name::Name;

use super::journal::Result;
use super::owner::Owner;

impl Owner {
    /// Does this VM live on another host, whatever this one reports?
    pub(super) fn has_moved(&self, host: &Name, vm: &Name) -> bool {
        self.journal.homes().get(vm).is_some_and(|home| home.host != *host)
    }

    /// A host is there again: what has left it must not go on there.
    pub(super) fn tell_evictions(&self, host: &Name) {
        for (vm, home) in self.journal.homes().iter().filter(|(_, home)| home.evict.contains(host)) {
            tracing::warn!("host {host} is told that {vm} lives on {} now", home.host);
            let envelope = home.envelope(vm, self.journal.term());
            self.registry.order(host, &envelope, &Order::Evict(home.host.clone()));
        }
    }

    /// A host has ended its instance of a VM that lives elsewhere. Was it the last that a restore waits for?
    pub(super) fn on_evicted(&mut self, host: &Name, envelope: &Envelope) -> Result<()> {
        self.journal.evicted(&envelope.vm, host)?;
        if self.restorings.get_mut(&envelope.deployment).is_some_and(|open| open.evicted(host, envelope)) {
            return self.restoring_evicted(envelope);
        }
        Ok(())
    }

    /// Homes that have reported their VMs for the first time.
    pub(super) fn note_homes(&mut self, host: &Name, inventory: &Inventory) -> Result<()> {
        let is_new =
            |vm: &Name| self.journal.homes().get(vm).is_some_and(|home| home.host == *host && !home.settled);
        let new = inventory.vms.iter().map(|report| report.name.clone()).filter(is_new);
        new.collect::<Vec<_>>().iter().try_for_each(|vm| self.journal.settle_home(vm))
    }
}

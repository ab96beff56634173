//! Where VMs live that were restored elsewhere.

use std::collections::BTreeMap;

use unasnap_protocol::name::Name;

use super::{Counters, DEPLOYMENTS, HOMES, Home, Journal, Result, SNAPSHOTS, Stored, VMS, put, remove};

impl Journal {
    /// Homes of all VMs that have moved.
    pub fn homes(&self) -> &BTreeMap<Name, Home> {
        &self.homes
    }

    /// The old incarnation is dead from now on, and the new one may exist: counters and homes become durable together.
    pub fn begin_loading(
        &mut self,
        deployment: &Name,
        counters: Counters,
        homes: BTreeMap<Name, Home>,
    ) -> Result<()> {
        let moved = |(vm, home): (&Name, &Home)| {
            let mut known = self.vms.get(vm)?.clone();
            known.host = home.host.clone();
            Some((vm.clone(), known))
        };
        let vms: BTreeMap<_, _> = homes.iter().filter_map(moved).collect();
        self.write("loading", |write| {
            put(write, DEPLOYMENTS, deployment, &counters)?;
            homes.iter().try_for_each(|(vm, home)| put(write, HOMES, vm, home))?;
            vms.iter().try_for_each(|(vm, known)| put(write, VMS, vm, known))
        })?;
        self.deployments.insert(deployment.clone(), counters);
        self.homes.extend(homes);
        self.vms.extend(vms);
        Ok(())
    }

    /// A host that a VM has left has ended its instance.
    pub fn evicted(&mut self, vm: &Name, host: &Name) -> Result<()> {
        let Some(home) = self.homes.get(vm).filter(|home| home.evict.contains(host)) else { return Ok(()) };
        let mut home = home.clone();
        home.evict.remove(host);
        self.set_home(vm, home)?;
        // Of one that was deleted meanwhile, nothing else is left.
        if self.vms.contains_key(vm) { Ok(()) } else { self.forget_home(vm) }
    }

    /// The home of a VM has reported it.
    pub fn settle_home(&mut self, vm: &Name) -> Result<()> {
        match self.homes.get(vm) {
            Some(home) => self.set_home(vm, Home { settled: true, ..home.clone() }),
            None => Ok(()),
        }
    }

    /// A VM has no home that counts for more than what hosts report, unless one is to end an instance still.
    pub fn forget_home(&mut self, vm: &Name) -> Result<()> {
        if self.homes.get(vm).is_some_and(|home| home.evict.is_empty()) {
            self.write("home", |write| remove(write, HOMES, vm))?;
            self.homes.remove(vm);
        }
        Ok(())
    }

    /// Where files of a snapshot lie, or may lie, beside where it was taken.
    pub fn set_copies(&mut self, stored: Stored) -> Result<()> {
        self.write("copies", |write| put(write, SNAPSHOTS, &stored.record.id, &stored))?;
        self.snapshots.insert(stored.record.id.clone(), stored);
        Ok(())
    }

    fn set_home(&mut self, vm: &Name, home: Home) -> Result<()> {
        self.write("home", |write| put(write, HOMES, vm, &home))?;
        self.homes.insert(vm.clone(), home);
        Ok(())
    }
}

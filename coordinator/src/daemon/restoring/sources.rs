//! Which of several hosts gives a member's files, when one of them is away or has damaged ones; also to the host that has
//! damaged ones itself.

use std::collections::BTreeSet;

use unasnap_protocol::control::{Failure, Phase};
use unasnap_protocol::elsewhere::FetchedMember;
use unasnap_protocol::name::Name;

use super::super::journal::Result;
use super::super::owner::Owner;
use super::Restoring;

impl Owner {
    /// The files of this member, where they came from or where it is to run, were refused. Does another host have them, too?
    /// Then they come from there, and the operator is told.
    pub(super) fn take_other_copy(
        &mut self,
        deployment: &Name,
        vm: &Name,
        failure: &Failure,
    ) -> Result<bool> {
        let Some(restoring) = self.restorings.get_mut(deployment) else { return Ok(false) };
        if !restoring.machine.fetches(vm) {
            return self.mend(deployment, vm, failure);
        }
        let Some(from) = restoring.fetched.get(vm).map(|fetched| fetched.from.clone()) else {
            return Ok(false);
        };
        if failure.phase != Phase::Fetch {
            return Ok(false);
        }
        restoring.spoiled.entry(vm.clone()).or_default().insert(from);
        Ok(self.change_source(deployment, vm, &failure.text))
    }

    /// The files are damaged on the host where the member is to run. Once for each restore: a disk that spoils them again is
    /// not trusted.
    fn mend(&mut self, deployment: &Name, vm: &Name, damage: &Failure) -> Result<bool> {
        let Some(restoring) = self.restorings.get(deployment) else { return Ok(false) };
        let Some(host) = restoring.hosts.get(vm).cloned() else { return Ok(false) };
        let mut spoiled = restoring.spoiled.get(vm).cloned().unwrap_or_default();
        if !spoiled.insert(host.clone()) {
            return Ok(false);
        }
        let Some(mut stored) = self.journal.snapshots().get(&restoring.id).cloned() else { return Ok(false) };
        let Some(member) = stored.record.members.iter().find(|member| member.vm == *vm) else {
            return Ok(false);
        };
        let Some(source) = self.source_but(&stored, member, &spoiled) else { return Ok(false) };
        if member.host != host {
            stored.note_copy(vm, &host, false);
            self.journal.set_copies(stored)?;
        }
        let Some(restoring) = self.restorings.get_mut(deployment) else { return Ok(false) };
        let text = format!(
            "the files of {vm} on host {host} were damaged, and came anew from host {}: {}",
            source.host, damage.text
        );
        tracing::warn!("{}: {text}", restoring.id);
        restoring.detours.push(text);
        restoring.spoiled.insert(vm.clone(), spoiled);
        let coming = FetchedMember::new(vm.clone(), source.host.clone(), host);
        restoring.fetched.insert(vm.clone(), coming);
        restoring.again.remove(vm);
        let commands = restoring.machine.mend(vm, source, damage.clone());
        self.carry_out_restoring(deployment, commands)?;
        Ok(true)
    }

    /// Members that are asked again fetch from a host that is connected, if any of theirs is.
    pub(super) fn leave_dead_sources(&mut self, deployment: &Name, again: &BTreeSet<Name>) {
        let Some(restoring) = self.restorings.get(deployment) else { return };
        let is_dead = |vm: &&Name| {
            let from = restoring.fetched.get(*vm).map(|fetched| &fetched.from);
            restoring.machine.fetches(vm) && from.is_some_and(|host| self.registry.host(host).is_none())
        };
        for vm in again.iter().filter(is_dead).cloned().collect::<Vec<_>>() {
            self.change_source(deployment, &vm, "it is not connected any more");
        }
    }

    fn change_source(&mut self, deployment: &Name, vm: &Name, why: &str) -> bool {
        let Some(restoring) = self.restorings.get(deployment) else { return false };
        let Some(stored) = self.journal.snapshots().get(&restoring.id) else { return false };
        let Some(member) = stored.record.members.iter().find(|member| member.vm == *vm) else { return false };
        let spoiled = restoring.spoiled.get(vm).cloned().unwrap_or_default();
        let Some(source) = self.source_but(stored, member, &spoiled) else { return false };
        let Some(restoring) = self.restorings.get_mut(deployment) else { return false };
        let Some(fetched) = restoring.fetched.get_mut(vm) else { return false };
        let (from, to) = (std::mem::replace(&mut fetched.from, source.host.clone()), &source.host);
        let text = format!("the files of {vm} come from host {to}, not from {from}: {why}");
        tracing::warn!("{}: {text}", restoring.id);
        restoring.detours.push(text);
        restoring.machine.fetch_from(vm, source);
        true
    }

    /// What an operator can do after a restore that failed: members whose host is away may run where a copy is.
    pub(super) fn advice(&self, restoring: &Restoring) -> String {
        let (id, mut places, mut only) = (&restoring.id, Vec::new(), Vec::new());
        let mut moves = false;
        if let Some(stored) = self.journal.snapshots().get(id) {
            for member in &stored.record.members {
                let Some(host) = restoring.hosts.get(&member.vm) else { continue };
                let holders = stored.holders(member);
                let here = holders.iter().find(|holder| self.registry.host(holder).is_some());
                if self.registry.host(host).is_some() {
                    if self.journal.vms().get(&member.vm).is_some_and(|known| known.host != *host) {
                        places.push(format!("{}={host}", member.vm));
                    }
                } else if let Some(holder) = here {
                    moves = true;
                    places.push(format!("{}={holder}", member.vm));
                } else if holders.len() == 1 {
                    only.push(format!("{} on {}", member.vm, holders[0]));
                }
            }
        }
        let places = if places.is_empty() { String::new() } else { format!(" --place {}", places.join(",")) };
        let only = match only.as_slice() {
            [] => String::new(),
            only => {
                format!("; the only copies of some files lie on hosts that are away ({})", only.join(", "))
            }
        };
        if moves {
            return format!(
                "other hosts have copies of what a host has that is away: run `unasnap restore {id}{places}`{only}"
            );
        }
        format!("run `unasnap restore {id}{places}` again{only}")
    }
}

//! What has to be so before a task is given to hosts: where it is done, and whether VMs may come or go now.

use std::collections::BTreeSet;

use unasnap_protocol::guest::Prefix;
use unasnap_protocol::household::{HouseholdRequest, Task};
use unasnap_protocol::name::Name;

use super::chores::{Checked, Chore, not_found, refuse};
use super::owner::Owner;
use super::registry::not_connected;
use super::restoring::no_snapshot;

impl Owner {
    /// Where a task is to be done. All of the hosts are connected.
    pub(super) fn hosts_meant(&self, request: &HouseholdRequest) -> Checked<BTreeSet<Name>> {
        let of_vm = |vm: &Name| match self.journal.vms().get(vm) {
            Some(known) => Ok(Some(known.host.clone())),
            None => not_found(format!("no VM is called {vm}; `unasnap vm list` shows all of them")),
        };
        let host = match &request.task {
            Task::Clone(clone) => of_vm(&clone.of)?,
            Task::Delete { vm, .. } | Task::Freeze(vm) | Task::Files { vm, snapshot: None } => of_vm(vm)?,
            Task::Files { vm, snapshot: Some(id) } => Some(self.place_in(vm, id)?),
            _ => request.host.clone(),
        };
        if let (Some(host), Some(wanted)) = (&host, &request.host)
            && host != wanted
        {
            return refuse(format!("{} is done where the VM is, on host {host}", request.task.label()));
        }
        let Some(host) = host else {
            if request.task == Task::Bases {
                return Ok(self.registry.connected().into_iter().collect());
            }
            return refuse(format!("`{}` needs a host", request.task.label()));
        };
        if !self.journal.hosts().contains_key(&host) {
            return not_found(format!("no host is called {host}; `unasnap host list` shows all of them"));
        }
        if self.registry.host(&host).is_none() {
            return refuse(not_connected(&host));
        }
        Ok([host].into())
    }

    /// Where the files of a VM's local snapshot are.
    fn place_in(&self, vm: &Name, id: &Name) -> Checked<Name> {
        let Some(stored) = self.journal.snapshots().get(id).filter(|stored| stored.is_committed()) else {
            return not_found(no_snapshot(id));
        };
        match stored.places().remove(vm) {
            Some(host) => Ok(host),
            None => not_found(format!(
                "snapshot {id} holds no VM {vm}; `unasnap snapshot show {id}` shows whom it holds"
            )),
        }
    }

    /// The deployments for which nothing else may begin meanwhile.
    pub(super) fn may_begin(&self, task: &Task, hosts: &BTreeSet<Name>) -> Checked<BTreeSet<Name>> {
        let Some(vm) = task.vm() else { return Ok(BTreeSet::new()) };
        if let Some(other) = self.chores.values().find(|chore| chore.task.vm() == Some(vm)) {
            return refuse(format!(
                "`{}` of {vm} is under way; try again when it has ended",
                other.task.label()
            ));
        }
        let known = self.journal.vms().get(vm);
        let deployments: BTreeSet<Name> = match (task, task.clone_wanted()) {
            (Task::Create(new), _) => [new.deployment.clone()].into(),
            // The disks are frozen: whatever the other VM does now is its own affair.
            (Task::Replicate(replica), _) if replica.source.is_some() => {
                self.home(task).into_iter().collect()
            }
            (_, Some(clone)) => {
                clone.deployment.iter().cloned().chain(self.journal.deployment_of(&clone.of)).collect()
            }
            _ => self.journal.deployment_of(vm).into_iter().collect(),
        };
        for deployment in &deployments {
            if let Some(what) = self.open_beside(task, deployment) {
                return refuse(format!(
                    "{what} of deployment {deployment} is under way; try again when it has ended"
                ));
            }
            if let Some(id) = self.paused_in(deployment) {
                return refuse(format!(
                    "deployment {deployment} is paused in {id}; `unasnap resume {deployment}` first"
                ));
            }
        }
        match task {
            Task::Delete { lose_snapshots, .. } => self.may_lose(vm, *lose_snapshots)?,
            Task::Create(_) | Task::Clone(_) | Task::Replicate(_) => {
                // The host knows whether it is the very same VM: a command that is repeated goes well.
                if let Some(other) = known.filter(|known| !hosts.contains(&known.host)) {
                    return refuse(format!("host {} has VM {vm}; choose another name", other.host));
                }
                if known.is_none() && self.journal.homes().contains_key(vm) {
                    return refuse(format!(
                        "an earlier instance of {vm} may run on a host that is away: choose another name, or start the host agent there"
                    ));
                }
                self.are_free(vm, task)?;
            }
            _ => {}
        }
        Ok(deployments)
    }

    /// The deployment that a new VM belongs to.
    pub(super) fn home(&self, task: &Task) -> Option<Name> {
        if let Task::Create(new) = task {
            return Some(new.deployment.clone());
        }
        let clone = task.clone_wanted()?;
        clone.deployment.clone().or_else(|| self.journal.deployment_of(&clone.of))
    }

    /// Members know each other by their addresses.
    fn are_free(&self, vm: &Name, task: &Task) -> Checked<()> {
        let home = self.home(task);
        let wanted = addresses(task);
        let others = self
            .journal
            .vms()
            .iter()
            .filter(|(name, known)| *name != vm && Some(&known.deployment) == home.as_ref());
        let known =
            others.flat_map(|(name, known)| known.addresses.iter().map(move |address| (name, *address)));
        let being_made = self.chores.values().filter(|chore| self.home(&chore.task) == home);
        let being_made = being_made.filter_map(|chore| Some((chore.task.vm()?, addresses(&chore.task))));
        let being_made = being_made
            .flat_map(|(name, addresses)| addresses.into_iter().map(move |address| (name, address)));
        match known.chain(being_made).find(|(_, address)| wanted.contains(address)) {
            Some((name, address)) => {
                refuse(format!("{name} has the address {address}; give {vm} another one"))
            }
            None => Ok(()),
        }
    }

    /// A snapshot is restored as a whole or not at all.
    fn may_lose(&self, vm: &Name, confirmed: bool) -> Checked<()> {
        let stored = self.journal.snapshots().values();
        let holds = stored.filter(|stored| stored.is_committed() && stored.places().contains_key(vm));
        let ids: Vec<_> = holds.map(|stored| stored.record.id.as_str()).collect();
        if ids.is_empty() || confirmed {
            return Ok(());
        }
        refuse(format!(
            "snapshots hold {vm}, and cannot be restored without it: {}; delete them first, or use --lose-snapshots",
            ids.join(", ")
        ))
    }

    /// What a task has to wait for, in words.
    fn open_beside(&self, task: &Task, deployment: &Name) -> Option<String> {
        let beside = |chore: &Chore| {
            let tasks = (task, &chore.task);
            matches!(tasks, (Task::Create(_), Task::Create(_)) | (Task::Delete { .. }, Task::Delete { .. }))
        };
        let chores = self.chores.values().filter(|chore| chore.deployments.contains(deployment));
        let hinders = || chores.filter(|chore| !beside(chore)).find_map(Chore::words);
        self.open_but_chores(deployment).or_else(hinders)
    }
}

/// By which other members will know a VM that is to be made.
fn addresses(task: &Task) -> Vec<Prefix> {
    if let Task::Create(new) = task {
        return new.nics.iter().flat_map(|nic| nic.addresses.clone()).collect();
    }
    task.clone_wanted().into_iter().flat_map(|clone| &clone.addresses).flatten().copied().collect()
}

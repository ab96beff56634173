//! `unasnap vm replicate`: a VM with the disks that one of another host has.
//!
//! ```text
//! the VM's host: Freeze -> Frozen {digest} -> the other host: Replicate {where the disks are, digest} -> Made
//! ```
//!
//! Nothing else may begin for the deployments concerned from the first order to the last answer.

use std::collections::BTreeSet;

use unasnap_protocol::control::Source;
use unasnap_protocol::household::{HostReport, HouseholdReport, HouseholdRequest, Outcome, Replica, Task};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::Reply;

use super::chores::{Checked, Then, refuse};
use super::journal::Result;
use super::owner::{Owner, Watchers, tell};

impl Owner {
    /// What comes first, where, and what then. `hosts` is where the replica is to be.
    pub(super) fn freeze_first(
        &self,
        replica: &Replica,
        hosts: &BTreeSet<Name>,
    ) -> Checked<(Task, BTreeSet<Name>, Then)> {
        let of = &replica.clone.of;
        let task = Task::Freeze(of.clone());
        let at = self.hosts_meant(&HouseholdRequest { host: None, task: task.clone() })?;
        let (Some(from), Some(to)) = (at.first(), hosts.first()) else {
            return refuse(format!("`{}` needs a host", task.label()));
        };
        if from == to {
            return refuse(format!("{of} lives on host {from}: `unasnap vm clone` makes another one there"));
        }
        self.frozen_at(from, [0; 32])?;
        let then = Then::Replicate(Box::new(replica.clone()), to.clone());
        Ok((task, at, then))
    }

    fn frozen_at(&self, host: &Name, digest: [u8; 32]) -> Checked<Source> {
        let Some(address) = self.registry.transfer_address(host) else {
            return refuse(self.gives_nothing(host));
        };
        Ok(Source { host: host.clone(), address: address.to_string(), digest })
    }

    /// The VM's host has frozen its disks, or not.
    pub(super) fn on_frozen(
        &mut self,
        replica: Replica,
        to: Name,
        reports: Vec<HostReport>,
        watchers: Watchers,
    ) -> Result<()> {
        let source = match reports.first().map(|report| (&report.host, &report.outcome)) {
            Some((host, Ok(Outcome::Frozen(digest)))) => self.frozen_at(host, *digest),
            _ => {
                tell(&watchers, &Reply::Household(HouseholdReport { hosts: reports }));
                return Ok(());
            }
        };
        let checked = source.and_then(|source| {
            let task = Task::Replicate(Box::new(Replica { source: Some(source), ..replica }));
            let request = HouseholdRequest { host: Some(to), task };
            let hosts = self.hosts_meant(&request)?;
            let deployments = self.may_begin(&request.task, &hosts)?;
            Ok((request.task, hosts, deployments))
        });
        match checked {
            Ok((task, hosts, deployments)) => {
                self.open_chore_at(task, hosts, deployments, Then::Answer, watchers)
            }
            Err(error) => {
                tell(&watchers, &Reply::Failed(error));
                Ok(())
            }
        }
    }
}

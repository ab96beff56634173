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
use unasnap_protocol::operator::{Reply, RequestError, RequestErrorKind};

use super::chores::Then;
use super::journal::Result;
use super::owner::{Owner, Watchers, tell};
use super::registry::not_connected;

type Checked<T> = std::result::Result<T, RequestError>;

fn refused(text: String) -> RequestError {
    RequestError::new(RequestErrorKind::Refused, text)
}

impl Owner {
    /// What comes first, where, and what then. `hosts` is where the replica is to be.
    pub(super) fn freeze_first(
        &self,
        replica: &Replica,
        hosts: &BTreeSet<Name>,
    ) -> Checked<(Task, BTreeSet<Name>, Then)> {
        let of = &replica.clone.of;
        let Some(known) = self.journal.vms().get(of) else {
            let text = format!("no VM is called {of}; `unasnap vm list` shows all of them");
            return Err(RequestError::new(RequestErrorKind::NotFound, text));
        };
        let Some(to) = hosts.first().filter(|to| **to != known.host) else {
            let text =
                format!("{of} lives on host {}: `unasnap vm clone` makes another one there", known.host);
            return Err(refused(text));
        };
        if self.registry.host(&known.host).is_none() {
            return Err(refused(not_connected(&known.host)));
        }
        self.frozen_at(&known.host, [0; 32])?;
        let then = Then::Replicate(Box::new(replica.clone()), to.clone());
        Ok((Task::Freeze(of.clone()), [known.host.clone()].into(), then))
    }

    fn frozen_at(&self, host: &Name, digest: [u8; 32]) -> Checked<Source> {
        let address = self.registry.transfer_address(host).ok_or_else(|| {
            refused(format!("{host} gives no files to other hosts: add `[transfer] listen` to its host.toml"))
        })?;
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

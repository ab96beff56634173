//! `unasnap vm replicate`: what the disks of a stopped VM hold goes to another host, which makes a VM of it.

use std::sync::Arc;

use unasnap_protocol::control::FailureKind;
use unasnap_protocol::household::{Outcome, Replica};
use unasnap_protocol::name::Name;

use super::Result;
use super::plan::of_replica;
use crate::hypervisor::Ground;
use crate::registry::{Registry, internal, no_vm, refused};
use crate::transfer::conversation::failure;
use crate::transfer::frozen::Shelf;
use crate::transfer::receiving::Receiver;
use crate::transfer::replicating::is_same;
use crate::transfer::telling::Far;
use crate::works::chain;

/// On the host that has the VM: other hosts may fetch what its disks hold now.
pub(super) async fn freeze(registry: &Registry, shelf: &Arc<Shelf>, vm: &Name) -> Result<Outcome> {
    let Some(member) = registry.members().get(vm) else {
        return Err(no_vm(vm));
    };
    let works = member.works();
    let disks = works.freeze().await.map_err(|failure| refused(failure.text))?;
    let (shelf, definition) = (Arc::clone(shelf), works.definition().clone());
    let put = tokio::task::spawn_blocking(move || shelf.put(&definition, disks)).await;
    let put = put.map_err(|error| internal(error.to_string()))?;
    put.map(Outcome::Frozen).map_err(|error| internal(chain(&error)))
}

/// On the host that is to have the replica.
pub(super) async fn replicate(
    registry: &Registry,
    receiver: &Receiver,
    replica: &Replica,
    incarnation: u64,
    tell: impl Fn(Far),
) -> Result<Outcome> {
    let (clone, members) = (&replica.clone, registry.members());
    let is_known = |like: &_| {
        let wanted = of_replica(like, clone, members);
        let wanted = wanted.map_err(|error| failure(FailureKind::BadRequest, error.text))?;
        match members.get(&clone.name) {
            Some(known) if is_same(known.works().definition(), &wanted) => Ok(true),
            Some(_) => {
                let text = format!("this host has another VM {}; choose another name", clone.name);
                Err(failure(FailureKind::BadRequest, text))
            }
            None => Ok(false),
        }
    };
    let come = receiver.replicate(replica, is_known, tell).await.map_err(|failure| refused(failure.text))?;
    let (member, changed) = match &come {
        Some(arrived) => {
            let mut definition = of_replica(arrived.definition(), clone, members)?;
            if let Some(machine) = &mut definition.machine {
                let own = receiver.images.own_machine(&clone.name);
                *machine = own.map_err(|error| internal(error.to_string()))?;
            }
            let made = registry.make(definition, Ground::Frozen(arrived.saved()), incarnation).await;
            if let Err(error) = arrived.discard() {
                tracing::warn!(vm = %clone.name, "what came of its disks is left: {}", chain(&error));
            }
            made?
        }
        None => match members.get(&clone.name) {
            Some(member) => (member, false),
            None => return Err(no_vm(&clone.name)),
        },
    };
    Ok(Outcome::Made { report: Box::new(member.standing().report), changed })
}

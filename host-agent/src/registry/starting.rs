//! The VMs that were defined when the host agent started.

use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::task::JoinSet;
use unasnap_protocol::name::Name;

use crate::definition::VmDefinition;
use crate::hypervisor::{Hypervisor, Vm};
use crate::store::Store;
use crate::works::Origin;

/// The instance of a VM, if it has one.
pub(super) type Found = Option<(Box<dyn Vm>, Origin)>;

/// A VM and who runs it.
type Defined = (VmDefinition, Arc<dyn Hypervisor>);

/// All VMs at once: a boot takes seconds.
pub(super) async fn find_or_start(
    defined: Vec<Defined>,
    store: &Store,
) -> Vec<(VmDefinition, Arc<dyn Hypervisor>, Found)> {
    let mut starting = JoinSet::new();
    for (definition, hypervisor) in defined {
        let restorable = has_committed(store, &definition.name);
        starting.spawn(async move {
            let found = match one(&definition, hypervisor.as_ref(), restorable).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::error!(vm = %definition.name, "{error:#}");
                    None
                }
            };
            (definition, hypervisor, found)
        });
    }
    starting.join_all().await
}

/// A VM that lives is adopted; one that never was snapshotted is booted; one that died after a
/// snapshot waits for the restore of its deployment, which would only have to destroy it again.
async fn one(definition: &VmDefinition, hypervisor: &dyn Hypervisor, restorable: bool) -> Result<Found> {
    let name = &definition.name;
    if let Some(vm) = hypervisor.adopt(definition).await.context("it cannot be adopted")? {
        tracing::info!(vm = %name, incarnation = vm.incarnation(), "adopted");
        return Ok(Some((vm, Origin::Adopted)));
    }
    if restorable {
        tracing::warn!(vm = %name, "it does not run and has a snapshot: `unasnap restore` brings its deployment back");
        return Ok(None);
    }
    let vm = hypervisor.start(definition, 0).await.context("it cannot be started")?;
    tracing::info!(vm = %name, incarnation = vm.incarnation(), "started");
    Ok(Some((vm, Origin::Started)))
}

fn has_committed(store: &Store, vm: &Name) -> bool {
    let entries = store.list().unwrap_or_default();
    entries.iter().any(|entry| entry.committed && entry.vms.contains(vm))
}

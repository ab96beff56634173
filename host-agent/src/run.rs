//! The whole host agent: opens what it needs, finds or starts its VMs, then serves until it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use unasnap_channel::{Peer, Trust};
use unasnap_protocol::name::Name;

use crate::colouring::host::{KernelTaps, Taps};
use crate::config::Config;
use crate::definition::{VmDefinition, load_folder};
use crate::fence;
use crate::hypervisor::qemu::Qemu;
use crate::hypervisor::virtualbox::VirtualBox;
use crate::hypervisor::{Hypervisor, Vm};
use crate::link::Link;
use crate::member::{self, Members};
use crate::store::Store;
use crate::switches::Switches;
use crate::together::Together;
use crate::works::{Origin, Works};

/// Runs until SIGTERM or SIGINT; the VMs go on.
///
/// # Errors
/// Configuration, certificates, QEMU or the state folder are not usable.
pub async fn run(config: Config) -> Result<()> {
    let trust = Trust::follow(config.tls.clone())?;
    if *trust.identity().peer() != Peer::Host(config.name.clone()) {
        anyhow::bail!(
            "{} is not the certificate of host {}: issue one with `unasnap pki add-host {}`",
            config.tls.cert.display(),
            config.name,
            config.name
        );
    }
    let store = Store::open(&config.state_dir, config.limits())?;
    store.remove_partial()?;
    let (definitions, problems) = load_folder(&config.vm_dir)?;
    for problem in problems {
        tracing::error!("a VM is left out: {:#}", anyhow::Error::from(problem));
    }
    let drivers = Drivers::open(&config, &definitions).await?;
    let taps = KernelTaps::new(&config.state_dir);
    let names: Vec<Name> = definitions.iter().map(|definition| definition.name.clone()).collect();
    if let Err(error) = taps.forget_all_but(&names) {
        tracing::warn!("programs of VMs that are no longer defined are left: {error:#}");
    }
    let taps: Arc<dyn Taps> = Arc::new(taps);
    let (answer_sender, answers) = mpsc::unbounded_channel();
    let (together, standing) = Together::new();
    let mut members = Members::new();
    for (definition, found) in find_or_start(definitions, &drivers, &store).await {
        let (name, switches) = (definition.name.clone(), Switches::from_environment(&definition.name)?);
        let Some(hypervisor) = drivers.of(&definition) else { continue };
        let works = Works::new(definition, hypervisor, store.clone(), taps.clone(), switches);
        let works = works.pausing_with(together.clone());
        works.take_charge(found).await;
        members.insert(name, member::start(Arc::new(works), answer_sender.clone()).await);
    }
    let after = config.self_fence_s.map(|seconds| Duration::from_secs(seconds.get()));
    let fence = after.map(|after| fence::start(after, members.clone()));
    let link = Link { config, trust, members, fence, store, answers, together, standing };
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be waited for")?;
    tokio::select! {
        () = link.run() => {}
        _ = terminate.recv() => tracing::info!("told to stop; the VMs go on"),
        _ = tokio::signal::ctrl_c() => tracing::info!("interrupted; the VMs go on"),
    }
    Ok(())
}

/// The drivers that the VMs of this host need.
struct Drivers {
    qemu: Option<Arc<dyn Hypervisor>>,
    virtualbox: Option<Arc<dyn Hypervisor>>,
}

impl Drivers {
    async fn open(config: &Config, definitions: &[VmDefinition]) -> Result<Self> {
        let mut drivers = Self { qemu: None, virtualbox: None };
        if definitions.iter().any(|vm| vm.machine.is_some()) {
            drivers.virtualbox = Some(Arc::new(VirtualBox::open(config.virtualbox.clone()).await?));
        }
        // Also where no VM is defined yet: what is wrong with the host is better known now.
        if drivers.virtualbox.is_none() || definitions.iter().any(|vm| vm.machine.is_none()) {
            drivers.qemu = Some(Arc::new(Qemu::open(config.qemu.clone()).await?));
        }
        for driver in drivers.qemu.iter().chain(&drivers.virtualbox) {
            let facts = driver.about();
            let (accel, ram_way) = (facts.accel.label(), facts.ram_way.label());
            tracing::info!(kind = facts.kind, version = facts.version, accel, ram_way, "hypervisor");
        }
        Ok(drivers)
    }

    /// There is one for every VM that was defined when they were opened.
    fn of(&self, vm: &VmDefinition) -> Option<Arc<dyn Hypervisor>> {
        if vm.machine.is_some() { self.virtualbox.clone() } else { self.qemu.clone() }
    }
}

type Found = Option<(Box<dyn Vm>, Origin)>;

/// All VMs at once: a boot takes seconds.
async fn find_or_start(
    definitions: Vec<VmDefinition>,
    drivers: &Drivers,
    store: &Store,
) -> Vec<(VmDefinition, Found)> {
    let mut starting = JoinSet::new();
    for definition in definitions {
        let Some(hypervisor) = drivers.of(&definition) else { continue };
        let restorable = has_committed(store, &definition.name);
        starting.spawn(async move {
            let found = match one(&definition, hypervisor.as_ref(), restorable).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::error!(vm = %definition.name, "{error:#}");
                    None
                }
            };
            (definition, found)
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

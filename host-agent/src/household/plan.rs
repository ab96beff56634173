//! Definitions of VMs that are to be made.

use std::collections::BTreeSet;

use unasnap_protocol::control;
use unasnap_protocol::guest::Prefix;
use unasnap_protocol::household::{NewVm, Runner, VmClone};
use unasnap_protocol::name::Name;

use super::Result;
use crate::bases::{Bases, Known};
use crate::definition::{Colouring, Disk, ImageFormat, Nic, VmDefinition};
use crate::hypervisor::virtualbox::own_machine;
use crate::members::Members;
use crate::registry::{no_vm, refused};
use crate::store::manifest::BaseImage;

/// A VM that is to be made.
#[derive(Debug)]
pub(super) struct Plan {
    pub definition: VmDefinition,
    /// Whose disks it is to have; without it, its images as they are.
    pub like: Option<VmDefinition>,
    /// What is known of its images.
    pub known: Vec<BaseImage>,
}

/// A VM on a base.
pub(super) fn of_new(new: &NewVm, base: &Known, bases: &Bases, members: &Members) -> Result<Plan> {
    fits(new, base)?;
    let is_qemus = new.hypervisor == Runner::Qemu;
    let file = |path: &Option<String>| path.as_ref().map(|path| bases.resolve(path)).transpose();
    let disk = || Disk { image: base.image.path.clone(), format: base.format };
    let mut definition = VmDefinition {
        name: new.name.clone(),
        deployment: new.deployment.clone(),
        memory_mb: new.memory_mb,
        cpus: new.cpus,
        machine: (!is_qemus).then(|| own_machine(bases.state_dir(), &new.name)),
        kernel: file(&new.kernel)?,
        initrd: file(&new.initrd)?,
        append: new.append.clone(),
        colouring: match new.colouring {
            None => Colouring::Auto,
            Some(control::Colouring::Host) => Colouring::Host,
            Some(control::Colouring::Memory) => Colouring::Memory,
            Some(control::Colouring::Guest) => Colouring::Guest,
            Some(control::Colouring::None) => Colouring::None,
        },
        // The host's administrator allows that, by hand.
        guest_access: Vec::new(),
        // A machine of VirtualBox knows its own.
        disks: if is_qemus { vec![disk()] } else { Vec::new() },
        nics: Vec::new(),
    };
    for nic in &new.nics {
        let mac = nic.mac.clone().unwrap_or_default();
        definition.nics.push(Nic { bridge: nic.bridge.clone(), mac, addresses: words(&nic.addresses) });
    }
    derive_macs(&mut definition, members);
    Ok(Plan { definition, like: None, known: vec![base.image.clone()] })
}

/// Refuses what a hypervisor does not make a VM of.
fn fits(new: &NewVm, base: &Known) -> Result<()> {
    let (name, format) = (&new.base, base.format.label());
    let is_vdi = base.format == ImageFormat::Vdi;
    match new.hypervisor {
        Runner::Qemu if is_vdi => Err(refused(format!(
            "base {name} is a vdi image, and VMs of QEMU are made of qcow2 and raw ones: convert it (`qemu-img convert -O qcow2`) and \
             preload that, or use --hypervisor virtualbox"
        ))),
        Runner::Virtualbox if !is_vdi => Err(refused(format!(
            "base {name} is a {format} image, and VMs of VirtualBox are made of vdi ones: convert it (`qemu-img convert -O vdi`) and \
             preload that, or use --hypervisor qemu"
        ))),
        Runner::Virtualbox if new.kernel.is_some() || new.initrd.is_some() || !new.append.is_empty() => {
            let text = "VirtualBox boots no kernel of the host, only the disk: leave --kernel, --initrd and --append out";
            Err(refused(text.to_owned()))
        }
        _ => Ok(()),
    }
}

/// A VM with the disks of another one.
pub(super) fn of_clone(clone: &VmClone, bases: &Bases, members: &Members) -> Result<Plan> {
    let Some(other) = members.get(&clone.of) else {
        return Err(no_vm(&clone.of));
    };
    let like = other.works().definition().clone();
    let own = |name| own_machine(bases.state_dir(), name);
    if like.machine.as_ref().is_some_and(|machine| *machine != own(&clone.of)) {
        return Err(refused(format!(
            "VM {} has a machine of VirtualBox that was made by hand: clone it with VirtualBox's own means",
            clone.of
        )));
    }
    let state = other.standing().report.state;
    if state != control::VmState::Stopped {
        return Err(refused(format!("VM {} is not stopped: a clone has what its disks hold then", clone.of)));
    }
    let mut definition = differing(&like, clone, members)?;
    definition.machine = like.machine.as_ref().map(|_| own(&clone.name));
    Ok(Plan { definition, like: Some(like), known: Vec::new() })
}

/// A VM like another one, with what is different about a clone.
fn differing(like: &VmDefinition, clone: &VmClone, members: &Members) -> Result<VmDefinition> {
    let with_addresses = like.nics.iter().filter(|nic| !nic.addresses.is_empty()).count();
    if clone.addresses.len() != with_addresses {
        let text = format!(
            "VM {} has {with_addresses} network cards with addresses, and no two VMs have the same: give {} as many --addresses",
            clone.of, clone.name
        );
        return Err(refused(text));
    }
    let mut given = clone.addresses.iter();
    let mut definition = VmDefinition { name: clone.name.clone(), ..like.clone() };
    if let Some(deployment) = &clone.deployment {
        definition.deployment = deployment.clone();
    }
    for nic in &mut definition.nics {
        nic.mac.clear();
        if !nic.addresses.is_empty() {
            nic.addresses = given.next().map(|addresses| words(addresses)).unwrap_or_default();
        }
    }
    derive_macs(&mut definition, members);
    Ok(definition)
}

/// A VM like one of another host.
pub(super) fn of_replica(like: &VmDefinition, clone: &VmClone, members: &Members) -> Result<VmDefinition> {
    // What may be done in a guest this host's administrator says, by hand.
    differing(&VmDefinition { guest_access: Vec::new(), ..like.clone() }, clone, members)
}

fn words(addresses: &[Prefix]) -> Vec<String> {
    addresses.iter().map(Prefix::to_string).collect()
}

/// Gives every card without a hardware address one that no other VM of this host has, by the VM's name: the same one when the
/// same VM is asked for again.
fn derive_macs(vm: &mut VmDefinition, members: &Members) {
    let others = members.list();
    let others =
        others.iter().map(|member| member.works().definition()).filter(|other| other.name != vm.name);
    let mut taken: BTreeSet<String> =
        others.flat_map(|other| &other.nics).chain(&vm.nics).map(|nic| nic.mac.to_lowercase()).collect();
    for (index, nic) in vm.nics.iter_mut().enumerate().filter(|(_, nic)| nic.mac.is_empty()) {
        let free = (0_u32..).map(|attempt| mac(&vm.name, index, attempt)).find(|mac| !taken.contains(mac));
        nic.mac = free.unwrap_or_default();
        taken.insert(nic.mac.clone());
    }
}

/// In the range that QEMU's VMs have by themselves.
fn mac(vm: &Name, card: usize, attempt: u32) -> String {
    let digest = blake3::hash(format!("{vm}/{card}/{attempt}").as_bytes());
    let [one, two, three, ..] = digest.as_bytes();
    format!("52:54:00:{one:02x}:{two:02x}:{three:02x}")
}

//! The command line. Every way of taking RAM restores with the same one, so there is only this one.

use std::path::Path;

use serde_json::{Value, json};

use super::instance::{Chain, VmFolder};
use crate::definition::{ImageFormat, VmDefinition};
use crate::store::manifest::{Accel, Facts};

/// Program that is run.
pub(super) const BINARY: &str = "qemu-system-x86_64";
/// Name of the guest's virtio-serial port.
const GUEST_PORT: &str = "org.unasnap.guest.0";
/// Id of the device that has this port.
const SERIAL_BUS: &str = "serial0";

/// How a new process begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin<'a> {
    /// Boot.
    Boot,
    /// Wait, paused, for `migrate-incoming` of RAM and devices.
    Incoming,
    /// Wait, paused, for `migrate-incoming` of the devices; RAM is this file, of which the guest changes its own copy.
    IncomingAbove(&'a Path),
}

/// Id of disk `index`'s device; its node of the operator's image has the same name plus `-base`.
pub(super) fn disk_id(index: usize) -> String {
    format!("disk{index}")
}

/// Id of network card `index`.
fn nic_id(index: usize) -> String {
    format!("nic{index}")
}

/// Ids of all devices of a VM that have one.
pub(super) fn device_ids(disks: usize, nics: usize) -> impl Iterator<Item = String> {
    let serial = std::iter::once(SERIAL_BUS.to_owned());
    serial.chain((0..disks).map(disk_id)).chain((0..nics).map(nic_id))
}

/// Arguments common to a VM and to the probe of what QEMU can do with one.
pub(super) fn machine(facts: &Facts, memory_mb: u64, begin: Begin<'_>) -> Vec<String> {
    let accel = match facts.accel {
        Accel::Kvm => "kvm",
        Accel::Tcg | Accel::VirtualBox => "tcg,thread=multi",
    };
    let cpu = if facts.accel == Accel::Kvm { "host" } else { "max" };
    // Both can be found, and their pages written, from outside; a private file is read where the guest touches it.
    let memory = match begin {
        Begin::Boot | Begin::Incoming => "memory-backend-memfd,share=on".to_owned(),
        Begin::IncomingAbove(ram) => {
            format!("memory-backend-file,mem-path={},share=off,readonly=on,rom=off", option_value(ram))
        }
    };
    // Without `suppress-vmdesc` and `send-configuration`, device state that was saved alone cannot be loaded.
    let machine = format!("{},memory-backend=ram0,suppress-vmdesc=on,vmport=off", facts.machine);
    let text = format!(
        "-nodefaults -no-user-config -display none -no-reboot -msg timestamp=on \
         -machine {machine} -global migration.send-configuration=off -accel {accel} -cpu {cpu} -m {memory_mb}M"
    );
    let mut arguments: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    arguments.extend(["-object".to_owned(), format!("{memory},id=ram0,size={memory_mb}M")]);
    arguments
}

/// All arguments of a VM.
pub(super) fn arguments(
    vm: &VmDefinition,
    facts: &Facts,
    folder: &VmFolder,
    chains: &[Chain],
    taps: &[String],
    begin: Begin<'_>,
) -> Vec<String> {
    let mut arguments = machine(facts, vm.memory_mb, begin);
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    add("-name", format!("{},debug-threads=on", vm.name));
    add("-smp", vm.cpus.to_string());
    // Denying `spawn` and `elevateprivileges` as well would forbid QEMU to daemonize.
    add("-sandbox", "on,obsolete=deny,resourcecontrol=deny".to_owned());
    add("-chardev", format!("file,id=console,append=on,path={}", option_value(&folder.console)));
    add("-serial", "chardev:console".to_owned());
    add("-device", format!("virtio-serial-pci,id={SERIAL_BUS},max_ports=2"));
    add("-device", format!("virtserialport,bus={SERIAL_BUS}.0,nr=1,chardev=guest,name={GUEST_PORT}"));
    for (index, chain) in chains.iter().enumerate() {
        let format = vm.disks.get(index).map(|disk| disk.format).unwrap_or_default();
        for node in blockdevs(index, chain, format, folder) {
            add("-blockdev", node.to_string());
        }
        let (id, node) = (disk_id(index), chain.active().node());
        add("-device", format!("virtio-blk-pci,id={id},drive={node}"));
    }
    for (index, (nic, tap)) in vm.nics.iter().zip(taps).enumerate() {
        add("-netdev", format!("tap,id=net{index},ifname={tap},script=no,downscript=no,vhost=off"));
        let id = nic_id(index);
        add("-device", format!("virtio-net-pci,id={id},netdev=net{index},mac={},romfile=", nic.mac));
    }
    if let Some(kernel) = &vm.kernel {
        add("-kernel", kernel.display().to_string());
        add("-append", vm.append.clone());
    }
    if let Some(initrd) = &vm.initrd {
        add("-initrd", initrd.display().to_string());
    }
    if begin != Begin::Boot {
        arguments.extend(["-S", "-incoming", "defer"].map(str::to_owned));
    }
    arguments
}

/// The nodes of a disk, from the operator's image upwards. Backing files are named here and not read from the
/// headers, so that the image may lie elsewhere on the host where a snapshot is restored.
fn blockdevs(index: usize, chain: &Chain, format: ImageFormat, folder: &VmFolder) -> Vec<Value> {
    let base = format!("{}-base", disk_id(index));
    let mut image = node(&base, &chain.base.path.to_string_lossy(), &Value::Null, true);
    image["driver"] = json!(format.label());
    let mut nodes = vec![image];
    let mut backing = base;
    for (position, layer) in chain.layers.iter().enumerate() {
        let frozen = position + 1 < chain.layers.len();
        let path = folder.disks.join(&layer.file);
        nodes.push(node(layer.node(), &path.to_string_lossy(), &json!(backing), frozen));
        layer.node().clone_into(&mut backing);
    }
    nodes
}

/// A qcow2 node; `backing` is a node's name or null.
pub(super) fn node(name: &str, path: &str, backing: &Value, read_only: bool) -> Value {
    let file = json!({"driver": "file", "filename": path, "read-only": read_only});
    let mut node = json!({"driver": "qcow2", "node-name": name, "read-only": read_only, "file": file});
    // A base image may have a backing file of its own, which only its header knows.
    if !(backing.is_null() && read_only) {
        node["backing"] = backing.clone();
    }
    node
}

/// A path as the value of a QEMU option, where a comma would end it.
pub(super) fn option_value(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

//! Disks of VMs that come, and the end of those that go.
//!
//! A clone copies no data. The layer that the other VM wrote last is frozen, as a cut would do it, and both get a new empty
//! layer above it; frozen layers are never written, and shared by hard links, as snapshots share them. That costs the same
//! however much the other VM has written, on every file system, and neither can see what the other one writes. The price
//! is one layer more below both, which merges as layers of cuts do.

use std::path::PathBuf;

use unasnap_protocol::name::Name;

use super::disks;
use super::instance::{Chain, Instance, VmFolder};
use super::{Qemu, tap};
use crate::definition::{Disk, ImageFormat, VmDefinition};
use crate::hypervisor::{FrozenDisks, Ground, HypervisorError, SavedVm, base_image};
use crate::store::files;
use crate::store::manifest::{FileRole, Saved, SavedFile};

impl Qemu {
    /// See [`Hypervisor::make`](crate::hypervisor::Hypervisor::make).
    pub(super) async fn make_vm(
        &self,
        vm: &VmDefinition,
        ground: Ground<'_>,
        incarnation: u64,
    ) -> Result<(), HypervisorError> {
        self.forget_vm(&vm.name).await?;
        let folder = self.folder(&vm.name);
        folder.create()?;
        let chains = match ground {
            Ground::Bases(known) => {
                let mut chains = first_layers(vm, &folder).await?;
                for chain in &mut chains {
                    if let Some(base) = known.iter().find(|base| base.path == chain.base.path) {
                        chain.base = base.clone();
                    }
                }
                chains
            }
            Ground::DisksOf(other) => match self.freeze(other).await? {
                Some(theirs) => above(&theirs, vm, &self.folder(&other.name), &folder).await?,
                None => first_layers(vm, &folder).await?,
            },
            Ground::Frozen(SavedVm { folder: saved, manifest, .. }) => {
                disks::from_frozen(manifest, saved, &vm.disks, &folder).await?
            }
        };
        for chain in &chains {
            sync_layer(chain, &folder)?;
        }
        files::sync_folder(&folder.disks).map_err(HypervisorError::file("flush", &folder.disks))?;
        let instance = Instance {
            process: None,
            incarnation,
            facts: self.facts.clone(),
            memory_bytes: vm.memory_bytes(),
            taps: Vec::new(),
            disks: chains,
            awaits_resume: false,
            fenced: false,
            paused: false,
            untouched: true,
        };
        instance.write(&folder)?;
        let vms = self.config.state_dir.join("vms");
        files::sync_folder(&vms).map_err(HypervisorError::file("flush", &vms))
    }

    /// See [`Hypervisor::forget`](crate::hypervisor::Hypervisor::forget).
    pub(super) async fn forget_vm(&self, vm: &Name) -> Result<(), HypervisorError> {
        let folder = self.folder(vm);
        if let Some(instance) = Instance::read(&folder)? {
            if let Some(process) = instance.living(&folder) {
                let why = format!("it runs as process {}: destroy that first", process.pid);
                return Err(HypervisorError::WrongState { vm: vm.to_string(), wanted: "delete", why });
            }
            tap::remove_all(&instance.taps).await?;
        }
        files::remove_folder(&folder.root).map_err(HypervisorError::file("delete", &folder.root))
    }

    /// See [`Hypervisor::disk_files`](crate::hypervisor::Hypervisor::disk_files).
    pub(super) fn layers_of(&self, vm: &VmDefinition) -> Result<Vec<Vec<PathBuf>>, HypervisorError> {
        let folder = self.folder(&vm.name);
        let known = Instance::read(&folder)?.map(|instance| instance.disks).unwrap_or_default();
        let disks = vm.disks.iter().enumerate().map(|(index, disk)| {
            let chain = known.get(index).filter(|chain| chain.base.path == disk.image);
            let layers = chain.into_iter().flat_map(|chain| chain.layers.iter().chain(&chain.next));
            let files = layers.map(|layer| folder.disks.join(&layer.file));
            std::iter::once(disk.image.clone()).chain(files).collect()
        });
        Ok(disks.collect())
    }

    /// See [`Hypervisor::freeze`](crate::hypervisor::Hypervisor::freeze).
    pub(super) async fn frozen_disks(&self, vm: &VmDefinition) -> Result<FrozenDisks, HypervisorError> {
        let folder = self.folder(&vm.name);
        let (mut files, mut chains) = (Vec::new(), Vec::new());
        match self.freeze(vm).await? {
            Some(frozen) => chains = frozen,
            None => {
                for disk in &vm.disks {
                    chains.push(Chain {
                        base: base_image::describe(&disk.image)?,
                        layers: Vec::new(),
                        next: None,
                    });
                }
            }
        }
        disks::digest_bases(&mut chains).await?;
        for (index, chain) in chains.iter().enumerate() {
            let frozen = chain.layers.split_last().map_or(&[][..], |(_, frozen)| frozen);
            files.extend(frozen.iter().map(|layer| SavedFile {
                name: layer.file.clone(),
                role: FileRole::DiskLayer(index),
                blake3: layer.blake3.clone(),
            }));
        }
        let bases = chains.into_iter().map(|chain| chain.base).collect();
        Ok(FrozenDisks {
            folder: folder.disks,
            saved: Saved { hypervisor: self.facts.clone(), files, bases },
        })
    }

    /// The disks of a VM that does not run, each with an empty layer on top: all that is below will not be written any more.
    /// `None` for one that has never run: there is nothing but its images.
    async fn freeze(&self, vm: &VmDefinition) -> Result<Option<Vec<Chain>>, HypervisorError> {
        let folder = self.folder(&vm.name);
        let Some(mut last) = self.last_life(vm, "clone")? else { return Ok(None) };
        let fits = |chain: &Chain, disk: &Disk| chain.base.path == disk.image;
        let mut chains = Vec::new();
        for (index, disk) in vm.disks.iter().enumerate() {
            chains.push(match last.disks.get(index).filter(|chain| fits(chain, disk)) {
                Some(chain) if last.untouched => chain.clone(),
                Some(chain) => {
                    let mut chain = disks::after_a_crash(chain.clone(), &folder);
                    let next = chain.following(index);
                    disks::create_layer(&next, &chain.active().file, ImageFormat::Qcow2, &folder).await?;
                    chain.layers.push(next);
                    sync_layer(&chain, &folder)?;
                    chain
                }
                None => disks::new_chain(index, disk, &folder).await?,
            });
        }
        last.disks.clone_from(&chains);
        last.untouched = true;
        last.write(&folder)?;
        Ok(Some(chains))
    }
}

/// An empty layer above each image.
async fn first_layers(vm: &VmDefinition, folder: &VmFolder) -> Result<Vec<Chain>, HypervisorError> {
    let mut chains = Vec::new();
    for (index, disk) in vm.disks.iter().enumerate() {
        chains.push(disks::new_chain(index, disk, folder).await?);
    }
    Ok(chains)
}

/// The same frozen layers, with active ones of their own.
async fn above(
    theirs: &[Chain],
    vm: &VmDefinition,
    from: &VmFolder,
    folder: &VmFolder,
) -> Result<Vec<Chain>, HypervisorError> {
    let mut chains = Vec::new();
    for (chain, disk) in theirs.iter().zip(&vm.disks) {
        let (active, frozen) = chain.layers.split_last().expect("a chain is never empty");
        for layer in frozen {
            let (old, new) = (from.disks.join(&layer.file), folder.disks.join(&layer.file));
            files::link_or_copy(&old, &new).map_err(HypervisorError::file("link", &old))?;
        }
        let image = || (chain.base.path.to_string_lossy().into_owned(), disk.format);
        let (backing, format) =
            frozen.last().map_or_else(image, |layer| (layer.file.clone(), ImageFormat::Qcow2));
        disks::create_layer(active, &backing, format, folder).await?;
        chains.push(chain.clone());
    }
    Ok(chains)
}

/// The active layer survives a crash of the host.
fn sync_layer(chain: &Chain, folder: &VmFolder) -> Result<(), HypervisorError> {
    let path = folder.disks.join(&chain.active().file);
    files::sync(&path).map_err(HypervisorError::file("flush", &path))
}

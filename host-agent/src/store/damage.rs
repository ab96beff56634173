//! Local snapshots that were found damaged, until they are found whole or come anew from another host.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use unasnap_protocol::name::Name;

use super::manifest::Manifest;
use super::{Store, StoreError, files, remove_folder};

/// Snapshot and VM, and the first file that was not what was saved.
type Found = BTreeMap<(Name, Name), PathBuf>;

/// What the last comparisons have come to. A new agent knows nothing until it compares again.
#[derive(Debug, Default)]
pub(super) struct Damage(Mutex<Found>);

impl Damage {
    fn with<T>(&self, look: impl FnOnce(&mut Found) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Store {
    /// Every byte was compared, or could not be read.
    pub(super) fn note_compared(&self, snapshot: &Name, vm: &Name, compared: &Result<Manifest, StoreError>) {
        let part = (snapshot.clone(), vm.clone());
        match compared {
            Err(StoreError::Damaged { path, .. } | StoreError::File { path, .. }) => {
                self.damage.with(|found| drop(found.insert(part, path.clone())));
            }
            _ => self.damage.with(|found| drop(found.remove(&part))),
        }
    }

    /// Was something wrong with it when it was compared last?
    #[must_use]
    pub fn is_damaged(&self, snapshot: &Name, vm: &Name) -> bool {
        self.damage.with(|found| found.contains_key(&(snapshot.clone(), vm.clone())))
    }

    /// Takes a damaged local snapshot away; what may be whole of it is kept, as if it had come from the host that is asked
    /// for the rest. Nothing is written into its files: VMs that run may have them below their disks.
    ///
    /// # Errors
    /// Something cannot be renamed or deleted.
    pub fn set_aside(&self, snapshot: &Name, vm: &Name, manifest: &Manifest) -> Result<(), StoreError> {
        let (folder, incoming) = (self.vm_folder(snapshot, vm), self.incoming_folder(snapshot, vm));
        let part = (snapshot.clone(), vm.clone());
        let Some(first) = self.damage.with(|found| found.get(&part).cloned()) else { return Ok(()) };
        if folder.is_dir() {
            remove_folder(&incoming)?;
            fs::rename(&folder, &incoming).map_err(StoreError::file("rename", &folder))?;
            let other_length =
                |path: &Path, size: u64| fs::metadata(path).is_ok_and(|meta| meta.len() != size);
            for file in &manifest.files {
                let path = incoming.join(&file.name);
                if folder.join(&file.name) == first || other_length(&path, file.size) {
                    files::remove_if_there(&path).map_err(StoreError::file("delete", &path))?;
                }
            }
            let above = folder.parent().unwrap_or(Path::new("/"));
            files::sync_folder(above).map_err(StoreError::file("flush", above))?;
        }
        self.damage.with(|found| drop(found.remove(&part)));
        Ok(())
    }
}

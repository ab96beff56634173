//! Local snapshots that come from another host.
//!
//! ```text
//! <state_dir>/snapshots/<snapshot>/<vm>.incoming/   what has come so far; kept when the transfer breaks off
//! <state_dir>/snapshots/<snapshot>/<vm>.placed      what of the VM is elsewhere on this host: [`Placed`]
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use unasnap_fault_points::around;
use unasnap_protocol::name::Name;

use super::manifest::{MANIFEST_FILE, Manifest};
use super::{Store, StoreError, files, names_in, remove_folder, verify};
use crate::definition::VmDefinition;

/// Suffix of a folder that is filled from another host.
const INCOMING: &str = ".incoming";
/// Suffix of [`Placed`] beside a local snapshot that came from another host.
const PLACED: &str = ".placed";
/// What has come is kept for so long after its last byte.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);

/// How a VM that was snapshotted on another host is to be on this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placed {
    /// The VM, with its files where they lie here.
    pub definition: VmDefinition,
    /// The images below its disks, in the order of [`Manifest::bases`].
    pub bases: Vec<PathBuf>,
    /// Is the host believed that it came from? VirtualBox obeys the settings of its machine then, whatever they name.
    #[serde(default)]
    pub believed: bool,
}

impl Placed {
    /// As it was where it was snapshotted.
    #[must_use]
    pub fn nowhere_else(manifest: &Manifest) -> Self {
        let bases = manifest.bases.iter().map(|base| base.path.clone()).collect();
        Self { definition: manifest.identity.definition.clone(), bases, believed: true }
    }
}

/// What stands in a file of the name. Earlier versions wrote only the definition, of VMs of QEMU.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Placed(Placed),
    Definition(VmDefinition),
}

impl From<Written> for Placed {
    fn from(written: Written) -> Self {
        match written {
            Written::Placed(placed) => placed,
            Written::Definition(definition) => {
                let bases = definition.disks.iter().map(|disk| disk.image.clone()).collect();
                Self { definition, bases, believed: false }
            }
        }
    }
}

/// A local snapshot whose files are coming.
#[derive(Debug, Clone)]
pub struct Incoming {
    snapshot: Name,
    vm: Name,
    folder: PathBuf,
}

impl Incoming {
    /// Where its files go, under their names in the manifest.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Store {
    /// Makes the folder for files of another host. What came there before stays, unless it belongs to another manifest.
    ///
    /// # Errors
    /// The folder cannot be made, or `manifest` not be written into it.
    pub fn receive(&self, snapshot: &Name, vm: &Name, manifest: &[u8]) -> Result<Incoming, StoreError> {
        let folder = self.incoming_folder(snapshot, vm);
        let path = folder.join(MANIFEST_FILE);
        if fs::read(&path).is_ok_and(|known| known != manifest) {
            remove_folder(&folder)?;
        }
        around("store", "receive", || fs::create_dir_all(&folder))
            .map_err(StoreError::file("create", &folder))?;
        files::write_durably(&path, manifest).map_err(StoreError::file("write", &path))?;
        Ok(Incoming { snapshot: snapshot.clone(), vm: vm.clone(), folder })
    }

    /// Keeps room for what is still to come, until it was accepted or discarded.
    ///
    /// # Errors
    /// As of [`Store::check_space`].
    pub fn promise_incoming(&self, incoming: &Incoming, bytes: u64) -> Result<(), StoreError> {
        self.space.promise(&incoming.folder, bytes)
    }

    /// As [`Self::promise_incoming`], for an image that gathers at this path.
    ///
    /// # Errors
    /// As of [`Store::check_space`].
    pub fn promise_image(&self, gathering: &Path, bytes: u64) -> Result<(), StoreError> {
        self.space.promise(gathering, bytes)
    }

    /// The image has come, or comes no more for now.
    pub fn settle_image(&self, gathering: &Path) {
        self.space.settle(gathering);
    }

    /// The transfer ended or broke off: no more is written there for now.
    pub fn settle_incoming(&self, incoming: &Incoming) {
        self.space.settle(&incoming.folder);
    }

    /// Makes what has come a local snapshot of this host that may be restored. The caller has compared every file with
    /// its digest.
    ///
    /// # Errors
    /// Something cannot be written; what has come is still there then.
    pub fn accept(
        &self,
        incoming: &Incoming,
        manifest: &Manifest,
        placed: &Placed,
    ) -> Result<(), StoreError> {
        let (snapshot, vm, folder) = (&incoming.snapshot, &incoming.vm, &incoming.folder);
        let listed = |name: &String| manifest.files.iter().any(|file| file.name == *name);
        for name in names_in(folder)?.iter().filter(|name| *name != MANIFEST_FILE && !listed(name)) {
            let foreign = folder.join(name);
            files::remove_if_there(&foreign).map_err(StoreError::file("delete", &foreign))?;
        }
        let paths = manifest.files.iter().map(|file| folder.join(&file.name));
        for path in paths.chain([folder.clone()]) {
            files::sync(&path).map_err(StoreError::file("flush", &path))?;
        }
        let path = self.beside(snapshot, vm, PLACED);
        let text = serde_json::to_vec_pretty(placed).map_err(io::Error::from);
        text.and_then(|text| files::write_durably(&path, &text)).map_err(StoreError::file("write", &path))?;
        let target = self.vm_folder(snapshot, vm);
        around("store", "accept", || fs::rename(folder, &target))
            .map_err(StoreError::file("rename", folder))?;
        for folder in target.ancestors().skip(1).take(2) {
            files::sync_folder(folder).map_err(StoreError::file("flush", folder))?;
        }
        self.space.settle(folder);
        self.commit(snapshot)
    }

    /// Throws away what has come.
    ///
    /// # Errors
    /// It cannot be deleted.
    pub fn discard(&self, incoming: &Incoming) -> Result<(), StoreError> {
        self.space.settle(&incoming.folder);
        remove_folder(&incoming.folder)?;
        self.remove_if_empty(incoming.folder.parent())
    }

    /// How the VM of a saved local snapshot is to be on this host: its images may lie elsewhere than where it was taken.
    ///
    /// # Errors
    /// As of [`Store::manifest`].
    pub fn definition(&self, snapshot: &Name, vm: &Name) -> Result<VmDefinition, StoreError> {
        Ok(self.here(&self.manifest(snapshot, vm)?)?.definition)
    }

    /// As [`Self::definition`], with the images below the disks.
    ///
    /// # Errors
    /// What came with it from another host cannot be read.
    pub fn here(&self, manifest: &Manifest) -> Result<Placed, StoreError> {
        Ok(self.placed(manifest)?.unwrap_or_else(|| Placed::nowhere_else(manifest)))
    }

    /// What is elsewhere of a local snapshot that came from another host; `None` when it was taken here.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn placed(&self, manifest: &Manifest) -> Result<Option<Placed>, StoreError> {
        let identity = &manifest.identity;
        let path = self.beside(&identity.snapshot, &identity.definition.name, PLACED);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(StoreError::file("read", &path))?,
        };
        let damaged = |error: serde_json::Error| StoreError::Damaged { path, what: error.to_string() };
        serde_json::from_slice::<Written>(&text).map(|written| Some(written.into())).map_err(damaged)
    }

    /// Text of the manifest of a saved local snapshot, and its digest; `None` when nothing is saved here.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn manifest_text(&self, snapshot: &Name, vm: &Name) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.vm_folder(snapshot, vm).join(MANIFEST_FILE);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some).map_err(StoreError::file("read", &path)),
        }
    }

    /// Reads a manifest that came from elsewhere.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when it is none, or that of another local snapshot.
    pub fn understand(&self, text: &[u8], snapshot: &Name, vm: &Name) -> Result<Manifest, StoreError> {
        let folder = self.incoming_folder(snapshot, vm);
        let manifest = verify::parse_manifest(text, &folder.join(MANIFEST_FILE))?;
        verify::check_identity(&manifest, snapshot, vm, &folder)?;
        Ok(manifest)
    }

    /// For the start of the host agent: deletes what came long ago and was never asked for again.
    ///
    /// # Errors
    /// Something cannot be listed or deleted.
    pub fn remove_old_incoming(&self) -> Result<(), StoreError> {
        for entry in self.list()? {
            let folder = self.root.join(entry.snapshot.as_str());
            for name in names_in(&folder)?.iter().filter(|name| name.ends_with(INCOMING)) {
                if is_old(&folder.join(name), SystemTime::now()) {
                    remove_folder(&folder.join(name))?;
                }
            }
            self.remove_if_empty(Some(&folder))?;
        }
        Ok(())
    }

    /// What lies beside a local snapshot goes with it.
    pub(super) fn remove_beside(&self, snapshot: &Name, vm: &Name) -> Result<(), StoreError> {
        let folder = self.incoming_folder(snapshot, vm);
        self.space.settle(&folder);
        remove_folder(&folder)?;
        let placed = self.beside(snapshot, vm, PLACED);
        files::remove_if_there(&placed).map_err(StoreError::file("delete", &placed))
    }

    pub(super) fn incoming_folder(&self, snapshot: &Name, vm: &Name) -> PathBuf {
        self.beside(snapshot, vm, INCOMING)
    }

    fn beside(&self, snapshot: &Name, vm: &Name, suffix: &str) -> PathBuf {
        self.root.join(snapshot.as_str()).join(format!("{vm}{suffix}"))
    }
}

/// Was nothing in this folder changed for as long as things are kept?
fn is_old(folder: &Path, now: SystemTime) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let inside = fs::read_dir(folder).into_iter().flatten().flatten();
    let last = inside.filter_map(|entry| modified(&entry.path())).chain(modified(folder)).max();
    last.is_some_and(|last| now.duration_since(last).is_ok_and(|age| age > KEPT_FOR))
}

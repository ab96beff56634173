//! Local snapshots on this host's disk.
//!
//! ```text
//! <state_dir>/snapshots/<snapshot>/<vm>.partial/   being written
//! <state_dir>/snapshots/<snapshot>/<vm>/           saved: manifest.json and the files that it lists
//! <state_dir>/snapshots/<snapshot>/committed       the coordinator has journaled COMMIT
//! ```
//!
//! A folder gets its final name only when everything in it is durable, and nothing changes in it afterwards.
//! Snapshots without the `committed` file are not usable; whether they are garbage the coordinator knows.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use unasnap_fault_points::{after, around, before};
use unasnap_protocol::name::Name;

use self::damage::Damage;
pub use self::describing::describe;
pub use self::incoming::{Incoming, Placed};
use self::manifest::{Identity, MANIFEST_FILE, Manifest, Saved};
use self::space::{Limits, Space};

mod damage;
mod describing;
pub mod files;
mod incoming;
mod limits;
pub mod manifest;
pub mod space;
mod verify;

/// Suffix of a folder that is being written. A dot cannot be part of a VM's name.
const PARTIAL: &str = ".partial";
/// Marks the snapshots that may be restored.
const COMMITTED: &str = "committed";

/// The local snapshots of one host.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    space: Arc<Space>,
    damage: Arc<Damage>,
}

/// A local snapshot that is being written.
#[derive(Debug)]
pub struct Draft {
    folder: PathBuf,
    target: PathBuf,
}

impl Draft {
    /// Where its files go.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// A local snapshot that is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// BLAKE3 of `manifest.json`, 64 hex digits; it stands for every byte of the snapshot.
    pub digest: String,
    /// Lengths of its files added up, bytes; holes count.
    pub bytes: u64,
}

/// What the store has of one global snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The snapshot.
    pub snapshot: Name,
    /// VMs of which a local snapshot is saved here.
    pub vms: Vec<Name>,
    /// See [`Store::commit`].
    pub committed: bool,
}

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file could not be read or written.
    #[error("cannot {what} {path}")]
    File {
        /// `write`, `rename` ...
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not enough room for a snapshot.
    #[error(
        "no room for a snapshot: {needed} bytes are needed below {path} (of which {reserve} are kept free), {free} are free: \
         delete old snapshots or use a larger disk"
    )]
    NoSpace {
        /// The snapshots folder.
        path: PathBuf,
        /// What the snapshot may take, with the reserve.
        needed: u64,
        /// What is kept free for the running VMs.
        reserve: u64,
        /// What the file system has free.
        free: u64,
    },
    /// More than the operator allows.
    #[error(
        "no room for a snapshot: {needed} bytes are needed below {path}, and of the quota of {quota} bytes {taken} are taken: \
         delete old snapshots or raise quota_mb"
    )]
    OverQuota {
        /// The snapshots folder.
        path: PathBuf,
        /// What the snapshot may take.
        needed: u64,
        /// What others take, or were promised.
        taken: u64,
        /// What all may take together.
        quota: u64,
    },
    /// The snapshot is not here, or never was.
    #[error("snapshot {snapshot} of VM {vm} is not on this host")]
    Absent {
        /// The snapshot.
        snapshot: Name,
        /// The VM.
        vm: Name,
    },
    /// This VM's part of the snapshot was saved before.
    #[error("{path} exists: a snapshot is never overwritten; delete it first")]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// The snapshot is not what was saved.
    #[error("{path} is damaged: {what}; restore another snapshot")]
    Damaged {
        /// The file, or the folder.
        path: PathBuf,
        /// How it differs.
        what: String,
    },
}

impl StoreError {
    /// For `map_err`: a failed operation on a file.
    pub(crate) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { what, path, source }
    }
}

impl Store {
    /// Opens, and makes if need be, the store below `state_dir`. `limits` say how much
    /// of the disk snapshots may take.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(state_dir: &Path, limits: Limits) -> Result<Self, StoreError> {
        let root = state_dir.join("snapshots");
        fs::create_dir_all(&root).map_err(StoreError::file("create", &root))?;
        let space = Arc::new(Space::new(root.clone(), limits));
        Ok(Self { root, space, damage: Arc::default() })
    }

    /// Refuses unless `bytes` fit, beside what was promised to drafts.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] or [`StoreError::OverQuota`] with the figures.
    pub fn check_space(&self, bytes: u64) -> Result<(), StoreError> {
        self.space.check(bytes)
    }

    /// Bytes that are free where snapshots are kept.
    ///
    /// # Errors
    /// The file system does not say.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        self.space.free_bytes()
    }

    /// Makes the folder for the files of a cut. What an earlier attempt left there is deleted.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when this snapshot of this VM is already saved.
    pub fn begin(&self, snapshot: &Name, vm: &Name) -> Result<Draft, StoreError> {
        let target = self.vm_folder(snapshot, vm);
        let folder = self.root.join(snapshot.as_str()).join(format!("{vm}{PARTIAL}"));
        if target.exists() {
            return Err(StoreError::Exists { path: target });
        }
        remove_folder(&folder)?;
        around("store", "begin", || fs::create_dir_all(&folder))
            .map_err(StoreError::file("create", &folder))?;
        Ok(Draft { folder, target })
    }

    /// Keeps room for what a draft may grow to, until it is finished or abandoned.
    ///
    /// # Errors
    /// As of [`check_space`](Self::check_space).
    pub fn promise(&self, draft: &Draft, bytes: u64) -> Result<(), StoreError> {
        self.space.promise(&draft.folder, bytes)
    }

    /// Writes the manifest and gives the folder its name. Files without a digest are hashed here, so call it
    /// where blocking is allowed.
    ///
    /// # Errors
    /// A file cannot be read or written. The draft is still there then: [`Store::abandon`] it.
    pub fn finish(&self, draft: &Draft, identity: Identity, saved: Saved) -> Result<Stored, StoreError> {
        let manifest = describe(identity, saved, &draft.folder)?;
        let bytes = manifest.files.iter().map(|file| file.size).sum();
        let path = draft.folder.join(MANIFEST_FILE);
        let text = serde_json::to_vec_pretty(&manifest).map_err(io::Error::from);
        let text = text.map_err(StoreError::file("write", &path))?;
        files::write_durably(&path, &text).map_err(StoreError::file("write", &path))?;
        around("store", "name", || fs::rename(&draft.folder, &draft.target))
            .map_err(StoreError::file("rename", &draft.folder))?;
        let parents = draft.target.ancestors().skip(1).take(2);
        for folder in parents {
            files::sync_folder(folder).map_err(StoreError::file("flush", folder))?;
        }
        self.space.settle(&draft.folder);
        Ok(Stored { digest: blake3::hash(&text).to_hex().to_string(), bytes })
    }

    /// Deletes a draft; success when it is gone already.
    ///
    /// # Errors
    /// It cannot be deleted.
    pub fn abandon(&self, draft: &Draft) -> Result<(), StoreError> {
        self.space.settle(&draft.folder);
        let point = |error| StoreError::file("delete", &draft.folder)(error);
        before("store", "abandon").map_err(point)?;
        remove_folder(&draft.folder)?;
        after("store", "abandon").map_err(point)?;
        self.remove_if_empty(draft.folder.parent())
    }

    /// Marks a snapshot as usable; call it when the coordinator has committed. Repeating it changes nothing.
    ///
    /// # Errors
    /// The mark cannot be written, for instance because nothing of this snapshot is here.
    pub fn commit(&self, snapshot: &Name) -> Result<(), StoreError> {
        let folder = self.root.join(snapshot.as_str());
        let path = folder.join(COMMITTED);
        // Members of one host commit side by side: an empty file needs no second name on the way.
        let mark = || {
            fs::File::create(&path)?.sync_all()?;
            files::sync_folder(&folder)
        };
        around("store", "mark", mark).map_err(StoreError::file("write", &path))
    }

    /// Was this snapshot marked by [`Store::commit`]?
    #[must_use]
    pub fn is_committed(&self, snapshot: &Name) -> bool {
        self.root.join(snapshot.as_str()).join(COMMITTED).exists()
    }

    /// Everything that is saved here, sorted by name.
    ///
    /// # Errors
    /// A folder cannot be listed.
    pub fn list(&self) -> Result<Vec<Entry>, StoreError> {
        let mut entries = Vec::new();
        for snapshot in names_in(&self.root)?.iter().filter_map(|name| Name::new(name).ok()) {
            if !self.root.join(snapshot.as_str()).is_dir() {
                continue;
            }
            let inside = names_in(&self.root.join(snapshot.as_str()))?;
            let committed = inside.iter().any(|name| name == COMMITTED);
            let vms = inside.iter().filter(|name| *name != COMMITTED);
            let vms = vms.filter_map(|name| Name::new(name).ok()).collect();
            entries.push(Entry { snapshot, vms, committed });
        }
        Ok(entries)
    }

    /// Deletes what is here of a snapshot; success when nothing is. The mark goes first, so that a crash in
    /// between leaves nothing that looks usable.
    ///
    /// # Errors
    /// Something cannot be deleted.
    pub fn delete(&self, snapshot: &Name) -> Result<(), StoreError> {
        let folder = self.root.join(snapshot.as_str());
        let mark = folder.join(COMMITTED);
        around("store", "unmark", || files::remove_if_there(&mark))
            .map_err(StoreError::file("delete", &mark))?;
        remove_folder(&folder)
    }

    /// Deletes one VM's part of a snapshot, and the mark with the last of them; success when it is not there.
    ///
    /// # Errors
    /// It cannot be deleted.
    pub fn delete_vm(&self, snapshot: &Name, vm: &Name) -> Result<(), StoreError> {
        let folder = self.vm_folder(snapshot, vm);
        let point = |error| StoreError::file("delete", &folder)(error);
        before("store", "delete").map_err(point)?;
        self.remove_beside(snapshot, vm)?;
        remove_folder(&folder)?;
        after("store", "delete").map_err(point)?;
        let Some(parent) = folder.parent().filter(|parent| parent.exists()) else { return Ok(()) };
        if names_in(parent)?.iter().all(|name| name == COMMITTED) {
            return self.delete(snapshot);
        }
        Ok(())
    }

    /// For the start of the host agent: deletes what was being written when its predecessor ended.
    ///
    /// # Errors
    /// Something cannot be listed or deleted.
    pub fn remove_partial(&self) -> Result<(), StoreError> {
        // Other things may lie beside the snapshots, `lost+found` for one.
        for snapshot in names_in(&self.root)?.iter().filter_map(|name| Name::new(name).ok()) {
            let folder = self.root.join(snapshot.as_str());
            if !folder.is_dir() {
                continue;
            }
            for name in names_in(&folder)?.iter().filter(|name| name.ends_with(PARTIAL)) {
                let folder = folder.join(name);
                let point = |error| StoreError::file("delete", &folder)(error);
                before("store", "collect").map_err(point)?;
                remove_folder(&folder)?;
                after("store", "collect").map_err(point)?;
            }
            self.remove_if_empty(Some(&folder))?;
        }
        Ok(())
    }

    /// Folder of a saved local snapshot.
    #[must_use]
    pub fn vm_folder(&self, snapshot: &Name, vm: &Name) -> PathBuf {
        self.root.join(snapshot.as_str()).join(vm.as_str())
    }

    /// The manifest of a saved local snapshot, unchecked against the files.
    ///
    /// # Errors
    /// [`StoreError::Absent`], or [`StoreError::Damaged`] when it cannot be understood.
    pub fn manifest(&self, snapshot: &Name, vm: &Name) -> Result<Manifest, StoreError> {
        let folder = self.vm_folder(snapshot, vm);
        if !folder.is_dir() {
            return Err(StoreError::Absent { snapshot: snapshot.clone(), vm: vm.clone() });
        }
        verify::read_manifest(&folder)
    }

    /// Compares every byte of a saved local snapshot with its manifest. Reads all of it: call it where blocking
    /// is allowed.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] names the first file that is missing, truncated, changed or foreign.
    pub fn verify(&self, snapshot: &Name, vm: &Name) -> Result<Manifest, StoreError> {
        let compared = self.compare(snapshot, vm);
        self.note_compared(snapshot, vm, &compared);
        compared
    }

    fn compare(&self, snapshot: &Name, vm: &Name) -> Result<Manifest, StoreError> {
        let manifest = self.manifest(snapshot, vm)?;
        verify::check_identity(&manifest, snapshot, vm, &self.vm_folder(snapshot, vm))?;
        verify::check_files(&manifest, &self.vm_folder(snapshot, vm))?;
        Ok(manifest)
    }

    /// As [`verify`](Self::verify), and compares the images below the disks' layers, which no snapshot holds.
    ///
    /// # Errors
    /// As there.
    pub fn verify_with_bases(&self, snapshot: &Name, vm: &Name) -> Result<(), StoreError> {
        let manifest = self.verify(snapshot, vm)?;
        verify::check_bases(&manifest, &self.here(&manifest)?.bases)
    }

    /// A snapshot's folder disappears with the last thing in it.
    fn remove_if_empty(&self, folder: Option<&Path>) -> Result<(), StoreError> {
        let Some(folder) = folder else { return Ok(()) };
        match fs::remove_dir(folder) {
            Err(error)
                if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) =>
            {
                Err(StoreError::file("delete", folder)(error))
            }
            _ => files::sync_folder(&self.root).map_err(StoreError::file("flush", &self.root)),
        }
    }
}

fn remove_folder(folder: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::file("delete", folder)(error))
        }
        _ => Ok(()),
    }
}

/// Names in a folder, sorted; those that are not UTF-8 are nobody's of ours.
fn names_in(folder: &Path) -> Result<Vec<String>, StoreError> {
    let list = || -> io::Result<Vec<String>> {
        let names =
            fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.file_name().into_string().ok()));
        let mut names: Vec<String> = names.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect();
        names.sort();
        Ok(names)
    };
    list().map_err(StoreError::file("list", folder))
}

#[cfg(test)]
mod tests;

//! Room for snapshots: what is free, what is kept free, what snapshots may take, and what was promised to those that are
//! being written. Several VMs of a host prepare at once, and each alone would fit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::StoreError;
pub use super::limits::Limits;

/// Bytes of one block as `stat(2)` counts them.
const BLOCK_BYTES: u64 = 512;

/// The room below one folder.
#[derive(Debug)]
pub(super) struct Space {
    root: PathBuf,
    limits: Limits,
    /// Draft and what it may still grow to, bytes.
    promised: Mutex<BTreeMap<PathBuf, u64>>,
}

impl Space {
    pub(super) fn new(root: PathBuf, limits: Limits) -> Self {
        Self { root, limits, promised: Mutex::default() }
    }

    fn promised(&self) -> MutexGuard<'_, BTreeMap<PathBuf, u64>> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn free_bytes(&self) -> Result<u64, StoreError> {
        let stat = nix::sys::statvfs::statvfs(&self.root).map_err(io::Error::from);
        let stat = stat.map_err(StoreError::file("ask for the free space of", &self.root))?;
        Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
    }

    /// Refuses unless `bytes` fit beside what was promised to others.
    pub(super) fn check(&self, bytes: u64) -> Result<(), StoreError> {
        self.fits(bytes, &self.promised())
    }

    /// As [`check`](Self::check), and keeps them for `draft`.
    pub(super) fn promise(&self, draft: &Path, bytes: u64) -> Result<(), StoreError> {
        let mut promised = self.promised();
        promised.remove(draft);
        self.fits(bytes, &promised)?;
        promised.insert(draft.to_owned(), bytes);
        Ok(())
    }

    /// The draft grows no more.
    pub(super) fn settle(&self, draft: &Path) {
        self.promised().remove(draft);
    }

    fn fits(&self, bytes: u64, promised: &BTreeMap<PathBuf, u64>) -> Result<(), StoreError> {
        // What a draft has already written is no longer free, so it must not count twice.
        let unwritten =
            |(draft, bytes): (&PathBuf, &u64)| bytes.saturating_sub(used(draft, &mut BTreeSet::new()));
        let others: u64 = promised.iter().map(unwritten).sum();
        let (reserve, free) = (self.limits.reserve, self.free_bytes()?);
        let needed = bytes.saturating_add(others).saturating_add(reserve);
        let path = self.root.clone();
        if needed > free {
            return Err(StoreError::NoSpace { path, needed, reserve, free });
        }
        let Some(quota) = self.limits.quota else { return Ok(()) };
        let taken = used(&self.root, &mut BTreeSet::new()).saturating_add(others);
        if taken.saturating_add(bytes) > quota {
            return Err(StoreError::OverQuota { path, needed: bytes, taken, quota });
        }
        Ok(())
    }
}

/// Bytes on the disk below a folder, each file once, whatever its names. What goes meanwhile takes nothing.
fn used(folder: &Path, seen: &mut BTreeSet<(u64, u64)>) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => used(&entry.path(), seen),
        Ok(meta) if seen.insert((meta.dev(), meta.ino())) => meta.blocks() * BLOCK_BYTES,
        _ => 0,
    };
    entries.map(of).sum()
}

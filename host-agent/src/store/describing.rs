//! What a driver has saved, as a manifest.

use std::fs;
use std::path::Path;

use super::manifest::{FORMAT, Identity, Manifest, ManifestFile, Saved, SavedFile};
use super::{StoreError, files};

/// The manifest of files that a driver has put into `folder`. Those without a digest are read here, so call it where blocking is
/// allowed.
///
/// # Errors
/// One cannot be read.
pub fn describe(identity: Identity, saved: Saved, folder: &Path) -> Result<Manifest, StoreError> {
    let mut described = Vec::new();
    for SavedFile { name, role, blake3 } in saved.files {
        let path = folder.join(&name);
        let size = fs::metadata(&path).map_err(StoreError::file("read", &path))?.len();
        let blake3 = match blake3 {
            Some(known) => known,
            None => files::digest(&path).map_err(StoreError::file("read", &path))?,
        };
        described.push(ManifestFile { name, role, size, blake3 });
    }
    let unasnap = env!("CARGO_PKG_VERSION").to_owned();
    let (hypervisor, bases) = (saved.hypervisor, saved.bases);
    Ok(Manifest { format: FORMAT, unasnap, identity, hypervisor, files: described, bases })
}

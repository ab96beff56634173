//! Is a local snapshot what was saved?

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use unasnap_protocol::name::Name;

use super::manifest::{FORMAT, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest};
use super::{StoreError, files, names_in};

fn damaged(path: &Path, what: impl Into<String>) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), what: what.into() }
}

pub(super) fn read_manifest(folder: &Path) -> Result<Manifest, StoreError> {
    let path = folder.join(MANIFEST_FILE);
    let mut text = Vec::new();
    let file = match fs::File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(damaged(&path, "it is missing"));
        }
        other => other.map_err(StoreError::file("read", &path))?,
    };
    file.take(MAX_MANIFEST_BYTES).read_to_end(&mut text).map_err(StoreError::file("read", &path))?;
    parse_manifest(&text, &path)
}

/// `path` is where it lies, for words.
pub(super) fn parse_manifest(text: &[u8], path: &Path) -> Result<Manifest, StoreError> {
    let value: serde_json::Value =
        serde_json::from_slice(text).map_err(|error| damaged(path, format!("it is not JSON ({error})")))?;
    if value["format"] != FORMAT {
        let what = format!("its format is {} and this version of unasnap reads {FORMAT}", value["format"]);
        return Err(damaged(path, what));
    }
    let manifest: Manifest =
        serde_json::from_value(value).map_err(|error| damaged(path, error.to_string()))?;
    match manifest.files.iter().find(|file| !is_plain(&file.name)) {
        Some(file) => {
            Err(damaged(path, format!("it lists {:?}, which is not a file of the folder", file.name)))
        }
        None => Ok(manifest),
    }
}

/// A name from a manifest must not lead out of the folder.
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=255).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.')
}

pub(super) fn check_identity(
    manifest: &Manifest,
    snapshot: &Name,
    vm: &Name,
    folder: &Path,
) -> Result<(), StoreError> {
    let (is_of, is_vm) = (&manifest.identity.snapshot, &manifest.identity.definition.name);
    if is_of == snapshot && is_vm == vm {
        return Ok(());
    }
    Err(damaged(folder, format!("it holds snapshot {is_of} of VM {is_vm}")))
}

pub(super) fn check_files(manifest: &Manifest, folder: &Path) -> Result<(), StoreError> {
    let present: BTreeSet<String> = names_in(folder)?.into_iter().collect();
    let listed: BTreeSet<&str> = manifest.files.iter().map(|file| file.name.as_str()).collect();
    let foreign = present.iter().find(|name| *name != MANIFEST_FILE && !listed.contains(name.as_str()));
    if let Some(name) = foreign {
        return Err(damaged(&folder.join(name), "the manifest does not know it"));
    }
    for file in &manifest.files {
        let path = folder.join(&file.name);
        if !present.contains(&file.name) {
            return Err(damaged(&path, "it is missing"));
        }
        let size = fs::metadata(&path).map_err(StoreError::file("read", &path))?.len();
        if size != file.size {
            return Err(damaged(&path, format!("it has {size} bytes instead of {}", file.size)));
        }
        let found = files::digest(&path).map_err(StoreError::file("read", &path))?;
        if found != file.blake3 {
            return Err(damaged(&path, "its content has changed (the digest differs)"));
        }
    }
    Ok(())
}

/// `paths` say where they lie on this host.
pub(super) fn check_bases(manifest: &Manifest, paths: &[PathBuf]) -> Result<(), StoreError> {
    for (base, path) in manifest.bases.iter().zip(paths) {
        let size = match fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(damaged(path, "it is missing"));
            }
            other => other.map_err(StoreError::file("read", path))?.len(),
        };
        if size != base.size {
            return Err(damaged(path, format!("it has {size} bytes instead of {}", base.size)));
        }
        if files::digest(path).map_err(StoreError::file("read", path))? != base.blake3 {
            return Err(damaged(path, "its content has changed (the digest differs)"));
        }
    }
    Ok(())
}

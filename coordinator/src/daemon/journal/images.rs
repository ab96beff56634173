//! The image catalogue.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use unasnap_protocol::image::Version;
use unasnap_protocol::name::Name;

use super::{IMAGES, Journal, Result, put, remove};

/// All versions of one image.
pub type Versions = BTreeMap<Version, CataloguedImage>;

/// What one version of an image stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CataloguedImage {
    /// BLAKE3 of the file, 64 hex digits.
    pub blake3: String,
    /// `qcow2` or `raw`.
    pub format: String,
    /// Size of the disk that a VM sees, bytes.
    pub virtual_bytes: u64,
    /// Length of the file, bytes.
    pub bytes: u64,
    /// When this version was entered, RFC 3339, UTC.
    pub added: String,
    /// Where it was entered, by host: what is known of a host that is away.
    pub copies: BTreeMap<Name, Copy>,
}

/// A base of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// Its name there.
    pub base: Name,
    /// Its file.
    pub path: String,
}

impl Journal {
    /// All images, by name.
    pub fn images(&self) -> &BTreeMap<Name, Versions> {
        &self.images
    }

    /// Replaces these images, together; one without versions is forgotten.
    pub fn set_images(&mut self, changed: BTreeMap<Name, Versions>) -> Result<()> {
        let none = Versions::new();
        let is_new = |(name, versions): &(Name, Versions)| self.images.get(name).unwrap_or(&none) != versions;
        let changed: Vec<_> = changed.into_iter().filter(is_new).collect();
        if changed.is_empty() {
            return Ok(());
        }
        self.write("images", |write| {
            changed.iter().try_for_each(|(name, versions)| match versions.is_empty() {
                true => remove(write, IMAGES, name),
                false => put(write, IMAGES, name, versions),
            })
        })?;
        self.images.extend(changed);
        self.images.retain(|_, versions| !versions.is_empty());
        Ok(())
    }
}

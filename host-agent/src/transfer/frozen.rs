//! Disks of VMs that do not run, for other hosts to fetch: `unasnap vm replicate`.
//!
//! What was frozen is known until the agent ends. Nothing is copied for it: the files are those of the VM itself, which are not
//! written any more, and whoever has begun to fetch them keeps them open. A VM that has run on since may have merged
//! them; then they are gone, and the command is to be repeated.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use unasnap_protocol::name::Name;
use unasnap_protocol::transfer::Disks;

use crate::definition::VmDefinition;
use crate::hypervisor::FrozenDisks;
use crate::store::manifest::{Identity, Manifest};
use crate::store::{StoreError, describe};

/// The frozen disks of this host's VMs, the newest of each.
#[derive(Debug, Default)]
pub struct Shelf {
    all: Mutex<BTreeMap<Name, Arc<Frozen>>>,
}

/// The frozen disks of one VM.
#[derive(Debug)]
pub struct Frozen {
    /// What they are. There is no RAM among the files.
    pub manifest: Manifest,
    /// The manifest as it is given.
    pub text: Vec<u8>,
    /// Where its files lie.
    pub folder: PathBuf,
}

impl Shelf {
    /// Keeps frozen disks, in place of older ones of the same VM, and answers the blake3 of their manifest. Files are read
    /// for their digests, so call it where blocking is allowed.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn put(&self, vm: &VmDefinition, disks: FrozenDisks) -> Result<[u8; 32], StoreError> {
        let FrozenDisks { folder, saved } = disks;
        // It is part of no global snapshot: in the place of that stands the VM.
        let (snapshot, deployment) = (vm.name.clone(), vm.deployment.clone());
        let identity = Identity { snapshot, deployment, epoch: 0, definition: vm.clone() };
        let manifest = describe(identity, saved, &folder)?;
        let text = serde_json::to_vec_pretty(&manifest).map_err(io::Error::from);
        let text = text.map_err(StoreError::file("describe", &folder))?;
        let digest = *blake3::hash(&text).as_bytes();
        let frozen = Arc::new(Frozen { manifest, text, folder });
        self.all.lock().unwrap_or_else(PoisonError::into_inner).insert(vm.name.clone(), frozen);
        Ok(digest)
    }

    /// Those that are wanted, if they are the newest.
    #[must_use]
    pub fn get(&self, wanted: &Disks) -> Option<Arc<Frozen>> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |frozen: &&Arc<Frozen>| *blake3::hash(&frozen.text).as_bytes() == wanted.digest;
        all.get(&wanted.vm).filter(is_it).cloned()
    }
}

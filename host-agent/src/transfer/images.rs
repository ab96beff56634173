//! What VMs need beside their snapshots: the images below their disks, kernels, initial RAM disks. What comes from another
//! host lies below `state_dir/images`, under its digest.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use tokio::sync::{Mutex, OwnedMutexGuard};
use unasnap_protocol::name::Name;
use unasnap_protocol::transfer::Image;

use crate::bases::{Bases, Known};
use crate::hypervisor::base_image::describe;
use crate::hypervisor::virtualbox::own_machine;
use crate::store::Placed;
use crate::store::files;
use crate::store::manifest::Manifest;

/// Suffix of an image that has not come to its end.
const INCOMING: &str = ".incoming";

type Coming = BTreeMap<[u8; 32], Arc<Mutex<()>>>;

/// The images that came from other hosts.
#[derive(Debug, Clone)]
pub struct Images {
    state_dir: PathBuf,
    folder: PathBuf,
    /// Each held while it comes, by digest: two VMs may need the same.
    coming: Arc<std::sync::Mutex<Coming>>,
}

impl Images {
    /// Of this host.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned(), folder: state_dir.join("images"), coming: Arc::default() }
    }

    /// Waits until nobody else gets this image.
    pub async fn lock(&self, image: &Image) -> OwnedMutexGuard<()> {
        let coming = {
            let mut all = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(image.digest).or_default())
        };
        coming.lock_owned().await
    }

    /// Where an image of this digest lies, if it is here: among those that came, as a base, or at the source's place.
    ///
    /// # Errors
    /// A file of that length cannot be read.
    pub fn find(&self, image: &Image) -> io::Result<Option<PathBuf>> {
        if let Some(known) = self.known(&image.digest) {
            return Ok(Some(known));
        }
        let same = Path::new(&image.path);
        // Only what is a file is opened: the path is the other host's word.
        let alike = fs::metadata(same).is_ok_and(|meta| meta.is_file() && meta.len() == image.size);
        let is_it = same.is_absolute() && alike && files::digest(same)? == hex(&image.digest);
        Ok(is_it.then(|| same.to_owned()))
    }

    /// As [`find`](Self::find), of an image whose place at the source is not known.
    #[must_use]
    pub fn known(&self, digest: &[u8; 32]) -> Option<PathBuf> {
        let came = Some(self.folder.join(hex(digest))).filter(|came| came.is_file());
        came.or_else(|| self.base(&hex(digest)))
    }

    /// A registered base of this digest that is as it was registered.
    #[must_use]
    pub fn base(&self, blake3: &str) -> Option<PathBuf> {
        let bases = Bases::open(&self.state_dir, &[]).ok()?;
        let is_it = |known: &&Known| {
            let now = describe(&known.image.path);
            known.image.blake3 == blake3
                && now.is_ok_and(|now| (now.size, now.modified) == (known.image.size, known.image.modified))
        };
        bases.known().values().find(is_it).map(|known| known.image.path.clone())
    }

    /// A VM of this manifest on this host, with its images in these places, in the order of [`paths`]. Is the host `believed` that it
    /// comes from?
    ///
    /// # Errors
    /// Where VMs are kept cannot be resolved.
    pub fn placed(&self, manifest: &Manifest, images: &[PathBuf], believed: bool) -> io::Result<Placed> {
        let mut definition = manifest.identity.definition.clone();
        let (bases, others) = images.split_at(images.len().min(manifest.bases.len()));
        definition.disks.iter_mut().zip(bases).for_each(|(disk, here)| disk.image.clone_from(here));
        let others = definition.kernel.iter_mut().chain(&mut definition.initrd).zip(others);
        others.for_each(|(path, here)| path.clone_from(here));
        if definition.machine.is_some() {
            definition.machine = Some(self.own_machine(&definition.name)?);
        }
        Ok(Placed { definition, bases: bases.to_vec(), believed })
    }

    /// Where a machine of VirtualBox lies here that unasnap has made.
    ///
    /// # Errors
    /// The state folder cannot be resolved.
    pub fn own_machine(&self, vm: &Name) -> io::Result<PathBuf> {
        Ok(own_machine(&self.state_dir.canonicalize()?, vm))
    }

    /// Where an image lies once it has come.
    #[must_use]
    pub fn place(&self, image: &Image) -> PathBuf {
        self.folder.join(hex(&image.digest))
    }

    /// Where it gathers.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn gathering(&self, image: &Image) -> io::Result<PathBuf> {
        fs::create_dir_all(&self.folder)?;
        Ok(self.folder.join(format!("{}{INCOMING}", hex(&image.digest))))
    }

    /// It has come, and its digest is right. `modified` is set, Unix time in ns, where a snapshot's manifest knows it: the
    /// digest need not be computed again as long as it stays.
    ///
    /// # Errors
    /// What the file system says.
    pub fn keep(&self, image: &Image, modified: Option<i64>) -> io::Result<PathBuf> {
        let (from, to) = (self.gathering(image)?, self.place(image));
        let file = fs::File::open(&from)?;
        if let Some(ns) = modified.and_then(|ns| u64::try_from(ns).ok()) {
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_nanos(ns))?;
        }
        file.sync_all()?;
        fs::rename(&from, &to)?;
        files::sync_folder(&self.folder)?;
        Ok(to)
    }
}

/// The images of a VM, where they lie on this host, in the order in which an offer names them.
#[must_use]
pub fn paths(here: &Placed) -> Vec<PathBuf> {
    let Placed { definition, bases, .. } = here;
    bases.iter().chain(&definition.kernel).chain(&definition.initrd).cloned().collect()
}

/// 64 digits.
#[must_use]
pub fn hex(digest: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}

//! All disks that a machine's chains go through: those of its own registry, and those of another machine's where a base is
//! shared (multiattach, linked clones).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use unasnap_protocol::files::FileRole;

use super::settings::Settings;
use crate::error::FilesError;
use crate::listing::names_in;
use crate::place::Place;
use crate::uuid::Uuid;
use crate::vdi;

/// Most machines beside this one whose registries are looked at.
const MAX_NEIGHBOURS: usize = 512;

/// A disk.
#[derive(Debug)]
pub struct Disk {
    /// Its file.
    pub place: Place,
    /// Base, difference or removable.
    pub role: FileRole,
    /// The disk whose differences it holds.
    pub parent: Parent,
}

/// The disk below another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// None: it is a base.
    None,
    /// This one.
    Disk(usize),
    /// One that no registry and no file tells of.
    Lost(Uuid),
}

/// Disks by their UUIDs.
pub struct Disks {
    folder: PathBuf,
    snapshot_folder: PathBuf,
    disks: Vec<Disk>,
    by_uuid: HashMap<Uuid, usize>,
    neighbours: Option<HashMap<Uuid, Neighbour>>,
}

/// A disk in another machine's registry.
struct Neighbour {
    place: Place,
    removable: bool,
    parent: Option<Uuid>,
}

impl Disks {
    /// Those of the machine's own registry.
    pub fn new(folder: &Path, settings: &Settings) -> Self {
        let snapshot_folder = Place::new(folder, folder, Path::new(&settings.snapshot_folder)).path;
        let mut disks = Self {
            folder: folder.to_owned(),
            snapshot_folder,
            disks: Vec::new(),
            by_uuid: HashMap::new(),
            neighbours: None,
        };
        for medium in &settings.media {
            let parent = medium.parent.map_or(Parent::None, Parent::Disk);
            let place = Place::new(folder, folder, Path::new(&medium.location));
            disks.add(medium.uuid, place, medium.removable, parent);
        }
        disks
    }

    /// A disk.
    pub fn get(&self, index: usize) -> &Disk {
        &self.disks[index]
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Disk)> {
        self.disks.iter().enumerate()
    }

    /// The disk with this UUID, looked for outside the registry too, with all disks below it.
    pub fn find(&mut self, uuid: Uuid) -> Option<usize> {
        let mut wanted = uuid;
        let mut child: Option<usize> = None;
        loop {
            let known = self.by_uuid.get(&wanted).copied();
            let found = known.or_else(|| self.adopt(wanted));
            if let (Some(child), Some(found)) = (child, found) {
                self.disks[child].parent = Parent::Disk(found);
            }
            match (known, found.map(|found| (found, self.disks[found].parent))) {
                (None, Some((found, Parent::Lost(parent)))) => {
                    child = Some(found);
                    wanted = parent;
                }
                _ => return self.by_uuid.get(&uuid).copied(),
            }
        }
    }

    /// A disk and all below it, the newest first, and the disk that is lost below the last.
    ///
    /// # Errors
    /// The chain goes in a circle.
    pub fn chain(&self, first: usize) -> Result<(Vec<usize>, Option<Uuid>), FilesError> {
        let mut chain = vec![first];
        let mut at = first;
        loop {
            match self.disks[at].parent {
                Parent::None => return Ok((chain, None)),
                Parent::Lost(uuid) => return Ok((chain, Some(uuid))),
                Parent::Disk(parent) if chain.len() > self.disks.len() => {
                    return Err(FilesError::Cycle { path: self.disks[parent].place.path.clone() });
                }
                Parent::Disk(parent) => {
                    chain.push(parent);
                    at = parent;
                }
            }
        }
    }

    /// Where the parent of a disk is.
    pub fn parent_of(&self, disk: &Disk) -> Option<&Place> {
        match disk.parent {
            Parent::Disk(parent) => Some(&self.disks[parent].place),
            Parent::None | Parent::Lost(_) => None,
        }
    }

    fn add(&mut self, uuid: Uuid, place: Place, removable: bool, parent: Parent) -> usize {
        let role = match parent {
            _ if removable => FileRole::Removable,
            Parent::None => FileRole::BaseDisk,
            Parent::Disk(_) | Parent::Lost(_) => FileRole::DifferenceDisk,
        };
        self.disks.push(Disk { place, role, parent });
        self.by_uuid.insert(uuid, self.disks.len() - 1);
        self.disks.len() - 1
    }

    /// Takes in a disk that the machine's registry does not list. Its parent is lost until it is looked for.
    fn adopt(&mut self, uuid: Uuid) -> Option<usize> {
        let differences = self.snapshot_folder.join(format!("{}.vdi", uuid.braced()));
        if let Ok(Some(header)) = vdi::read(&differences)
            && header.uuid == Some(uuid)
        {
            let place = Place::new(&self.folder, &self.folder, &differences);
            return Some(self.add(uuid, place, false, header.parent.map_or(Parent::None, Parent::Lost)));
        }
        if self.neighbours.is_none() {
            self.neighbours = Some(self.look_around());
        }
        let neighbour = self.neighbours.as_mut()?.remove(&uuid)?;
        let parent = neighbour.parent.map_or(Parent::None, Parent::Lost);
        Some(self.add(uuid, neighbour.place, neighbour.removable, parent))
    }

    /// What the registries of the machines in neighbouring folders list. One that cannot be read tells nothing: it is
    /// not the one that was asked about.
    fn look_around(&self) -> HashMap<Uuid, Neighbour> {
        let mut found = HashMap::new();
        let Some(above) = self.folder.parent() else { return found };
        let folders = names_in(above).unwrap_or_default().into_iter().map(|name| above.join(name));
        for folder in folders.filter(|folder| *folder != self.folder).take(MAX_NEIGHBOURS) {
            let Some(file) = settings_in(&folder) else { continue };
            let Ok(settings) = Settings::read(&file) else { continue };
            for medium in &settings.media {
                let place = Place::new(&self.folder, &folder, Path::new(&medium.location));
                let parent = medium.parent.map(|parent| settings.media[parent].uuid);
                found.insert(medium.uuid, Neighbour { place, removable: medium.removable, parent });
            }
        }
        found
    }
}

/// The settings of the machine of this folder. A VirtualBox that is newer than a machine keeps what it has found as
/// `NAME-1.19-linux.vbox`, beside those that it writes.
fn settings_in(folder: &Path) -> Option<PathBuf> {
    let paths = names_in(folder).unwrap_or_default().into_iter().map(|name| folder.join(name));
    let all = paths.filter(|path| path.extension().is_some_and(|end| end == "vbox"));
    all.max_by_key(|path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok())
}

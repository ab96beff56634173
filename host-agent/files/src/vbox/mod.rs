//! VirtualBox. A snapshot consists of the unedited `.vbox`, of each disk that was attached to it down to its base, and of
//! its saved state and firmware variables: VirtualBox 7.2 registers and resumes exactly that on another host, though the
//! files of all other snapshots are missing there.

mod disks;
pub mod foreign;
mod parts;
mod registry;
mod saved;
mod settings;

use std::collections::BTreeMap;
use std::path::Path;

use unasnap_protocol::files::{FileReport, FileRole, SnapshotNode, StoreKind, Totals};

use self::disks::Disks;
pub use self::registry::with_shared_base;
pub use self::saved::{as_saved, as_saved_alone};
use self::settings::{Settings, State};
use crate::error::FilesError;
use crate::listing::{Listing, names_in};
use crate::place::{Place, folder_of};
use crate::uuid::Uuid;

/// Most snapshots that the reason for leaving a file out names.
const NAMED_USERS: usize = 3;

/// The files of the machine that `path`, a `.vbox`, describes, for restoring `snapshot` (name or UUID), or its current
/// state.
///
/// # Errors
/// The `.vbox` cannot be read or understood, or has no such snapshot, or several.
pub fn track(path: &Path, snapshot: Option<&str>) -> Result<FileReport, FilesError> {
    let settings = Settings::read(path)?;
    let folder = folder_of(path).map_err(FilesError::unreadable(path))?;
    let target = snapshot.map(|wanted| select(path, &settings, wanted)).transpose()?;
    let mut disks = Disks::new(&folder, &settings);
    let uses = Uses::of(&settings, &mut disks)?;

    let mut listing = Listing::default();
    let at = |location: &str| Place::new(&folder, &folder, Path::new(location));
    let own = Place::new(&folder, &folder, Path::new(path.file_name().unwrap_or(path.as_os_str())));
    listing.need(&own, FileRole::Settings, None);
    let wanted = target.map_or(&settings.current, |index| &settings.snapshots[index].state);
    need_disks(&mut listing, wanted, &mut disks)?;
    for (place, role) in state_files(wanted, at) {
        listing.need(&place, role, None);
    }

    for (index, disk) in disks.iter() {
        listing.leave_out(&disk.place, disk.role, disks.parent_of(disk), &uses.why(index));
    }
    for (name, state) in states(&settings) {
        let why = format!("belongs to {name} only");
        for (place, role) in state_files(state, at) {
            listing.leave_out(&place, role, None, &why);
        }
    }
    leave_out_rest(&mut listing, &folder, &own, &settings);
    Ok(report(&folder, &settings, target, listing))
}

/// The UUID, without braces, of the machine that `path`, a `.vbox`, describes; names of machines are not unique.
///
/// # Errors
/// The `.vbox` cannot be read or understood, or has none.
pub fn machine_uuid(path: &Path) -> Result<String, FilesError> {
    let uuid = Settings::read(path)?.uuid;
    uuid.map(|uuid| uuid.plain()).ok_or_else(|| FilesError::damaged(path, "its machine has no UUID"))
}

/// The hard disks that are attached to a machine, by their UUIDs without braces, in the order of the `.vbox`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Attached {
    /// To each snapshot, by its UUID.
    pub snapshots: BTreeMap<String, Vec<String>>,
    /// Is an image in a drive for CDs or floppy disks, now?
    pub has_removable: bool,
}

/// What is attached to the machine that `path`, a `.vbox`, describes.
///
/// # Errors
/// The `.vbox` cannot be read or understood.
pub fn attached(path: &Path) -> Result<Attached, FilesError> {
    let settings = Settings::read(path)?;
    let disks = |state: &State| {
        let disks = state.images.iter().filter(|(_, removable)| !removable);
        disks.map(|(uuid, _)| uuid.plain()).collect()
    };
    let snapshots = settings.snapshots.iter().map(|snapshot| (snapshot.uuid.plain(), disks(&snapshot.state)));
    let has_removable = settings.current.images.iter().any(|(_, removable)| *removable);
    Ok(Attached { snapshots: snapshots.collect(), has_removable })
}

fn report(folder: &Path, settings: &Settings, target: Option<usize>, listing: Listing) -> FileReport {
    let node = |snapshot: &settings::Snapshot| SnapshotNode {
        id: snapshot.uuid.plain(),
        name: snapshot.name.clone(),
        parent: snapshot.parent.map(|parent| settings.snapshots[parent].uuid.plain()),
        taken: snapshot.taken.clone(),
        ram: snapshot.state.saved.is_some(),
    };
    let mut report = FileReport {
        vm: settings.name.clone(),
        kind: StoreKind::Virtualbox,
        folder: folder.to_string_lossy().into_owned(),
        target: target.map(|index| settings.snapshots[index].uuid.plain()),
        current: settings.current_snapshot.map(|uuid| uuid.plain()),
        snapshots: settings.snapshots.iter().map(node).collect(),
        needed: Vec::new(),
        not_needed: Vec::new(),
        missing: Vec::new(),
        totals: Totals::default(),
    };
    listing.finish(&mut report);
    report
}

/// The snapshot with this UUID, or else with this name.
fn select(path: &Path, settings: &Settings, wanted: &str) -> Result<usize, FilesError> {
    let uuid = Uuid::parse(wanted);
    let snapshots = || settings.snapshots.iter().enumerate();
    if let Some((index, _)) = snapshots().find(|(_, snapshot)| Some(snapshot.uuid) == uuid) {
        return Ok(index);
    }
    let named: Vec<usize> =
        snapshots().filter(|(_, snapshot)| snapshot.name == wanted).map(|(index, _)| index).collect();
    let (path, wanted) = (path.to_owned(), wanted.to_owned());
    match named[..] {
        [index] => Ok(index),
        [] => {
            let names = settings.snapshots.iter().map(|snapshot| format!("{:?}", snapshot.name));
            Err(FilesError::NoSnapshot { path, wanted, known: first_few(names, settings.snapshots.len()) })
        }
        _ => {
            let uuids = named.iter().map(|index| settings.snapshots[*index].uuid.plain());
            let known = first_few(uuids, named.len());
            Err(FilesError::Ambiguous { path, wanted, count: named.len(), known })
        }
    }
}

/// The first of `count` texts, for an error.
pub(crate) fn first_few(texts: impl Iterator<Item = String>, count: usize) -> String {
    const SHOWN: usize = 10;
    let shown: Vec<String> = texts.take(SHOWN).collect();
    match count.checked_sub(SHOWN) {
        _ if count == 0 => "none".to_owned(),
        None | Some(0) => shown.join(", "),
        Some(more) => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Every snapshot and the current state, with what a person calls it.
fn states(settings: &Settings) -> impl Iterator<Item = (String, &State)> {
    let current = std::iter::once(("the current state".to_owned(), &settings.current));
    current.chain(settings.snapshots.iter().map(|snapshot| (snapshot.name.clone(), &snapshot.state)))
}

/// What a state consists of besides disks.
fn state_files(state: &State, at: impl Fn(&str) -> Place) -> Vec<(Place, FileRole)> {
    let saved = state.saved.as_deref().map(|file| (at(file), FileRole::SavedState));
    let nvram = state.nvram.as_deref().map(|file| (at(file), FileRole::Nvram));
    let nvram = nvram.filter(|(place, _)| state.efi || place.path.exists());
    saved.into_iter().chain(nvram).collect()
}

fn need_disks(listing: &mut Listing, state: &State, disks: &mut Disks) -> Result<(), FilesError> {
    const LOST: &str = "no file and no registry beside this machine tells of this disk, so it belongs to a base that another \
                        machine has registered (multiattach, linked clone): put that machine's folder beside this one";
    for (uuid, removable) in &state.images {
        let Some(index) = disks.find(*uuid) else {
            let role = if *removable { FileRole::Removable } else { FileRole::DifferenceDisk };
            listing.lack(uuid.braced(), role, None, LOST);
            continue;
        };
        let (chain, lost) = disks.chain(index)?;
        for index in &chain {
            let disk = disks.get(*index);
            listing.need(&disk.place, disk.role, disks.parent_of(disk));
        }
        if let Some(lost) = lost {
            listing.lack(lost.braced(), FileRole::BaseDisk, None, LOST);
        }
    }
    Ok(())
}

/// Which snapshots go through which disk.
struct Uses {
    /// For each disk the first names, and how many there are.
    users: Vec<(Vec<String>, usize)>,
}

impl Uses {
    fn of(settings: &Settings, disks: &mut Disks) -> Result<Self, FilesError> {
        let mut users: Vec<(Vec<String>, usize)> = Vec::new();
        for (name, state) in states(settings) {
            for (uuid, _) in &state.images {
                let Some(index) = disks.find(*uuid) else { continue };
                let (chain, _) = disks.chain(index)?;
                users.resize_with(users.len().max(disks.iter().count()), Default::default);
                for index in chain {
                    let (names, count) = &mut users[index];
                    if names.len() < NAMED_USERS {
                        names.push(name.clone());
                    }
                    *count += 1;
                }
            }
        }
        users.resize_with(disks.iter().count(), Default::default);
        Ok(Self { users })
    }

    fn why(&self, disk: usize) -> String {
        let (names, count) = &self.users[disk];
        match count - names.len() {
            _ if *count == 0 => "no snapshot of this machine refers to it".to_owned(),
            0 => format!("belongs to {} only", names.join(", ")),
            more => format!("belongs to {} and {more} more only", names.join(", ")),
        }
    }
}

/// What lies with the machine and is in no snapshot: what a restore leaves behind, logs, the settings before the last change.
fn leave_out_rest(listing: &mut Listing, folder: &Path, own: &Place, settings: &Settings) {
    let earlier = Place::new(folder, folder, Path::new(&format!("{}-prev", own.shown)));
    if earlier.path.exists() {
        listing.leave_out(&earlier, FileRole::Settings, None, "the settings before the last change");
    }
    let snapshots = settings.snapshot_folder.as_str();
    for (inside, why) in [(snapshots, "no snapshot refers to it"), ("Logs", "a log")] {
        let inside = Place::new(folder, folder, Path::new(inside)).path;
        // A folder elsewhere, or the machine's own, has files of others too.
        if inside == folder || !inside.starts_with(folder) {
            continue;
        }
        // What cannot be listed cannot be needed: whatever is needed was looked at by its name.
        for name in names_in(&inside).unwrap_or_default() {
            listing.leave_out(&Place::new(folder, &inside, &name), FileRole::Other, None, why);
        }
    }
}

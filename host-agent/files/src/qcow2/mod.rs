//! qcow2. An image holds the differences from its backing file; a restore needs the image and all files below it. Internal
//! snapshots lie in the image's own file, so each of them needs the same files as its current state.

mod header;

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use unasnap_protocol::files::{FileReport, FileRole, SnapshotNode, StoreKind, Totals};

use self::header::{Header, Image, Internal};
use crate::error::FilesError;
use crate::listing::{Listing, names_in};
use crate::place::{Place, folder_of};
use crate::vbox::first_few;

/// Longest chain that is followed; QEMU itself runs out of files before.
const MAX_CHAIN: usize = 2048;
/// Most files beside the image that are looked into.
const MAX_NEIGHBOURS: usize = 4096;

/// The files of the image `path`, for restoring `snapshot` (name or number of an internal one), or its current state.
///
/// # Errors
/// The image or one below it cannot be read or understood, the chain goes in a circle or has no end, or there is no such
/// snapshot, or several.
pub fn track(path: &Path, snapshot: Option<&str>) -> Result<FileReport, FilesError> {
    let folder = folder_of(path).map_err(FilesError::unreadable(path))?;
    let top = Place::new(&folder, &folder, Path::new(path.file_name().unwrap_or(path.as_os_str())));
    let image = Image::open(path)?.ok_or_else(|| FilesError::Foreign {
        path: path.to_owned(),
        format: "qcow2 image",
        what: "it does not begin with the bytes of one".to_owned(),
        instead: "the newest image of a chain",
    })?;
    let internal = image.internal(&image.header()?)?;
    let target = snapshot.map(|wanted| select(path, &internal, wanted)).transpose()?;

    let chain = Chain::follow(&folder, top)?;
    let mut listing = Listing::default();
    chain.need(&mut listing);
    leave_out_relatives(&mut listing, &folder, &chain);
    let mut report = FileReport {
        vm: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        kind: StoreKind::Qcow2,
        folder: folder.to_string_lossy().into_owned(),
        target: target.map(|index| internal[index].id.clone()),
        current: None,
        snapshots: internal.into_iter().map(node).collect(),
        needed: Vec::new(),
        not_needed: Vec::new(),
        missing: Vec::new(),
        totals: Totals::default(),
    };
    listing.finish(&mut report);
    Ok(report)
}

/// Files that an image needs besides itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// One that holds what this one does not. Whoever opens the image may name another.
    pub backing: bool,
    /// One that holds the guest's data.
    pub data_file: bool,
}

/// Does the image `path` need others? `None` when it is no qcow2 image.
///
/// # Errors
/// It cannot be read or understood.
pub fn needs(path: &Path) -> Result<Option<Needs>, FilesError> {
    let header = Image::open(path)?.map(|image| image.header()).transpose()?;
    let needs =
        |header: Header| Needs { backing: header.backing.is_some(), data_file: header.data_file.is_some() };
    Ok(header.map(needs))
}

/// Length of the disk in the image `path`, bytes. `None` when it is no qcow2 image.
///
/// # Errors
/// It cannot be read or understood.
pub fn virtual_bytes(path: &Path) -> Result<Option<u64>, FilesError> {
    let header = Image::open(path)?.map(|image| image.header()).transpose()?;
    Ok(header.map(|header| header.virtual_bytes))
}

/// An image in the same folder that holds differences from `path`, or its data in it, if there is one.
///
/// # Errors
/// The folder cannot be read.
pub fn built_on(path: &Path) -> Result<Option<PathBuf>, FilesError> {
    let folder = folder_of(path).map_err(FilesError::unreadable(path))?;
    let identity = |path: &Path| path.metadata().map(|metadata| (metadata.dev(), metadata.ino())).ok();
    let wanted = identity(path);
    for name in names_in(&folder).map_err(FilesError::unreadable(&folder))?.into_iter().take(MAX_NEIGHBOURS) {
        let place = Place::new(&folder, &folder, &name);
        // A neighbour that cannot be read tells nothing.
        let Ok(Some(image)) = Image::open(&place.path) else { continue };
        let Ok(header) = image.header() else { continue };
        let named = [header.backing, header.data_file.flatten()].into_iter().flatten();
        let mut meant = named.filter_map(|name| Some(Place::new(&folder, &folder, &local(&name).ok()?).path));
        if meant.any(|meant| wanted.is_some() && identity(&meant) == wanted) {
            return Ok(Some(place.path));
        }
    }
    Ok(None)
}

fn node(internal: Internal) -> SnapshotNode {
    let taken = Timestamp::from_second(internal.taken.into()).ok().map(|time| time.to_string());
    SnapshotNode { id: internal.id, name: internal.name, parent: None, taken, ram: internal.ram }
}

/// The snapshot with this number, or else with this name.
fn select(path: &Path, internal: &[Internal], wanted: &str) -> Result<usize, FilesError> {
    if let Some(index) = internal.iter().position(|snapshot| snapshot.id == wanted) {
        return Ok(index);
    }
    let named: Vec<usize> = (0..internal.len()).filter(|index| internal[*index].name == wanted).collect();
    let (path, wanted) = (path.to_owned(), wanted.to_owned());
    match named[..] {
        [index] => Ok(index),
        [] => {
            let names = internal.iter().map(|snapshot| format!("{:?}", snapshot.name));
            Err(FilesError::NoSnapshot { path, wanted, known: first_few(names, internal.len()) })
        }
        _ => {
            let ids = named.iter().map(|index| internal[*index].id.clone());
            let known = first_few(ids, named.len());
            Err(FilesError::Ambiguous { path, wanted, count: named.len(), known })
        }
    }
}

/// An image and everything below it.
struct Chain {
    /// The newest first; each with what holds its data, if that is another file.
    images: Vec<(Place, Option<Data>)>,
    /// What ends the chain before its base, in words.
    broken: Option<(String, String)>,
}

/// Where the guest's data of an image is.
enum Data {
    File(Place),
    Unknown,
}

impl Chain {
    fn follow(folder: &Path, top: Place) -> Result<Self, FilesError> {
        let mut chain = Self { images: Vec::new(), broken: None };
        let mut seen = HashSet::new();
        let mut next = Some((top.clone(), true));
        while let Some((place, may_have_parent)) = next.take() {
            if chain.images.len() == MAX_CHAIN {
                return Err(FilesError::TooDeep { path: top.path, limit: MAX_CHAIN });
            }
            // What is not there, or is no file, is told by the listing.
            let metadata = place.path.metadata().ok().filter(|metadata| metadata.is_file());
            if let Some(metadata) = &metadata
                && !seen.insert((metadata.dev(), metadata.ino()))
            {
                return Err(FilesError::Cycle { path: place.path });
            }
            let image = if metadata.is_some() && may_have_parent { Image::open(&place.path)? } else { None };
            let header = image.map(|image| image.header()).transpose()?.unwrap_or_default();
            let from = place.path.parent().unwrap_or(Path::new("/")).to_owned();
            let data = header.data_file.as_ref().map(|name| match name.as_deref().map(local) {
                Some(Ok(name)) => Data::File(Place::new(folder, &from, &name)),
                _ => Data::Unknown,
            });
            chain.images.push((place, data));
            match header.backing.as_deref().map(local) {
                None => {}
                Some(Ok(name)) => {
                    next = Some((Place::new(folder, &from, &name), may_be_qcow2(&header)));
                }
                Some(Err(name)) => {
                    let why = "its name means no file of this machine; QEMU alone can reach it".to_owned();
                    chain.broken = Some((name, why));
                }
            }
        }
        Ok(chain)
    }

    fn need(&self, listing: &mut Listing) {
        for (at, (place, data)) in self.images.iter().enumerate() {
            let parent = self.images.get(at + 1).map(|(parent, _)| parent);
            let base = parent.is_none() && self.broken.is_none();
            let role = if base { FileRole::BaseDisk } else { FileRole::DifferenceDisk };
            listing.need(place, role, parent);
            match data {
                None => {}
                Some(Data::File(data)) => listing.need(data, FileRole::DiskData, Some(place)),
                Some(Data::Unknown) => {
                    let name = format!("data file of {}", place.shown);
                    let why =
                        "the image keeps its data in another file, and its header names none of this machine";
                    listing.lack(name, FileRole::DiskData, Some(place), why);
                }
            }
        }
        if let Some((name, why)) = &self.broken {
            listing.lack(name.clone(), FileRole::BaseDisk, None, why);
        }
    }
}

/// Is it worth looking for a parent of the backing file? A raw disk could have a guest's bytes at its start that look like
/// an image's and name any file of the host.
fn may_be_qcow2(header: &Header) -> bool {
    header.backing_format.as_deref().is_none_or(|format| format == "qcow2")
}

/// The file that a name in a header means, or the name when it means something else: `nbd://...`, `json:{...}`.
fn local(name: &[u8]) -> Result<PathBuf, String> {
    let name = name.strip_prefix(b"file:").unwrap_or(name);
    let protocol =
        name.iter().position(|byte| matches!(byte, b':' | b'/')).is_some_and(|at| name[at] == b':');
    if protocol || name.is_empty() || name.contains(&0) {
        return Err(String::from_utf8_lossy(name).into_owned());
    }
    Ok(PathBuf::from(OsStr::from_bytes(name)))
}

/// Images beside this one that lie on the same chain: newer ones, and other branches.
fn leave_out_relatives(listing: &mut Listing, folder: &Path, chain: &Chain) {
    let mut children: BTreeMap<PathBuf, Vec<Place>> = BTreeMap::new();
    for name in names_in(folder).unwrap_or_default().into_iter().take(MAX_NEIGHBOURS) {
        let place = Place::new(folder, folder, &name);
        // A neighbour that cannot be read tells nothing: it is not the one that was asked about.
        let Ok(Some(image)) = Image::open(&place.path) else { continue };
        let Ok(Header { backing: Some(backing), .. }) = image.header() else { continue };
        let Ok(backing) = local(&backing) else { continue };
        children.entry(Place::new(folder, folder, &backing).path).or_default().push(place);
    }
    let mut family: Vec<Place> = chain.images.iter().map(|(place, _)| place.clone()).collect();
    while let Some(parent) = family.pop() {
        // Taken out, so that neighbours in a circle are listed once.
        for child in children.remove(&parent.path).unwrap_or_default() {
            let why = format!("holds later differences from {}", parent.shown);
            listing.leave_out(&child, FileRole::DifferenceDisk, Some(&parent), &why);
            family.push(child);
        }
    }
}

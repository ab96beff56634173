//! The files of a machine: which belong to a cut, how they get into a local snapshot and out of it.
//!
//! A local snapshot holds the unedited `.vbox` as it was in the pause, the saved RAM, and every difference disk on the way down to
//! the bases. The bases stay where they are. `layout.json` says where each file lay, relative to the machine's folder.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use unasnap_files::vbox;
use unasnap_protocol::files::{FileReport, FileRole as Tracked, NeededFile, SnapshotNode};

use super::super::HypervisorError;
use crate::store::files;
use crate::store::manifest::{FileRole, SavedFile};

/// What the driver's own snapshots are called in VirtualBox while a cut is saved.
pub const CUT: &str = "unasnap cut";
/// What the snapshot is called below which the base disks are never written again.
pub const BASE: &str = "unasnap base";
/// The `.vbox` in a local snapshot.
pub const SETTINGS_FILE: &str = "machine.vbox";
/// The [`Layout`] in a local snapshot.
pub const LAYOUT_FILE: &str = "layout.json";
/// How much is copied until it is looked whether anybody still wants it.
const STRIDE_BYTES: u64 = 64 << 20;

/// Where the files of a local snapshot lay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// UUID of VirtualBox's snapshot.
    pub snapshot: String,
    /// Name in the local snapshot, and place relative to the machine's folder.
    pub places: Vec<(String, String)>,
    /// Places of the bases, in the manifest's order: relative to the machine's folder, or absolute.
    pub bases: Vec<String>,
}

/// A machine by its `.vbox`.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The `.vbox`.
    pub vbox: PathBuf,
}

impl Machine {
    /// Its UUID.
    ///
    /// # Errors
    /// The `.vbox` cannot be read; so for all of these.
    pub fn uuid(&self) -> Result<String, HypervisorError> {
        vbox::machine_uuid(&self.vbox).map_err(|error| unsupported(error.to_string()))
    }

    fn track(&self, snapshot: Option<&str>) -> Result<FileReport, HypervisorError> {
        vbox::track(&self.vbox, snapshot).map_err(|error| unsupported(error.to_string()))
    }

    /// The folder to which places are relative.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.vbox.parent().unwrap_or(Path::new("/"))
    }

    /// UUIDs of the snapshots that cuts have left, children first.
    pub fn cuts(&self) -> Result<Vec<String>, HypervisorError> {
        let snapshots = self.track(None)?.snapshots;
        Ok(snapshots.into_iter().rev().filter(is_cut).map(|node| node.id).collect())
    }

    /// UUID of the cut that was just taken: the current state goes on from it.
    pub fn taken(&self) -> Result<String, HypervisorError> {
        let report = self.track(None)?;
        let current = report.snapshots.iter().find(|node| Some(&node.id) == report.current.as_ref());
        current.filter(|node| is_cut(node)).map(|node| node.id.clone()).ok_or_else(|| {
            unsupported(format!("{} does not list the snapshot that was just taken", self.vbox.display()))
        })
    }

    /// Disks that the machine writes although no snapshot has frozen them.
    pub fn written_bases(&self) -> Result<Vec<String>, HypervisorError> {
        let needed = self.track(None)?.needed;
        let is_below = |base: &NeededFile| needed.iter().any(|file| file.parent.as_ref() == Some(&base.path));
        let bases = needed.iter().filter(|file| file.role == Tracked::BaseDisk && !is_below(file));
        Ok(bases.map(|base| base.path.clone()).collect())
    }

    /// The files of each disk as it is now, from the base upwards.
    pub fn disks(&self) -> Result<Vec<Vec<PathBuf>>, HypervisorError> {
        let report = self.track(None)?;
        let is_disk = |role: Tracked| matches!(role, Tracked::BaseDisk | Tracked::DifferenceDisk);
        if let Some(lost) = report.missing.iter().find(|file| is_disk(file.role)) {
            return Err(unsupported(format!("{} lacks {}: {}", self.vbox.display(), lost.path, lost.why)));
        }
        let disks: Vec<&NeededFile> = report.needed.iter().filter(|file| is_disk(file.role)).collect();
        let is_below =
            |file: &NeededFile| disks.iter().any(|other| other.parent.as_ref() == Some(&file.path));
        let mut chains = Vec::new();
        for top in disks.iter().filter(|file| !is_below(file)) {
            let (mut chain, mut next) = (Vec::new(), Some(top));
            while let Some(file) = next {
                chain.insert(0, self.folder().join(&file.path));
                next = disks.iter().find(|other| Some(&other.path) == file.parent.as_ref());
            }
            chains.push(chain);
        }
        Ok(chains)
    }

    /// Refuses a machine of which a cut would not hold everything.
    pub fn check(&self) -> Result<(), HypervisorError> {
        let written = self.written_bases()?;
        if !written.is_empty() {
            return Err(unsupported(format!(
                "the machine writes {} itself, so no snapshot can hold it: power the machine off and let unasnap start it; \
                 a writethrough disk has to be made a normal one (VBoxManage modifymedium disk FILE --type normal)",
                written.join(", ")
            )));
        }
        let report = self.track(None)?;
        let outside = report.needed.iter().find(|file| is_copied(file.role) && !is_inside(&file.path));
        match outside {
            None => Ok(()),
            Some(file) => Err(unsupported(format!(
                "{} lies outside the machine's folder {}: keep its snapshot folder inside (VBoxManage modifyvm VM --snapshotfolder default)",
                file.path, report.folder
            ))),
        }
    }

    /// Refuses a machine of unasnap's own of which a restore would not bring everything.
    pub fn check_own(&self) -> Result<(), HypervisorError> {
        match self.disks()?.len() {
            1 => Ok(()),
            disks => Err(unsupported(format!(
                "the machine was made with one disk and has {disks}: detach the others (VBoxManage storageattach)"
            ))),
        }
    }

    /// Bytes of the difference disks as they are now.
    pub fn difference_bytes(&self) -> Result<u64, HypervisorError> {
        let needed = self.track(None)?.needed;
        let disks = needed.iter().filter(|file| file.role == Tracked::DifferenceDisk);
        Ok(disks.map(|file| file.bytes).sum())
    }

    /// Puts the files of snapshot `cut` into `target`, durably, where the `.vbox` is already; answers them and the places of the
    /// bases. What VirtualBox will merge later is copied; saved RAM, which is written once, becomes a second name of the same file.
    pub fn collect(
        &self,
        cut: &str,
        target: &Path,
        given_up: &AtomicBool,
    ) -> Result<(Vec<SavedFile>, Vec<String>), HypervisorError> {
        let report = self.track(Some(cut))?;
        if let Some(lost) = report.missing.first() {
            return Err(unsupported(format!("the snapshot of VirtualBox lacks {}: {}", lost.path, lost.why)));
        }
        let mut layout = Layout { snapshot: cut.to_owned(), places: Vec::new(), bases: Vec::new() };
        let mut saved = vec![(SETTINGS_FILE.to_owned(), FileRole::Settings)];
        for file in &report.needed {
            let role = match file.role {
                Tracked::Settings => continue,
                Tracked::SavedState => FileRole::SavedState,
                Tracked::DifferenceDisk => FileRole::DifferenceDisk,
                Tracked::Nvram => FileRole::Nvram,
                _ => {
                    layout.bases.push(file.path.clone());
                    continue;
                }
            };
            let name = plain(&file.path);
            if !is_inside(&file.path) || saved.iter().any(|(other, _)| *other == name) {
                return Err(unsupported(format!(
                    "{} cannot be kept beside the machine's other files",
                    file.path
                )));
            }
            let (from, to) = (self.folder().join(&file.path), target.join(&name));
            let put = match role {
                FileRole::SavedState => files::link_or_copy(&from, &to),
                _ => copy(&from, &to, given_up),
            };
            put.map_err(HypervisorError::file("copy", &from))?;
            layout.places.push((name.clone(), file.path.clone()));
            saved.push((name, role));
        }
        let path = target.join(LAYOUT_FILE);
        let text = serde_json::to_vec_pretty(&layout).map_err(io::Error::from);
        text.and_then(|text| files::write_durably(&path, &text))
            .map_err(HypervisorError::file("write", &path))?;
        saved.push((LAYOUT_FILE.to_owned(), FileRole::Layout));
        for (name, _) in &saved {
            let path = target.join(name);
            files::sync(&path).map_err(HypervisorError::file("flush", &path))?;
        }
        files::sync(target).map_err(HypervisorError::file("flush", target))?;
        let listed = saved.into_iter().map(|(name, role)| SavedFile { name, role, blake3: None });
        Ok((listed.collect(), layout.bases))
    }

    /// Removes what the current state and cuts consist of, and no other snapshot: a restore replaces it.
    pub fn remove_own(&self) -> Result<(), HypervisorError> {
        if !self.vbox.exists() {
            return Ok(());
        }
        let report = self.track(None)?;
        let (cuts, others): (Vec<_>, Vec<_>) = report.snapshots.iter().partition(|node| is_cut(node));
        // What is missing is gone already.
        let files = |report: FileReport| report.needed.into_iter().filter(|file| is_copied(file.role));
        let paths = |nodes: &[&SnapshotNode]| {
            let mut paths = BTreeSet::new();
            for node in nodes {
                paths.extend(files(self.track(Some(&node.id))?).map(|file| file.path));
            }
            Ok::<_, HypervisorError>(paths)
        };
        let (mut own, kept) = (paths(&cuts)?, paths(&others)?);
        own.extend(files(report).map(|file| file.path));
        for path in own.difference(&kept).filter(|path| is_inside(path)) {
            let path = self.folder().join(path);
            files::remove_if_there(&path).map_err(HypervisorError::file("delete", &path))?;
        }
        Ok(())
    }

    /// Puts the files of a local snapshot in their places; the `.vbox` comes last. The machine is as it was in VirtualBox's snapshot, and
    /// has none any more, if it is to come `as_saved`; otherwise the `.vbox` is what it was. Where there are settings `instead`, these count
    /// and not those of the snapshot.
    pub fn lay_out(
        &self,
        saved: &Path,
        layout: &Layout,
        as_saved: bool,
        instead: Option<&str>,
    ) -> Result<(), HypervisorError> {
        let wanted = AtomicBool::new(false);
        for (name, place) in &layout.places {
            if !is_inside(place) || !is_inside(name) {
                return Err(unsupported(format!(
                    "the snapshot names {place:?}, which lies outside its machine"
                )));
            }
            let (from, to) = (saved.join(name), self.folder().join(place));
            let folder = to.parent().unwrap_or(Path::new("/"));
            std::fs::create_dir_all(folder).map_err(HypervisorError::file("create", folder))?;
            files::remove_if_there(&to).map_err(HypervisorError::file("delete", &to))?;
            // VirtualBox will change or delete what it is given, and the snapshot stays as it is.
            copy(&from, &to, &wanted).map_err(HypervisorError::file("copy", &from))?;
        }
        let path = saved.join(SETTINGS_FILE);
        let text = match instead {
            // What snapshots it had stays where it comes from.
            Some(text) => vbox::as_saved_alone(text, &layout.snapshot),
            None => {
                let text = std::fs::read_to_string(&path).map_err(HypervisorError::file("read", &path))?;
                if as_saved { vbox::as_saved(&text, &layout.snapshot) } else { Ok(text) }
            }
        };
        let text = text.map_err(|why| unsupported(format!("{} is damaged: {why}", path.display())))?;
        std::fs::create_dir_all(self.folder()).map_err(HypervisorError::file("create", self.folder()))?;
        files::write_durably(&self.vbox, text.as_bytes()).map_err(HypervisorError::file("write", &self.vbox))
    }
}

impl Layout {
    /// Of a local snapshot.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(saved: &Path) -> Result<Self, HypervisorError> {
        let path = saved.join(LAYOUT_FILE);
        let text = std::fs::read(&path).map_err(HypervisorError::file("read", &path))?;
        let parsed: Result<Self, _> = serde_json::from_slice(&text);
        parsed.map_err(io::Error::from).map_err(HypervisorError::file("understand", &path))
    }
}

fn is_cut(node: &SnapshotNode) -> bool {
    node.name == CUT
}

fn is_copied(role: Tracked) -> bool {
    matches!(role, Tracked::SavedState | Tracked::DifferenceDisk | Tracked::Nvram)
}

/// Does a place lie in the machine's folder?
fn is_inside(place: &str) -> bool {
    Path::new(place).components().all(|part| matches!(part, Component::Normal(_)))
}

/// The last part of a place, in the alphabet of the store: `{1cd7...}.vdi` has braces.
fn plain(place: &str) -> String {
    let name = Path::new(place).file_name().unwrap_or_default().to_string_lossy();
    let letters = name.chars().filter(|letter| !"{}".contains(*letter));
    let plain =
        |letter: char| if letter.is_ascii_alphanumeric() || "._-".contains(letter) { letter } else { '-' };
    letters.map(plain).collect::<String>().trim_start_matches('.').to_owned()
}

/// Copies until nobody wants it any more. The kernel copies by reference where the file system can.
fn copy(from: &Path, to: &Path, given_up: &AtomicBool) -> io::Result<()> {
    let (from, mut to) = (File::open(from)?, File::create(to)?);
    while !given_up.load(Ordering::Relaxed) {
        if io::copy(&mut (&from).take(STRIDE_BYTES), &mut to)? == 0 {
            return Ok(());
        }
    }
    Err(io::Error::other("the snapshot was given up"))
}

fn unsupported(what: String) -> HypervisorError {
    HypervisorError::Unsupported { what }
}

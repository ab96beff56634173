//! Sorts files into needed, not needed and missing, each once.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use unasnap_protocol::files::{FileReport, FileRole, NeededFile, OtherFile, Totals};

use crate::place::Place;

/// Most names of a folder that are looked at.
pub const MAX_NAMES: usize = 100_000;

/// The files of a report while they are found. What is needed comes first: a file that stands in a list already is not
/// entered again.
#[derive(Default)]
pub struct Listing {
    known: HashSet<PathBuf>,
    needed: Vec<NeededFile>,
    not_needed: Vec<OtherFile>,
    missing: Vec<OtherFile>,
}

impl Listing {
    /// The target consists of this file too.
    pub fn need(&mut self, place: &Place, role: FileRole, parent: Option<&Place>) {
        if !self.known.insert(place.path.clone()) {
            return;
        }
        let (path, parent) = (place.shown.clone(), parent.map(|parent| parent.shown.clone()));
        match length(&place.path) {
            Ok(bytes) => self.needed.push(NeededFile { path, role, bytes, parent }),
            Err(why) => self.missing.push(OtherFile { path, role, bytes: None, parent, why }),
        }
    }

    /// The target consists of something for which no file is known.
    pub fn lack(&mut self, path: String, role: FileRole, parent: Option<&Place>, why: &str) {
        let parent = parent.map(|parent| parent.shown.clone());
        if self.missing.iter().all(|other| other.path != path) {
            self.missing.push(OtherFile { path, role, bytes: None, parent, why: why.to_owned() });
        }
    }

    /// The target does not need this file.
    pub fn leave_out(&mut self, place: &Place, role: FileRole, parent: Option<&Place>, why: &str) {
        if !self.known.insert(place.path.clone()) {
            return;
        }
        let (bytes, why) = match length(&place.path) {
            Ok(bytes) => (Some(bytes), why.to_owned()),
            Err(state) => (None, format!("{why}; {state}")),
        };
        let (path, parent) = (place.shown.clone(), parent.map(|parent| parent.shown.clone()));
        self.not_needed.push(OtherFile { path, role, bytes, parent, why });
    }

    /// Enters what was found.
    pub fn finish(self, report: &mut FileReport) {
        report.totals = Totals::of(&self.needed, &self.not_needed, &self.missing);
        report.needed = self.needed;
        report.not_needed = self.not_needed;
        report.missing = self.missing;
    }
}

/// Length of a regular file, or in words why there is none.
fn length(path: &Path) -> Result<u64, String> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(metadata.len()),
        Ok(_) => Err("it is no regular file".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err("it is not there".to_owned()),
        Err(error) => Err(format!("it cannot be looked at: {error}")),
    }
}

/// Names in a folder, sorted; none when there is no such folder.
pub fn names_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let listed = match fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        listed => listed?,
    };
    let names = listed.take(MAX_NAMES).map(|entry| entry.map(|entry| entry.file_name().into()));
    let mut names: Vec<PathBuf> = names.collect::<io::Result<_>>()?;
    names.sort();
    Ok(names)
}

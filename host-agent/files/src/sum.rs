//! Several VMs together, for instance all of a deployment.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use unasnap_protocol::files::{FileReport, Totals};

use crate::place::without_dots;

/// Adds up reports. A file that several VMs share counts once, and as needed if one of them needs it.
#[must_use]
pub fn sum(reports: &[FileReport]) -> Totals {
    let mut known = HashSet::new();
    let mut is_new = |report: &FileReport, path: &str| -> bool {
        let place: PathBuf = without_dots(&Path::new(&report.folder).join(path));
        known.insert(place)
    };
    let (mut needed, mut missing, mut not_needed) = (Vec::new(), Vec::new(), Vec::new());
    for report in reports {
        needed.extend(report.needed.iter().filter(|file| is_new(report, &file.path)).cloned());
        missing.extend(report.missing.iter().filter(|file| is_new(report, &file.path)).cloned());
    }
    for report in reports {
        not_needed.extend(report.not_needed.iter().filter(|file| is_new(report, &file.path)).cloned());
    }
    Totals::of(&needed, &not_needed, &missing)
}

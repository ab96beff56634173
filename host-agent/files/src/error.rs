//! Why nothing can be said about a VM's files.

use std::io;
use std::path::{Path, PathBuf};

/// Why nothing can be said about a VM's files: what failed, why, what to do.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The file cannot be read.
    #[error("cannot read {path:?}: {source}; give a file that is there, as the user to whom it belongs")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not of the format that was asked for.
    #[error("{path:?} is no {format}: {what}; give {instead}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// `qcow2 image` ...
        format: &'static str,
        /// How it differs.
        what: String,
        /// What to give instead.
        instead: &'static str,
    },
    /// The file is of its format, and wrong.
    #[error("{path:?} is damaged: {what}; take an intact copy of it")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How.
        what: String,
    },
    /// A chain comes back to where it was.
    #[error(
        "the chain of disks goes in a circle: {path:?} is its own ancestor, so none of them can be used; restore the chain \
         from a backup, or name the right parent (qemu-img rebase -u -b PARENT)"
    )]
    Cycle {
        /// The first disk that came twice.
        path: PathBuf,
    },
    /// A chain has no end.
    #[error(
        "the chain below {path:?} has more than {limit} disks; merge some of them (qemu-img commit, or delete snapshots)"
    )]
    TooDeep {
        /// Where it begins.
        path: PathBuf,
        /// The most that is followed.
        limit: usize,
    },
    /// No such snapshot.
    #[error("{path:?} has no snapshot {wanted:?}; it has {known}")]
    NoSnapshot {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// Those that it has.
        known: String,
    },
    /// Several snapshots of one name.
    #[error(
        "{count} snapshots of {path:?} are called {wanted:?}; give one of their UUIDs or numbers: {known}"
    )]
    Ambiguous {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// How many.
        count: usize,
        /// Those that have the name.
        known: String,
    },
}

impl FilesError {
    pub(crate) fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Unreadable { path, source }
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), what: what.into() }
    }
}

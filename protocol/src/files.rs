//! What the file tracker says: which files a VM at one of its snapshots consists of. The structs are also what
//! `unasnap files --json` prints, so their fields are named for programs.

use serde::{Deserialize, Serialize};

/// The files of one VM, sorted by whether a restore of the target on another host needs them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileReport {
    /// Name of the VM; of a chain of images the name of its newest.
    pub vm: String,
    /// Who wrote the files.
    pub kind: StoreKind,
    /// What the paths below are relative to. A path that is absolute or begins with `..` lies outside.
    pub folder: String,
    /// The snapshot that is to be restored; `None` is the current state.
    pub target: Option<String>,
    /// The snapshot that the current state goes on from.
    pub current: Option<String>,
    /// All snapshots, each before its children.
    pub snapshots: Vec<SnapshotNode>,
    /// What the target consists of.
    pub needed: Vec<NeededFile>,
    /// What other snapshots consist of, and what nobody refers to.
    pub not_needed: Vec<OtherFile>,
    /// What the target consists of and is not there.
    pub missing: Vec<OtherFile>,
    /// All of it added up.
    pub totals: Totals,
}

/// Who wrote the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreKind {
    /// VirtualBox: a `.vbox`, its disks and saved states.
    Virtualbox,
    /// A chain of qcow2 images.
    Qcow2,
}

/// A snapshot in the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotNode {
    /// Unique in the VM: VirtualBox's UUID, qcow2's number.
    pub id: String,
    /// What people call it; need not be unique.
    pub name: String,
    /// Its parent's `id`.
    pub parent: Option<String>,
    /// When it was taken, RFC 3339, as far as it is known.
    pub taken: Option<String>,
    /// Does it hold RAM, or disks only?
    pub ram: bool,
}

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileRole {
    /// The VM's definition and its tree of snapshots.
    Settings,
    /// RAM, or RAM and devices.
    SavedState,
    /// Variables of the firmware.
    Nvram,
    /// A disk without a parent: many VMs may share it.
    BaseDisk,
    /// A disk that holds the differences from its parent.
    DifferenceDisk,
    /// The content of an image that keeps its index only.
    DiskData,
    /// A CD, DVD or floppy disk.
    Removable,
    /// Something else that lies with the VM.
    Other,
}

impl FileRole {
    /// As it stands in the JSON.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::SavedState => "saved-state",
            Self::Nvram => "nvram",
            Self::BaseDisk => "base-disk",
            Self::DifferenceDisk => "difference-disk",
            Self::DiskData => "disk-data",
            Self::Removable => "removable",
            Self::Other => "other",
        }
    }
}

/// A file that the target consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeededFile {
    /// Relative to the report's folder.
    pub path: String,
    /// What it is for.
    pub role: FileRole,
    /// Its length.
    pub bytes: u64,
    /// Path of the disk whose differences it holds.
    pub parent: Option<String>,
}

/// A file that is left out, or that is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherFile {
    /// Relative to the report's folder.
    pub path: String,
    /// What it is for.
    pub role: FileRole,
    /// Its length; `None` when it is not there.
    pub bytes: Option<u64>,
    /// Path of the disk whose differences it holds.
    pub parent: Option<String>,
    /// Why it is not needed, or what is wrong.
    pub why: String,
}

/// Files added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Files that are there.
    pub files: u64,
    /// Their lengths.
    pub bytes: u64,
    /// Of those, files that are needed.
    pub needed_files: u64,
    /// Their lengths.
    pub needed_bytes: u64,
    /// What is left of `needed_bytes` for a host that has the base disks already.
    pub needed_without_base_bytes: u64,
    /// Files that are missing.
    pub missing_files: u64,
}

impl Totals {
    /// Adds up files.
    #[must_use]
    pub fn of(needed: &[NeededFile], not_needed: &[OtherFile], missing: &[OtherFile]) -> Self {
        let needed_bytes = needed.iter().map(|file| file.bytes).fold(0, u64::saturating_add);
        let bases = needed.iter().filter(|file| file.role == FileRole::BaseDisk).map(|file| file.bytes);
        let left_out: Vec<_> = not_needed.iter().filter_map(|file| file.bytes).collect();
        Self {
            files: (needed.len() + left_out.len()) as u64,
            bytes: left_out.iter().fold(needed_bytes, |sum, bytes| sum.saturating_add(*bytes)),
            needed_files: needed.len() as u64,
            needed_bytes,
            needed_without_base_bytes: needed_bytes - bases.fold(0, u64::saturating_add),
            missing_files: missing.len() as u64,
        }
    }
}

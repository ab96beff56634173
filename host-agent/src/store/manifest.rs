//! `manifest.json`: what a local snapshot is and which files it consists of.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use unasnap_protocol::name::Name;

use crate::definition::VmDefinition;

/// Version of the folder's layout and of the manifest that this build writes and reads.
pub const FORMAT: u32 = 2;
/// Name of the manifest in a snapshot's folder.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Largest manifest that is read, bytes.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;

/// The manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of unasnap that wrote it.
    pub unasnap: String,
    /// What was snapshotted and for whom.
    pub identity: Identity,
    /// The hypervisor that ran the VM.
    pub hypervisor: Facts,
    /// Every file of the folder but the manifest; the layers of a disk stand from the oldest to the newest.
    pub files: Vec<ManifestFile>,
    /// The images below the oldest layers. They stay where the operator keeps them.
    pub bases: Vec<BaseImage>,
}

/// Which cut of which VM a local snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The global snapshot.
    pub snapshot: Name,
    /// The deployment.
    pub deployment: Name,
    /// The epoch that the cut ended.
    pub epoch: u64,
    /// The VM as it was defined at the cut.
    pub definition: VmDefinition,
}

/// What a hypervisor is and how it takes snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// `qemu` or `virtualbox`.
    pub kind: String,
    /// Its own version text.
    pub version: String,
    /// Versioned machine type, e.g. `pc-i440fx-10.0`: a restore uses the same one.
    pub machine: String,
    /// What runs the guest's instructions.
    pub accel: Accel,
    /// How RAM is taken.
    pub ram_way: RamWay,
}

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
    /// What VirtualBox chooses, the processor where it can.
    #[serde(rename = "virtualbox")]
    VirtualBox,
}

impl Accel {
    /// As configuration and reports write it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::VirtualBox => "virtualbox",
        }
    }
}

/// How the RAM of a VM gets its instant, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RamWay {
    /// RAM is copied before the pause, and what changed meanwhile in it.
    Live,
    /// The VM stands still until everything is written.
    StopAndSave,
}

impl RamWay {
    /// All, best first.
    pub const ALL: [Self; 2] = [Self::Live, Self::StopAndSave];

    /// As configuration and reports write it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::StopAndSave => "stop-and-save",
        }
    }
}

/// One file of a local snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Name in the folder.
    pub name: String,
    /// What it is for.
    pub role: FileRole,
    /// Length, bytes.
    pub size: u64,
    /// BLAKE3 of its content, 64 hex digits.
    pub blake3: String,
}

/// What a file of a local snapshot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileRole {
    /// RAM and device state as one migration stream.
    MigrationStream,
    /// RAM byte by byte; pages of zeros are holes.
    Ram,
    /// Device state without RAM.
    DeviceState,
    /// A qcow2 layer of the disk with this index; its backing file is the layer before it.
    DiskLayer(usize),
    /// VirtualBox: the machine's `.vbox`.
    Settings,
    /// VirtualBox: RAM and device state.
    SavedState,
    /// VirtualBox: what was written above a disk's parent.
    DifferenceDisk,
    /// VirtualBox: variables of the firmware.
    Nvram,
    /// VirtualBox: where the files lay.
    Layout,
}

/// An image that the operator keeps and no snapshot copies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseImage {
    /// Where it was at the cut.
    pub path: PathBuf,
    /// Its length, bytes.
    pub size: u64,
    /// Its modification time, Unix time, ns: while this and `size` stay, the digest is not computed again.
    pub modified: i64,
    /// BLAKE3 of its content, 64 hex digits.
    pub blake3: String,
}

/// What a driver reports when a cut is saved; the store makes a manifest of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The hypervisor.
    pub hypervisor: Facts,
    /// The files that it put into the folder.
    pub files: Vec<SavedFile>,
    /// See [`Manifest::bases`].
    pub bases: Vec<BaseImage>,
}

/// A file that a driver put into the folder, already durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedFile {
    /// Name in the folder.
    pub name: String,
    /// What it is for.
    pub role: FileRole,
    /// Its digest where the driver knows it from an earlier snapshot.
    pub blake3: Option<String>,
}

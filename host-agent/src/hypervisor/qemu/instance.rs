//! What the driver remembers of a VM between two lives of the host agent: `instance.json` and the files
//! beside it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use unasnap_protocol::name::Name;

use super::super::HypervisorError;
use super::super::process::Process;
use crate::store::files::write_durably;
use crate::store::manifest::{BaseImage, Facts};

/// Longest path of a unix socket, bytes (`sun_path` less its final zero).
const MAX_SOCKET_PATH: usize = 107;

/// `<state_dir>/vms/<name>/`.
#[derive(Debug, Clone)]
pub(super) struct VmFolder {
    /// The folder.
    pub root: PathBuf,
    /// Socket of the monitor.
    pub qmp: PathBuf,
    /// Socket of the guest channel.
    pub guest: PathBuf,
    /// What the guest writes to its serial console, over all lives of the VM; begun anew when it is large.
    pub console: PathBuf,
    /// What QEMU itself says.
    pub log: PathBuf,
    /// Written by QEMU when it has daemonized.
    pub pid_file: PathBuf,
    /// The overlays.
    pub disks: PathBuf,
}

impl VmFolder {
    pub(super) fn new(state_dir: &Path, vm: &Name) -> Self {
        let root = state_dir.join("vms").join(vm.as_str());
        let inside = |name: &str| root.join(name);
        Self {
            qmp: inside("qmp.sock"),
            guest: inside("guest.sock"),
            console: inside("console.log"),
            log: inside("qemu.log"),
            pid_file: inside("qemu.pid"),
            disks: inside("disks"),
            root,
        }
    }

    /// Makes the folder, and sees to it that its sockets can be bound.
    pub(super) fn create(&self) -> Result<(), HypervisorError> {
        let length = self.guest.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            let path = self.guest.display();
            let what = format!(
                "the socket path {path} has {length} bytes, Linux allows {MAX_SOCKET_PATH}: use a shorter state folder or VM name"
            );
            return Err(HypervisorError::Unsupported { what });
        }
        std::fs::create_dir_all(&self.disks).map_err(HypervisorError::file("create", &self.disks))
    }

    fn record(&self) -> PathBuf {
        self.root.join("instance.json")
    }
}

/// The record of a VM's present or last life.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Instance {
    /// `None` from just before the process is made until it is known.
    pub process: Option<Process>,
    /// Which start or restore this is.
    pub incarnation: u64,
    /// How it was started; a later cut goes by this, not by what the driver would choose today.
    pub facts: Facts,
    /// RAM, bytes.
    pub memory_bytes: u64,
    /// Its tap devices.
    pub taps: Vec<String>,
    /// Its disks.
    pub disks: Vec<Chain>,
    /// Restored and not resumed yet: a paused VM is then as it should be.
    pub awaits_resume: bool,
    /// Stopped because its host was cut off, and to stay so.
    #[serde(default)]
    pub fenced: bool,
    /// Stopped by an operator, and to stay so.
    #[serde(default)]
    pub paused: bool,
    /// No process was made since its active layers were: they are empty.
    #[serde(default)]
    pub untouched: bool,
}

/// The layers of one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Chain {
    /// The operator's image. Its digest is empty until the first snapshot needs it.
    pub base: BaseImage,
    /// From the oldest to the one that the VM writes to; never empty.
    pub layers: Vec<Layer>,
    /// The overlay of the cut under way. After a crash of the host it is the right one to go on with,
    /// whether or not the VM had been switched to it: its backing file is the last of `layers`.
    pub next: Option<Layer>,
}

/// One qcow2 file in the disks folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layer {
    /// `disk0-0003.qcow2`.
    pub file: String,
    /// Known once the layer is frozen and has been in a snapshot.
    pub blake3: Option<String>,
}

impl Layer {
    pub(super) fn new(disk: usize, number: u32) -> Self {
        Self { file: format!("disk{disk}-{number:04}.qcow2"), blake3: None }
    }

    /// Name of its node in QEMU's block graph.
    pub(super) fn node(&self) -> &str {
        self.file.trim_end_matches(".qcow2")
    }

    /// Its number within the disk.
    fn number(&self) -> u32 {
        self.node().rsplit('-').next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
    }
}

impl Chain {
    /// The layer that the VM writes to.
    pub(super) fn active(&self) -> &Layer {
        self.layers.last().expect("a chain begins with one layer and never loses its last")
    }

    /// A layer above the active one.
    pub(super) fn following(&self, disk: usize) -> Layer {
        Layer::new(disk, self.active().number() + 1)
    }
}

impl Instance {
    /// Reads the record; `None` when the VM never ran here.
    pub(super) fn read(folder: &VmFolder) -> Result<Option<Self>, HypervisorError> {
        let path = folder.record();
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(HypervisorError::file("read", &path))?,
        };
        let parsed: Result<Self, _> = serde_json::from_slice(&text);
        let instance =
            parsed.map_err(std::io::Error::from).map_err(HypervisorError::file("understand", &path))?;
        if instance.disks.iter().any(|chain| chain.layers.is_empty()) {
            let error = std::io::Error::other("a disk without a layer");
            return Err(HypervisorError::file("understand", &path)(error));
        }
        Ok(Some(instance))
    }

    /// Replaces the record, durably.
    pub(super) fn write(&self, folder: &VmFolder) -> Result<(), HypervisorError> {
        let path = folder.record();
        let text = serde_json::to_vec_pretty(self).map_err(std::io::Error::from);
        text.and_then(|text| write_durably(&path, &text)).map_err(HypervisorError::file("write", &path))
    }

    /// The process of this instance, if it lives; also the one that was made just before an agent died.
    pub(super) fn living(&self, folder: &VmFolder) -> Option<Process> {
        match self.process {
            Some(process) => process.is_alive().then_some(process),
            None => Process::from_pid_file(&folder.pid_file, &folder.pid_file.to_string_lossy()),
        }
    }
}

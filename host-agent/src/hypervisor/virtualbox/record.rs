//! What the driver remembers of a VM between two lives of the host agent: `virtualbox.json` in the VM's folder.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use unasnap_protocol::name::Name;

use super::super::HypervisorError;
use crate::definition::VmDefinition;
use crate::store::files::{remove_folder, write_durably};
use crate::store::manifest::BaseImage;

/// Longest path of a unix socket, bytes.
const MAX_SOCKET_PATH: usize = 107;
/// By its name a console's socket differs from that of a guest channel, wherever it is.
pub const CONSOLE_SOCKET: &str = "console.sock";

/// The path of a socket, for settings.
///
/// # Errors
/// It is longer than sockets' paths are.
pub fn socket_path(socket: &Path) -> Result<String, HypervisorError> {
    let (length, path) = (socket.as_os_str().len(), socket.to_string_lossy());
    if length <= MAX_SOCKET_PATH {
        return Ok(path.into_owned());
    }
    let what = format!(
        "the socket path {path} has {length} bytes, Linux allows {MAX_SOCKET_PATH}: use a shorter state folder or VM name"
    );
    Err(HypervisorError::Unsupported { what })
}

/// The record of a VM's present or last life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The machine's UUID.
    pub uuid: String,
    /// Which start or restore this is.
    pub incarnation: u64,
    /// Restored and not resumed yet: a machine that stands still is then as it should be.
    pub awaits_resume: bool,
    /// Stopped because its host was cut off, and to stay so.
    pub fenced: bool,
    /// Stopped by an operator, and to stay so.
    #[serde(default)]
    pub paused: bool,
    /// The bases of its disks, once their digests are known.
    pub bases: Vec<BaseImage>,
    /// The machine is unasnap's own: it goes with the VM.
    #[serde(default)]
    pub made: bool,
}

/// The `.vbox` of a machine that unasnap makes: VirtualBox calls folder and file as the machine.
#[must_use]
pub fn own_machine(state_dir: &Path, vm: &Name) -> PathBuf {
    VmFolder::new(state_dir, vm).machine()
}

/// `<state_dir>/vms/<name>/`.
#[derive(Debug, Clone)]
pub struct VmFolder {
    path: PathBuf,
    machine: PathBuf,
}

impl VmFolder {
    /// Of this VM.
    #[must_use]
    pub fn new(state_dir: &Path, vm: &Name) -> Self {
        let path = state_dir.join("vms").join(vm.as_str());
        Self { machine: path.join(format!("{vm}.vbox")), path }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Of a VM whose machine is unasnap's own.
    #[must_use]
    pub fn of_machine(vm: &VmDefinition) -> Self {
        let machine = vm.machine.clone().unwrap_or_default();
        Self { path: machine.parent().map(Path::to_owned).unwrap_or_default(), machine }
    }

    /// See [`own_machine`].
    #[must_use]
    pub fn machine(&self) -> PathBuf {
        self.machine.clone()
    }

    /// Where the guest channel is, if the machine has none of its own.
    #[must_use]
    pub fn guest_channel(&self) -> PathBuf {
        self.path.join("guest.sock")
    }

    /// Where the guest channel is that `guestcontrol` carries.
    #[must_use]
    pub fn relay(&self) -> PathBuf {
        self.path.join("guestcontrol.sock")
    }

    /// What is on its way into the guest.
    #[must_use]
    pub fn request(&self) -> PathBuf {
        self.path.join("guestcontrol.request")
    }

    /// Where the serial console is of a machine that unasnap has made.
    #[must_use]
    pub fn console_socket(&self) -> PathBuf {
        self.path.join(CONSOLE_SOCKET)
    }

    /// What was written to it.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// The disk that other hosts may fetch, as another name of the file.
    #[must_use]
    pub fn frozen(&self) -> PathBuf {
        self.path.join("frozen")
    }

    fn record(&self) -> PathBuf {
        self.path.join("virtualbox.json")
    }

    /// Reads the record; `None` when the VM never ran here.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn read(&self) -> Result<Option<Record>, HypervisorError> {
        let path = self.record();
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(HypervisorError::file("read", &path))?,
        };
        let parsed: Result<Record, _> = serde_json::from_slice(&text);
        parsed.map(Some).map_err(std::io::Error::from).map_err(HypervisorError::file("understand", &path))
    }

    /// Removes all of it; success when there is nothing.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(&self) -> Result<(), HypervisorError> {
        remove_folder(&self.path).map_err(HypervisorError::file("delete", &self.path))
    }

    /// Replaces the record, durably.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, record: &Record) -> Result<(), HypervisorError> {
        std::fs::create_dir_all(&self.path).map_err(HypervisorError::file("create", &self.path))?;
        let path = self.record();
        let text = serde_json::to_vec_pretty(record).map_err(std::io::Error::from);
        text.and_then(|text| write_durably(&path, &text)).map_err(HypervisorError::file("write", &path))
    }
}

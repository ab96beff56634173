//! RAM by a migration that never leaves: copied while the guest runs, the last changes in the pause.
//!
//! ```text
//!   prepare   migrate fd:  ── everything once, then what changed, again and again (see `receiver`)
//!   cut       stop, disks, devices ── QEMU sends what is still different ── "pre-switchover": the instant
//!             migrate_cancel, cont ── the guest runs on, nothing is tracked any more
//!   save      the file is flushed
//! ```
//! So the pause does not depend on the size of RAM, only on what the guest changes in the last milliseconds,
//! and nothing slows the guest down afterwards. Three of QEMU's settings make it work:
//!
//! - `switchover-ack`: a running guest is not switched over before its destination agrees, which we never do; a
//!   stopped one is, at once (QEMU's `migration_can_switchover`).
//! - `pause-before-switchover`: at that point QEMU waits, and with a threshold below one page it comes there
//!   only when a last look at the dirty pages has found none.
//! - the devices are saved beside it (`xen-save-devices-state`), so the migration need not go on.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{setsockopt, sockopt::SndBuf};
use serde_json::{Value, json};

use super::image::Image;
use super::receiver::{Pace, ReceiveError, Receiver};
use super::{DEVICES_FILE, RAM_FILE};
use crate::hypervisor::HypervisorError;
use crate::hypervisor::process::Process;
use crate::hypervisor::qemu::qmp::Qmp;
use crate::hypervisor::qemu::urgency::Behind;
use crate::store::files::write_durably;

/// How long the first copy may take; at its bounded rate that is enough for 200 GiB that are not zero.
const COPY_PATIENCE: Duration = Duration::from_secs(400);
/// QEMU computes its threshold from our settings 100 ms after the start; before that it would be 0.
const THRESHOLD_KNOWN: Duration = Duration::from_millis(150);
/// Between two questions how far it is: each is work for the thread that serves the guest's devices.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// How often QEMU must have looked for dirty pages: at the start, after everything was copied, and once more.
const LOOKS: u64 = 3;
/// How long what is still different may take to be sent.
const PAUSE_PATIENCE: Duration = Duration::from_millis(3500);
/// Room in QEMU's end of the socket: while it is read all the time, and while QEMU is to sleep soon.
const WIDE_BYTES: usize = 1 << 20;
const NARROW_BYTES: usize = 4 << 10;
/// Number under which QEMU knows the file for the devices; always the same, so that a cut which was given up leaves nothing
/// that the next one does not find.
const DEVICES_FDSET: u32 = 1;
/// Most bytes of device state; it has about 0.1 MB.
const MAX_DEVICES_BYTES: u64 = 256 << 20;

/// What must be on, and what off.
const CAPABILITIES: [(&str, bool); 5] = [
    ("background-snapshot", false),
    ("return-path", true),
    ("switchover-ack", true),
    ("pause-before-switchover", true),
    ("events", true),
];

/// Sets QEMU up; fails with QEMU's words where it is too old (before 8.2).
pub(super) async fn configure(qmp: &Qmp) -> Result<(), HypervisorError> {
    let capabilities: Vec<Value> = CAPABILITIES
        .iter()
        .map(|(capability, state)| json!({"capability": capability, "state": state}))
        .collect();
    qmp.execute("migrate-set-capabilities", json!({"capabilities": capabilities})).await?;
    // The threshold is the product of the last two: 1000 bytes, less than one page.
    let parameters =
        json!({"max-bandwidth": 1_u64 << 50, "downtime-limit": 1, "avail-switchover-bandwidth": 1_000_000});
    qmp.execute("migrate-set-parameters", parameters).await.map(drop)
}

/// A copy of RAM that is kept up to date until the cut.
#[derive(Debug)]
pub(in crate::hypervisor::qemu) struct Precopy {
    receiver: Receiver,
    /// QEMU's threads that send it, once it has made them.
    senders: Option<Behind>,
    /// QEMU's end of the socket, to change its size.
    qemu_end: UnixStream,
    folder: PathBuf,
    /// Device state goes to memory first: making a file in the pause may have to wait for other writers.
    devices: File,
}

impl Precopy {
    /// Begins the copy into `folder`.
    pub(super) async fn begin(qmp: &Qmp, folder: &Path, memory_bytes: u64) -> Result<Self, HypervisorError> {
        configure(qmp).await?;
        let path = folder.join(RAM_FILE);
        let file = File::options().write(true).create_new(true).open(&path);
        let file = file.map_err(HypervisorError::file("create", &path))?;
        let (ours, qemu_end) =
            UnixStream::pair().map_err(HypervisorError::file("make a socket for", &path))?;
        let image = Image::new(file, memory_bytes).map_err(HypervisorError::file("size", &path))?;
        let receiver = Receiver::start(ours, image).map_err(HypervisorError::file("start writing", &path))?;
        let (devices, writable) =
            memory_file().map_err(HypervisorError::file("make a file in memory for", folder))?;
        Self::forget_file(qmp).await?;
        qmp.execute_with_fd("add-fd", json!({"fdset-id": DEVICES_FDSET}), writable).await?;
        let precopy = Self { receiver, senders: None, qemu_end, folder: folder.to_owned(), devices };
        precopy.set_room(WIDE_BYTES);
        let handed = precopy.qemu_end.as_fd().try_clone_to_owned();
        let handed = handed.map_err(HypervisorError::file("make a socket for", &path))?;
        qmp.execute_with_fd("getfd", json!({"fdname": "ram"}), handed).await?;
        qmp.execute("migrate", json!({"uri": "fd:ram"})).await?;
        Ok(precopy)
    }

    /// Waits for the first copy; from then on it is kept up to date.
    pub(super) async fn catch_up(
        &mut self,
        qmp: &Qmp,
        process: &Process,
        vm: &str,
    ) -> Result<(), HypervisorError> {
        let begun = Instant::now();
        loop {
            if self.senders.is_none() {
                self.senders = Behind::senders(process);
            }
            let info = self.check(qmp, vm).await?;
            let looks = info["ram"]["dirty-sync-count"].as_u64().unwrap_or(0);
            if looks >= LOOKS && begun.elapsed() >= THRESHOLD_KNOWN {
                break;
            }
            if begun.elapsed() > COPY_PATIENCE {
                let what = "the first copy of its RAM".to_owned();
                return Err(HypervisorError::TimedOut { vm: vm.to_owned(), what, after: COPY_PATIENCE });
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        self.receiver.set(Pace::Hold);
        self.set_room(NARROW_BYTES);
        Ok(())
    }

    /// Fails if the copy has ended.
    pub(super) async fn check(&self, qmp: &Qmp, vm: &str) -> Result<Value, HypervisorError> {
        let info = qmp.execute("query-migrate", json!({})).await?;
        let status = info["status"].as_str().unwrap_or_default();
        if matches!(status, "setup" | "active") && !self.receiver.has_failed() {
            return Ok(info);
        }
        let words = info["error-desc"].as_str().unwrap_or(status).to_owned();
        let reason =
            if self.receiver.has_failed() { "its bytes could not be written".to_owned() } else { words };
        Err(HypervisorError::Refused { vm: vm.to_owned(), command: "copying its RAM".to_owned(), reason })
    }

    /// Why the copy ended by itself, if it did.
    pub(super) fn failure(self) -> Option<HypervisorError> {
        if !self.receiver.has_failed() {
            return None;
        }
        let path = self.folder.join(RAM_FILE);
        self.receiver.finish().err().map(|error| written(error, &path))
    }

    /// The cut may come at any moment: from now on the copy is at most some milliseconds old.
    pub(super) fn draw_near(&self) {
        self.senders.iter().for_each(Behind::come_back);
        self.receiver.set(Pace::Near);
    }

    /// The VM stands still: QEMU is to be able to send everything at once. Not earlier: it would look for changes again and
    /// again, and on a busy host nobody else would come to run.
    pub(super) fn open_wide(&self) {
        self.set_room(WIDE_BYTES);
        self.receiver.set(Pace::Drain);
    }

    /// What saves the devices.
    pub(super) fn save_devices() -> (&'static str, Value) {
        let file = format!("/dev/fdset/{DEVICES_FDSET}");
        ("xen-save-devices-state", json!({"filename": file, "live": false}))
    }

    /// Waits, in the pause, until QEMU has sent every page.
    pub(super) async fn all_sent(&self, qmp: &Qmp, vm: &str) -> Result<(), HypervisorError> {
        match tokio::time::timeout(PAUSE_PATIENCE, qmp.migration_status("pre-switchover")).await {
            Ok(result) => result,
            Err(_) => Err(HypervisorError::TimedOut {
                vm: vm.to_owned(),
                what: "sending the last changes of its RAM".to_owned(),
                after: PAUSE_PATIENCE,
            }),
        }
    }

    /// Makes everything durable; blocks.
    pub(super) fn save(self) -> Result<(), HypervisorError> {
        let Self { receiver, folder, mut devices, .. } = self;
        let (ram, file) = (folder.join(RAM_FILE), folder.join(DEVICES_FILE));
        let mut received = receiver.finish().map_err(|error| written(error, &ram))?;
        let mut state = Vec::new();
        let read = devices.rewind().and_then(|()| devices.take(MAX_DEVICES_BYTES).read_to_end(&mut state));
        read.map_err(HypervisorError::file("read", &file))?;
        let stream = received.complete(&state).map_err(|error| written(error, &ram))?;
        write_durably(&file, &stream).map_err(HypervisorError::file("write", &file))
    }

    /// Makes QEMU forget the file for the devices, if it knows one.
    pub(super) async fn forget_file(qmp: &Qmp) -> Result<(), HypervisorError> {
        match qmp.execute("remove-fd", json!({"fdset-id": DEVICES_FDSET})).await {
            // There may be none.
            Ok(_) | Err(HypervisorError::Refused { .. }) => Ok(()),
            Err(other) => Err(other),
        }
    }

    fn set_room(&self, bytes: usize) {
        // More or less room makes the copy faster or slower, never wrong.
        if let Err(error) = setsockopt(&self.qemu_end, SndBuf, &bytes) {
            tracing::debug!(%error, "the migration socket keeps its size");
        }
    }
}

fn written(error: ReceiveError, path: &Path) -> HypervisorError {
    HypervisorError::file("write", path)(io::Error::other(error))
}

/// A file in memory, and a descriptor for QEMU that can only write it.
fn memory_file() -> io::Result<(File, OwnedFd)> {
    let file = File::from(memfd_create("devices", MFdFlags::MFD_CLOEXEC)?);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let writable = File::options().write(true).open(path)?;
    Ok((file, writable.into()))
}

//! What unasnap asks of a hypervisor, and the drivers that answer.
//!
//! Two traits: [`Hypervisor`] makes, finds and ends instances on this host; [`Vm`] is one living instance.
//! The life of a cut, seen from the caller:
//!
//! ```text
//!   prepare_cut ──▶ arm_cut ──▶ cut ──▶ save ──▶ (the next prepare_cut)
//!        │             │         │        │
//!        └─────────────┴─────────┴────────┴──▶ discard_cut      legal at any moment, any number of times
//! ```
//!
//! Every method is bounded in time and its future may be dropped at any await; [`Vm::discard_cut`] then puts
//! the VM in order. The traits are object-safe (boxed futures), so that drivers for other hypervisors and an
//! in-memory one for tests stand behind the same `Box<dyn Vm>`.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use serde::Serialize;
use unasnap_protocol::name::Name;

use crate::definition::VmDefinition;
use crate::guest_channel::Pace;
use crate::store::Placed;
use crate::store::manifest::{BaseImage, Facts, Manifest, Saved};

pub(crate) mod base_image;
mod process;
pub mod qemu;
pub mod virtualbox;

/// What every asynchronous method of a driver returns.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, HypervisorError>> + Send + 'a>>;

/// What the caller does in the pause of a cut: the atomic flip of protocol.md section 3, which takes microseconds and
/// keeps its own result, and the wait for the other members.
pub struct InPause<'a> {
    /// Called as soon as the VM stands still: until it resumes no frame goes into it or comes out of it.
    pub stopped: Box<dyn FnOnce() + Send + 'a>,
    /// Called when the RAM's instant is fixed: what is changed in RAM now is not in the snapshot.
    pub fixed: Box<dyn FnOnce() + Send + 'a>,
    /// Awaited before the VM resumes; it bounds itself.
    pub run_on: Pin<Box<dyn Future<Output = ()> + Send + 'a>>,
}

impl InPause<'_> {
    /// Nothing.
    #[must_use]
    pub fn nothing() -> Self {
        Self { stopped: Box::new(|| {}), fixed: Box::new(|| {}), run_on: Box::pin(async {}) }
    }
}

/// A hypervisor of this host.
pub trait Hypervisor: Send + Sync {
    /// What was probed when the driver was opened: version, accelerator, way of taking RAM.
    fn about(&self) -> &Facts;

    /// Boots `vm`, going on with the disks of its last run if there was one, and under that run's incarnation if it was
    /// higher: a VM's incarnation never goes back. Refused while an instance lives.
    fn start<'a>(&'a self, vm: &'a VmDefinition, incarnation: u64) -> Pending<'a, Box<dyn Vm>>;

    /// Takes charge of an instance that outlived its host agent, ending any cut that was under way; `None`
    /// when none lives.
    fn adopt<'a>(&'a self, vm: &'a VmDefinition) -> Pending<'a, Option<Box<dyn Vm>>>;

    /// Loads a local snapshot and leaves the VM paused. Refused while an instance lives: destroy it first.
    /// The snapshot is not changed and can be restored again.
    fn restore<'a>(
        &'a self,
        vm: &'a VmDefinition,
        saved: SavedVm<'a>,
        incarnation: u64,
    ) -> Pending<'a, Box<dyn Vm>>;

    /// Ends the instance of the VM of this name, whatever state it is in, and returns once it is known to be
    /// dead. Success when there is none. The disks of the VM stay.
    fn destroy<'a>(&'a self, vm: &'a Name) -> Pending<'a, ()>;

    /// Makes the disks of a VM that has never run here, and starts nothing. What lies here under its name is deleted
    /// first. Its first boot will be of this incarnation.
    fn make<'a>(&'a self, vm: &'a VmDefinition, ground: Ground<'a>, incarnation: u64) -> Pending<'a, ()>;

    /// Deletes everything that is kept of the VM of this name but its snapshots. Refused while an instance lives;
    /// success when there is nothing.
    fn forget<'a>(&'a self, vm: &'a Name) -> Pending<'a, ()>;

    /// Fixes what the disks of a VM hold that does not run: it goes on with new layers, and those below are not written any
    /// more. Repeated without a run in between, it answers the same.
    fn freeze<'a>(&'a self, vm: &'a VmDefinition) -> Pending<'a, FrozenDisks>;

    /// The files of each disk of a VM as it is now, from the operator's image upwards.
    ///
    /// # Errors
    /// What is remembered of it cannot be read.
    fn disk_files(&self, vm: &VmDefinition) -> Result<Vec<Vec<PathBuf>>, HypervisorError>;

    /// Where what the VM writes to its serial console is kept, whether it runs or not. It begins anew when it is large;
    /// what was in it before is beside it, as `.old`. `None` where nothing is kept.
    fn console(&self, _vm: &Name) -> Option<PathBuf> {
        None
    }
}

/// What the disks of a new VM hold.
#[derive(Debug, Clone, Copy)]
pub enum Ground<'a> {
    /// The images that its definition names. Of those that are known here no digest has to be computed.
    Bases(&'a [BaseImage]),
    /// What the disks of this VM hold now. It does not run, and keeps them.
    DisksOf(&'a VmDefinition),
    /// What the disks of a VM of another host held when they were frozen there.
    Frozen(SavedVm<'a>),
}

/// What the disks of a VM hold that does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrozenDisks {
    /// Where the files lie that are not written any more.
    pub folder: PathBuf,
    /// These files, a disk's from the oldest layer to the newest, and the images below them.
    pub saved: Saved,
}

/// One living instance of a VM.
pub trait Vm: Send {
    /// Which start or restore of the VM this is.
    fn incarnation(&self) -> u64;

    /// Unix socket behind the guest's virtio-serial port `org.unasnap.guest.0`; with VirtualBox behind its serial port, or what stands
    /// for one.
    fn guest_channel_path(&self) -> &Path;

    /// What may be asked of that channel.
    fn guest_channel_pace(&self) -> Pace {
        Pace::PORT
    }

    /// The host's network devices behind the VM's NICs, in the order of its definition.
    fn host_interfaces(&self) -> &[String];

    /// Opens the VM's RAM, for changing a word of it in a pause.
    ///
    /// # Errors
    /// The hypervisor keeps it where the host cannot reach it.
    fn ram(&self) -> Result<Box<dyn GuestRam>, HypervisorError>;

    /// Asks the hypervisor.
    fn state(&mut self) -> Pending<'_, VmState>;

    /// Upper bound of what a cut writes to the disk, bytes: RAM, device state, slack of the disks' overlays.
    fn space_needed(&self) -> u64;

    /// Does everything that can be done before the instant: the overlay of every disk is created and opened.
    /// `folder` exists, is empty and receives the files of the cut.
    fn prepare_cut<'a>(&'a mut self, folder: &'a Path) -> Pending<'a, ()>;

    /// Brings what was prepared up to date, as close to the cut as the caller can: what is written now is not
    /// written in the pause. The VM runs.
    fn arm_cut(&mut self) -> Pending<'_, ()>;

    /// The cut: stop the vCPUs, switch the disks, fix the RAM's instant, resume, and what the caller has to do in
    /// between. On an error the VM has been told to run on, and `in_pause` may or may not have been called.
    fn cut<'a>(&'a mut self, in_pause: InPause<'a>) -> Pending<'a, CutTimes>;

    /// Completes when every byte of the cut is in the folder and durable; the VM runs meanwhile.
    fn save(&mut self) -> Pending<'_, Saved>;

    /// Gives up whatever was prepared, cut or half saved: its files are deleted and the VM runs on.
    fn discard_cut(&mut self) -> Pending<'_, ()>;

    /// Stops the VM, durably: an agent that adopts it does not let it run either. Nothing else changes.
    fn fence(&mut self) -> Pending<'_, ()>;

    /// Was it stopped by [`fence`](Self::fence)?
    fn is_fenced(&self) -> bool;

    /// Takes [`fence`](Self::fence) back: the VM runs on, unless it was paused, or waits for its restore to end.
    fn lift_fence(&mut self) -> Pending<'_, ()>;

    /// Lets a restored or paused VM run.
    fn resume(&mut self) -> Pending<'_, ()>;

    /// Stops the vCPUs, durably, until [`resume`](Self::resume): the end of a cut or an agent that adopts it does not let
    /// it run on.
    fn pause(&mut self) -> Pending<'_, ()>;

    /// Was it restored, and not resumed since?
    fn awaits_resume(&self) -> bool;

    /// Presses the power button. The guest decides what that means; the instance ends when it has shut down.
    fn press_power(&mut self) -> Pending<'_, ()>;
}

/// The RAM of one VM, by guest-physical address, and nothing else of the host.
pub trait GuestRam: Send + Sync {
    /// Fills `bytes` with what stands at `at`.
    ///
    /// # Errors
    /// Not all of it is RAM of this VM, or it is gone.
    fn read(&self, at: u64, bytes: &mut [u8]) -> std::io::Result<()>;

    /// Writes `bytes` at `at`.
    ///
    /// # Errors
    /// As [`read`](Self::read); nothing was written then.
    fn write(&self, at: u64, bytes: &[u8]) -> std::io::Result<()>;
}

/// A local snapshot on this host, verified by the caller.
#[derive(Debug, Clone, Copy)]
pub struct SavedVm<'a> {
    /// The folder with its files.
    pub folder: &'a Path,
    /// Its manifest.
    pub manifest: &'a Manifest,
    /// How it is to be here, if it came from another host; `None` when it was taken here.
    pub here: Option<&'a Placed>,
}

/// What an instance is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// The vCPUs run.
    Running,
    /// They stand still: restored and not resumed, or in the middle of a cut.
    Paused,
    /// Stopped by the hypervisor because the host could not write a disk (usually: it is full).
    IoError,
    /// The process has ended.
    Dead,
}

/// When the steps of one cut happened. Instants are the clock's of the control channel, ns. The pause is measured from outside, from
/// before the command that stops the VM until after the one that resumes it: an upper bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CutTimes {
    /// The vCPUs were told to stop.
    pub stopped_at: u64,
    /// Disks and RAM were fixed.
    pub instant: u64,
    /// The vCPUs were running again.
    pub resumed_at: u64,
    /// Steps within the pause with what each took, ns, in order.
    pub parts: Vec<(&'static str, u64)>,
}

impl CutTimes {
    /// How long the vCPUs stood still at most.
    #[must_use]
    pub fn pause(&self) -> Duration {
        Duration::from_nanos(self.resumed_at.saturating_sub(self.stopped_at))
    }
}

/// Why a driver could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// The hypervisor answered a command with an error.
    #[error("VM {vm}: {command} was refused: {reason}")]
    Refused {
        /// The VM.
        vm: String,
        /// The hypervisor's command.
        command: String,
        /// Its words.
        reason: String,
    },
    /// Something did not happen in time.
    #[error("VM {vm}: {what} did not finish within {} ms", after.as_millis())]
    TimedOut {
        /// The VM.
        vm: String,
        /// What was waited for.
        what: String,
        /// For how long.
        after: Duration,
    },
    /// The hypervisor's process has ended, or does not talk to us.
    #[error("VM {vm}: the hypervisor is gone ({what}); its last words may be in {}", log.display())]
    Gone {
        /// The VM.
        vm: String,
        /// What was being done.
        what: String,
        /// Where its output went.
        log: PathBuf,
    },
    /// The request does not fit what the VM is doing.
    #[error("VM {vm}: cannot {wanted}: {why}")]
    WrongState {
        /// The VM.
        vm: String,
        /// What was asked for.
        wanted: &'static str,
        /// What stands in the way and what to do.
        why: String,
    },
    /// A program of the host failed.
    #[error("`{command}` failed: {reason}")]
    Tool {
        /// Program and arguments.
        command: String,
        /// Its error output, or why it could not run.
        reason: String,
    },
    /// The host cannot do it at all.
    #[error("{what}")]
    Unsupported {
        /// What is missing and what to do.
        what: String,
    },
    /// A file could not be read or written.
    #[error("cannot {what} {path}")]
    File {
        /// `write`, `link` ...
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl HypervisorError {
    /// For `map_err`: a failed operation on a file.
    pub(crate) fn file(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { what, path, source }
    }
}

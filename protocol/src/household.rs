//! What a host is asked that is no member's affair: disks that VMs share, VMs that come and go.
//!
//! ```text
//! operator's command         coordinator                     host agent
//!   Bases, Household ----------->
//!                                 Task {number, task} ---------->
//!                                        <---------- Bringing {number, from, moved}     once a second while an image comes, or disks
//!                                        <---------- Done {number, outcome}     exactly one
//!        <----------- Household
//!
//!                                        <---------- Gone {vms}     when a VM was removed
//!                                 Missing {vms} ---------------->    at the hello: known before, and not in the inventory
//!                                        <---------- Gone {those that the host is sure not to have}
//! ```
//!
//! Every task may be repeated: what is as it would be afterwards is left alone. A VM that a host does not report is
//! missed until the host says that it is gone: its definition may only be broken.

use serde::{Deserialize, Serialize};

use crate::control::{Colouring, Moved, VmReport};
use crate::files::FileReport;
use crate::guest::Prefix;
use crate::name::Name;
use crate::operator::RequestError;
use crate::role::Role;
use crate::transfer::Source;

/// What the coordinator says to a host's household.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostOrder {
    /// VMs that this host had and does not report.
    Missing(Vec<Name>),
    /// To be carried out.
    Task {
        /// The answer repeats it.
        number: u64,
        /// Of the deployment that the task is about: a new VM belongs to what runs now.
        incarnation: u64,
        /// What.
        task: Task,
    },
}

/// What a host's household says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostWord {
    /// These VMs are not on this host any more.
    Gone(Vec<Name>),
    /// What became of a task.
    Done {
        /// Its number.
        number: u64,
        /// What it has to say.
        outcome: Result<Outcome, RequestError>,
    },
    /// How far the image of [`Task::Bring`] is, or the disks of [`Task::Replicate`].
    Bringing {
        /// The task's number.
        number: u64,
        /// Whence it comes.
        from: Name,
        /// In this attempt.
        moved: Moved,
    },
}

/// One thing to be done on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Tell of all bases.
    Bases,
    /// Make a file a base: it becomes read-only, and its digest is computed.
    Preload {
        /// Where it is on the host; absolute.
        path: String,
        /// How it is called from now on; without it, as the file.
        name: Option<Name>,
    },
    /// Forget a base that no VM uses. The file stays.
    Unregister(Name),
    /// Make a VM.
    Create(Box<NewVm>),
    /// Make a VM with the disks that another one has now.
    Clone(Box<VmClone>),
    /// End a VM for good.
    Delete {
        /// The VM.
        vm: Name,
        /// Also if it runs.
        force: bool,
        /// Also if there are snapshots of it, which cannot be restored then.
        lose_snapshots: bool,
    },
    /// Tell of all files of a VM.
    Files {
        /// The VM.
        vm: Name,
        /// At this snapshot; without it, as it is now.
        snapshot: Option<Name>,
    },
    /// Make an image a base that another host has as one. Only the coordinator asks this: it knows who has it.
    Bring(Box<Bring>),
    /// Keep what the disks of a VM hold that does not run, until another host has fetched it. Only the coordinator asks this.
    Freeze(Name),
    /// Make a VM with the disks that one of another host has now.
    Replicate(Box<Replica>),
}

impl Task {
    /// As the command calls it.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Bases => "disk list",
            Self::Preload { .. } => "disk preload",
            Self::Unregister(_) => "disk remove",
            Self::Create(_) => "vm create",
            Self::Clone(_) => "vm clone",
            Self::Delete { .. } => "vm delete",
            Self::Files { .. } => "files",
            Self::Bring(_) => "image preload",
            Self::Freeze(_) | Self::Replicate(_) => "vm replicate",
        }
    }

    /// The least role that may ask this.
    #[must_use]
    pub fn needed_role(&self) -> Role {
        match self {
            Self::Bases | Self::Files { .. } => Role::View,
            Self::Preload { .. }
            | Self::Unregister(_)
            | Self::Create(_)
            | Self::Clone(_)
            | Self::Bring(_)
            | Self::Freeze(_)
            | Self::Replicate(_) => Role::Operate,
            Self::Delete { .. } => Role::Admin,
        }
    }

    /// What is different about a VM that is to have another one's disks.
    #[must_use]
    pub fn clone_wanted(&self) -> Option<&VmClone> {
        match self {
            Self::Clone(clone) => Some(clone),
            Self::Replicate(replica) => Some(&replica.clone),
            _ => None,
        }
    }

    /// The VM that comes or goes, or must not go meanwhile.
    #[must_use]
    pub fn vm(&self) -> Option<&Name> {
        match self {
            Self::Create(new) => Some(&new.name),
            Self::Clone(clone) => Some(&clone.name),
            Self::Replicate(replica) => Some(&replica.clone.name),
            Self::Delete { vm, .. } | Self::Freeze(vm) => Some(vm),
            Self::Bases
            | Self::Preload { .. }
            | Self::Unregister(_)
            | Self::Files { .. }
            | Self::Bring(_) => None,
        }
    }
}

/// An image that is to come from another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bring {
    /// How the base is called from then on.
    pub name: Name,
    /// Who has it; the first that gives it is taken.
    pub sources: Vec<Source>,
    /// What the transfer may take, bytes per second.
    pub per_second: Option<u64>,
    /// Until when it has to be there, seconds from now. What has come until then is kept, and the next one goes on there.
    pub within_s: u32,
}

/// A VM that is to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewVm {
    /// Its name.
    pub name: Name,
    /// Whose member it becomes.
    pub deployment: Name,
    /// The base of its disk.
    pub base: Name,
    /// RAM, MiB.
    pub memory_mb: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Kernel to boot directly, a file of the host; without it the VM boots from its disk.
    pub kernel: Option<String>,
    /// Initial RAM disk of `kernel`.
    pub initrd: Option<String>,
    /// Command line of `kernel`.
    pub append: String,
    /// How its packets are to be coloured; `None` is the best way that works.
    pub colouring: Option<Colouring>,
    /// Its network cards.
    pub nics: Vec<NewNic>,
    /// Who runs it.
    pub hypervisor: Runner,
}

/// A hypervisor that VMs can be made for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runner {
    /// QEMU.
    #[default]
    Qemu,
    /// VirtualBox.
    Virtualbox,
}

/// A network card that is to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewNic {
    /// The bridge of the host.
    pub bridge: String,
    /// Hardware address; `None` for one that the host derives from the VM's name.
    pub mac: Option<String>,
    /// By which other members know the VM.
    pub addresses: Vec<Prefix>,
}

/// A VM that is to have the disks of another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmClone {
    /// Whose disks; it must be stopped, and keeps them.
    pub of: Name,
    /// Name of the new VM.
    pub name: Name,
    /// Whose member it becomes; without it, as the other one.
    pub deployment: Option<Name>,
    /// Addresses of each of its network cards, in their order.
    pub addresses: Vec<Vec<Prefix>>,
}

/// A VM that is to have the disks of one that lives on another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Of which VM, and what is to be different.
    pub clone: VmClone,
    /// What the transfer may take, bytes per second.
    pub per_second: Option<u64>,
    /// Where the frozen disks are, and the digest of their manifest. Operators leave it out: the coordinator has them frozen.
    pub source: Option<Source>,
}

/// What a task that went well has to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// All bases of the host, in the order of their names.
    Bases(Vec<Base>),
    /// The base that was preloaded.
    Preloaded(Base),
    /// The base is not registered.
    Unregistered,
    /// The VM is there, stopped unless it was there before.
    Made {
        /// As the inventory tells it from now on.
        report: Box<VmReport>,
        /// Was there anything to do?
        changed: bool,
    },
    /// The VM is not there.
    Deleted,
    /// All files of the VM.
    Files(Box<FileReport>),
    /// What the disks of the VM hold will be given to hosts that know this digest of its manifest.
    Frozen([u8; 32]),
}

/// A read-only image that VMs of a host share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Its name on this host.
    pub name: Name,
    /// The file.
    pub path: String,
    /// `qcow2`, `raw` or `vdi`.
    pub format: String,
    /// Size of the disk that a VM sees, bytes.
    pub virtual_bytes: u64,
    /// Length of the file, bytes.
    pub bytes: u64,
    /// BLAKE3 of the file, 64 hex digits.
    pub blake3: String,
    /// VMs that have it below a disk.
    pub users: Vec<Name>,
    /// Why no VM can be made on it; `None` when one can.
    pub problem: Option<String>,
}

/// An operator's wish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HouseholdRequest {
    /// Where; `None` where the task says it: on the host of its VM.
    pub host: Option<Name>,
    /// What.
    pub task: Task,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HouseholdReport {
    /// Every host that was asked, in the order of their names.
    pub hosts: Vec<HostReport>,
}

/// What became of it on one host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostReport {
    /// The host.
    pub host: Name,
    /// What it said.
    pub outcome: Result<Outcome, RequestError>,
    /// From the order until the answer.
    pub ms: f64,
}

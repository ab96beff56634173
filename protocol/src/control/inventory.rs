//! What a host has: its VMs, each with its state, and its room.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::guest::Prefix;
use crate::name::Name;
use crate::placement::Capacity;

/// Most VMs that one host may report.
pub const MAX_VMS_PER_HOST: usize = 1024;

/// What runs on a host; sent with the hello and once a second.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// In the order of their names; at most [`MAX_VMS_PER_HOST`].
    pub vms: Vec<VmReport>,
    /// Free bytes where snapshots are stored.
    pub free_bytes: u64,
    /// What the machine has, used or not.
    pub capacity: Capacity,
}

/// State of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmReport {
    /// Its name.
    pub name: Name,
    /// The deployment whose member it is.
    pub deployment: Name,
    /// RAM, MiB.
    pub memory_mb: u32,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Addresses by which the other members know it.
    pub addresses: Vec<Prefix>,
    /// What the hypervisor says.
    pub state: VmState,
    /// How its packets are coloured, as far as is known before the next PREPARE.
    pub colouring: Colouring,
    /// Why that is not what its definition would rather have; empty when it is.
    pub colouring_note: String,
    /// How its RAM is taken, once probed, e.g. `live`.
    pub ram_way: String,
    /// What emulates its processor, e.g. `kvm`.
    pub accelerator: String,
    /// Does the guest agent answer?
    pub guest: bool,
    /// Of the running instance.
    pub incarnation: u64,
}

/// State of a VM's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// No process.
    Stopped,
    /// Process there, guest not yet answering for the first time.
    Starting,
    /// vCPUs run.
    Running,
    /// vCPUs stand still.
    Paused,
    /// The hypervisor failed or does not answer.
    Failed,
}

/// How a member's packets are coloured (protocol.md section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Colouring {
    /// The straddle through the guest agent.
    Guest,
    /// Not at all: for the control experiment only; such snapshots are not consistent.
    None,
    /// By programs on the VM's taps; both halves flip at once in the pause.
    Host,
    /// By programs in the guest, whose word the host changes in the guest's RAM in the pause.
    Memory,
}

impl fmt::Display for Colouring {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Guest => "guest",
            Self::None => "none",
            Self::Host => "host",
            Self::Memory => "memory",
        })
    }
}

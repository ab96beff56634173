//! What stands in the journal's tables, as JSON.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use unasnap_protocol::control::{Colouring, Envelope};
use unasnap_protocol::guest::{Epoch, Prefix};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{MemberRecord, SnapshotRecord, SnapshotState};

/// Counters of one deployment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// The highest epoch that was used.
    pub last_epoch: Epoch,
    /// Counts its restores.
    pub incarnation: u64,
}

/// A deployment that gives way to the users of its hosts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Yielding {
    /// Was it put aside for one, so that it is to go on by itself?
    pub paused: bool,
}

/// One snapshot with what is needed to finish, restore or delete it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// What operators see.
    pub record: SnapshotRecord,
    /// Of the deployment when it was taken.
    pub incarnation: u64,
    /// Addresses of all members.
    pub addresses: Vec<Prefix>,
    /// Has every member been told how it ended (or will be when it asks)?
    pub closed: bool,
    /// Members whose files are still to be removed, once it is being deleted.
    pub undeleted: Vec<Name>,
    /// Where files of it lie, or may lie, beside where it was taken.
    #[serde(default)]
    pub copies: Vec<FilesCopy>,
}

/// Files of one member on a host to which they were fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesCopy {
    /// The member.
    pub vm: Name,
    /// The host.
    pub host: Name,
    /// Has all of it come?
    pub complete: bool,
}

impl Stored {
    /// Is it usable?
    pub fn is_committed(&self) -> bool {
        self.record.state == SnapshotState::Committed
    }

    /// What writing this record makes durable, as the fault points call it.
    pub(super) fn step(&self) -> &'static str {
        match self.record.state {
            SnapshotState::Deleting => "deleting",
            _ if self.closed => "closed",
            SnapshotState::Open => "taken",
            SnapshotState::Committed => "committed",
            SnapshotState::Aborted => "aborted",
        }
    }

    /// VM and host of every member.
    pub fn places(&self) -> BTreeMap<Name, Name> {
        self.record.members.iter().map(|member| (member.vm.clone(), member.host.clone())).collect()
    }

    /// Hosts that have all files of a member; where it was taken comes first.
    pub fn holders<'a>(&'a self, member: &'a MemberRecord) -> Vec<&'a Name> {
        let copies = self.copies.iter().filter(|copy| copy.vm == member.vm && copy.complete);
        std::iter::once(&member.host).chain(copies.map(|copy| &copy.host)).collect()
    }

    /// Files of `vm` come to `host`, or have come.
    pub fn note_copy(&mut self, vm: &Name, host: &Name, complete: bool) {
        self.copies.retain(|copy| copy.vm != *vm || copy.host != *host);
        self.copies.push(FilesCopy { vm: vm.clone(), host: host.clone(), complete });
    }

    /// The envelope of this snapshot to `vm` from a coordinator of `term`.
    pub fn envelope(&self, vm: &Name, term: u64) -> Envelope {
        Envelope {
            vm: vm.clone(),
            deployment: self.record.deployment.clone(),
            snapshot: self.record.id.clone(),
            epoch: self.record.epoch,
            term,
            incarnation: self.incarnation,
        }
    }
}

/// A VM that a host has reported, so that it is missed while its host is away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownVm {
    /// Where it is.
    pub host: Name,
    /// Whose member it is.
    pub deployment: Name,
    /// Addresses by which the other members know it.
    pub addresses: Vec<Prefix>,
    /// How its packets are coloured.
    pub colouring: Colouring,
}

/// Where a VM lives that was restored elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// Since the restore.
    pub host: Name,
    /// Whose member it is.
    pub deployment: Name,
    /// To what it was restored.
    pub snapshot: Name,
    /// At which it began there.
    pub epoch: Epoch,
    /// That began there.
    pub incarnation: u64,
    /// Hosts that it has left, and that have not confirmed that no instance lives there any more.
    pub evict: BTreeSet<Name>,
    /// Has the host reported it?
    pub settled: bool,
}

impl Home {
    /// Of orders about the move.
    pub fn envelope(&self, vm: &Name, term: u64) -> Envelope {
        Envelope {
            vm: vm.clone(),
            deployment: self.deployment.clone(),
            snapshot: self.snapshot.clone(),
            epoch: self.epoch,
            term,
            incarnation: self.incarnation,
        }
    }
}

/// A host that was connected once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownHost {
    /// As last seen.
    pub agent_version: String,
}

//! Everything that must outlive the coordinator, in one redb file. A method that changes something
//! returns when it is durable (fsync).
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `schema`, `term` | number |
//! | `deployments` | name | last epoch and incarnation, JSON |
//! | `snapshots` | id | [`Stored`], JSON |
//! | `vms` | name | [`KnownVm`], JSON |
//! | `hosts` | name | [`KnownHost`], JSON |
//! | `homes` | VM that was restored elsewhere | [`Home`], JSON |
//! | `paused` | deployment | the snapshot that brings it back, JSON |
//! | `yielding` | deployment that gives way to users | [`Yielding`], JSON |
//! | `images` | name | [`Versions`], JSON |

use std::collections::BTreeMap;
use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;
use unasnap_fault_points::{after, before};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::SnapshotState;

pub use self::images::{CataloguedImage, Copy, Versions};
pub use self::records::{Counters, FilesCopy, Home, KnownHost, KnownVm, Stored, Yielding};

mod homes;
mod images;
mod pauses;
mod records;
#[cfg(test)]
mod tests;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const DEPLOYMENTS: TableDefinition<&str, &[u8]> = TableDefinition::new("deployments");
const SNAPSHOTS: TableDefinition<&str, &[u8]> = TableDefinition::new("snapshots");
const VMS: TableDefinition<&str, &[u8]> = TableDefinition::new("vms");
const HOSTS: TableDefinition<&str, &[u8]> = TableDefinition::new("hosts");
const HOMES: TableDefinition<&str, &[u8]> = TableDefinition::new("homes");
const PAUSED: TableDefinition<&str, &[u8]> = TableDefinition::new("paused");
const YIELDING: TableDefinition<&str, &[u8]> = TableDefinition::new("yielding");
const IMAGES: TableDefinition<&str, &[u8]> = TableDefinition::new("images");

/// Version of the tables and their JSON.
const SCHEMA: u64 = 1;
/// Records of aborted snapshots that are kept.
const MAX_ABORTED: usize = 50;

/// A journal that cannot be read or written ends the coordinator: it must not decide what it cannot
/// remember.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The store failed.
    #[error("the journal cannot be read or written: {0}; check disk and permissions of state_dir")]
    Store(#[from] Box<redb::Error>),
    /// A value is not what this version writes.
    #[error("the journal holds a damaged record: {0}; restore state_dir from a copy")]
    Damaged(#[from] serde_json::Error),
    /// Written by another release.
    #[error("the journal has schema {0}, this program knows {SCHEMA}; use the release that wrote it")]
    UnknownSchema(u64),
}

/// What the journal's methods return.
pub type Result<T> = std::result::Result<T, JournalError>;

/// The store, and a copy of its content in memory.
pub struct Journal {
    database: Database,
    term: u64,
    deployments: BTreeMap<Name, Counters>,
    snapshots: BTreeMap<Name, Stored>,
    vms: BTreeMap<Name, KnownVm>,
    hosts: BTreeMap<Name, KnownHost>,
    homes: BTreeMap<Name, Home>,
    paused: BTreeMap<Name, Name>,
    yielding: BTreeMap<Name, Yielding>,
    images: BTreeMap<Name, Versions>,
}

fn store(error: impl Into<redb::Error>) -> JournalError {
    JournalError::Store(Box::new(error.into()))
}

impl Journal {
    /// Opens or makes the file and begins a new term.
    pub fn open(path: &Path) -> Result<Self> {
        let database = Database::create(path).map_err(store)?;
        let term = begin_term(&database)?;
        let read = database.begin_read().map_err(store)?;
        let (deployments, snapshots) = (load(&read, DEPLOYMENTS)?, load(&read, SNAPSHOTS)?);
        let (vms, hosts) = (load(&read, VMS)?, load(&read, HOSTS)?);
        let (homes, paused) = (load(&read, HOMES)?, load(&read, PAUSED)?);
        let (yielding, images) = (load(&read, YIELDING)?, load(&read, IMAGES)?);
        drop(read);
        Ok(Self { database, term, deployments, snapshots, vms, hosts, homes, paused, yielding, images })
    }

    /// Counts the starts of the coordinator.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Counters of a deployment.
    pub fn counters(&self, deployment: &Name) -> Counters {
        self.deployments.get(deployment).copied().unwrap_or_default()
    }

    /// All snapshots, in the order of their names.
    pub fn snapshots(&self) -> &BTreeMap<Name, Stored> {
        &self.snapshots
    }

    /// All VMs known.
    pub fn vms(&self) -> &BTreeMap<Name, KnownVm> {
        &self.vms
    }

    /// Whose a VM is.
    pub fn deployment_of(&self, vm: &Name) -> Option<Name> {
        self.vms.get(vm).map(|known| known.deployment.clone())
    }

    /// All hosts known.
    pub fn hosts(&self) -> &BTreeMap<Name, KnownHost> {
        &self.hosts
    }

    /// An attempt begins: its record and the use of its epoch become durable together.
    pub fn open_snapshot(&mut self, stored: Stored) -> Result<()> {
        let deployment = stored.record.deployment.clone();
        let counters = Counters { last_epoch: stored.record.epoch, ..self.counters(&deployment) };
        self.write("opened", |write| {
            put(write, DEPLOYMENTS, &deployment, &counters)?;
            put(write, SNAPSHOTS, &stored.record.id, &stored)
        })?;
        self.deployments.insert(deployment, counters);
        self.snapshots.insert(stored.record.id.clone(), stored);
        Ok(())
    }

    /// Replaces a snapshot's record.
    pub fn update_snapshot(&mut self, stored: Stored) -> Result<()> {
        self.write(stored.step(), |write| put(write, SNAPSHOTS, &stored.record.id, &stored))?;
        self.snapshots.insert(stored.record.id.clone(), stored);
        Ok(())
    }

    /// Forgets a snapshot.
    pub fn remove_snapshot(&mut self, id: &Name) -> Result<()> {
        self.write("removed", |write| remove(write, SNAPSHOTS, id))?;
        self.snapshots.remove(id);
        Ok(())
    }

    /// Forgets the oldest aborted attempts beyond the number that is kept.
    pub fn prune_aborted(&mut self) -> Result<()> {
        let over = |stored: &&Stored| stored.record.state == SnapshotState::Aborted && stored.closed;
        let mut aborted: Vec<_> = self.snapshots.values().filter(over).map(|stored| &stored.record).collect();
        aborted.sort_by(|one, other| other.created.cmp(&one.created));
        let old: Vec<_> = aborted.into_iter().skip(MAX_ABORTED).map(|record| record.id.clone()).collect();
        old.iter().try_for_each(|id| self.remove_snapshot(id))
    }

    /// Enters a host.
    pub fn know_host(&mut self, name: &Name, host: KnownHost) -> Result<()> {
        if self.hosts.get(name) == Some(&host) {
            return Ok(());
        }
        self.write("host", |write| put(write, HOSTS, name, &host))?;
        self.hosts.insert(name.clone(), host);
        Ok(())
    }

    /// Enters VMs as hosts have just reported them. Others are not forgotten: see [`forget_vms`](Self::forget_vms).
    pub fn know_vms(&mut self, vms: BTreeMap<Name, KnownVm>) -> Result<()> {
        let news: Vec<_> = vms.into_iter().filter(|(name, vm)| self.vms.get(name) != Some(vm)).collect();
        if news.is_empty() {
            return Ok(());
        }
        self.write("vms", |write| news.iter().try_for_each(|(name, vm)| put(write, VMS, name, vm)))?;
        self.vms.extend(news);
        Ok(())
    }

    /// Forgets VMs of which their host says that they are gone.
    pub fn forget_vms(&mut self, gone: &[Name]) -> Result<()> {
        self.write("vms", |write| gone.iter().try_for_each(|name| remove(write, VMS, name)))?;
        self.vms.retain(|name, _| !gone.contains(name));
        Ok(())
    }

    /// `step` is the name of its fault points.
    fn write(&self, step: &'static str, change: impl FnOnce(&WriteTransaction) -> Result<()>) -> Result<()> {
        before("journal", step).map_err(store)?;
        let write = self.database.begin_write().map_err(store)?;
        change(&write)?;
        write.commit().map_err(store)?;
        after("journal", step).map_err(store)
    }
}

fn begin_term(database: &Database) -> Result<u64> {
    before("journal", "term").map_err(store)?;
    let write = database.begin_write().map_err(store)?;
    let term = {
        let mut meta = write.open_table(META).map_err(store)?;
        let schema = meta.get("schema").map_err(store)?.map_or(SCHEMA, |value| value.value());
        if schema != SCHEMA {
            return Err(JournalError::UnknownSchema(schema));
        }
        let term = meta.get("term").map_err(store)?.map_or(0, |value| value.value()) + 1;
        meta.insert("schema", SCHEMA).map_err(store)?;
        meta.insert("term", term).map_err(store)?;
        for table in [DEPLOYMENTS, SNAPSHOTS, VMS, HOSTS, HOMES, PAUSED, YIELDING, IMAGES] {
            write.open_table(table).map_err(store)?;
        }
        term
    };
    write.commit().map_err(store)?;
    after("journal", "term").map_err(store)?;
    Ok(term)
}

fn load<T: DeserializeOwned>(
    read: &redb::ReadTransaction,
    table: TableDefinition<&str, &[u8]>,
) -> Result<BTreeMap<Name, T>> {
    let table = read.open_table(table).map_err(store)?;
    let mut all = BTreeMap::new();
    for entry in table.iter().map_err(store)? {
        let (key, value) = entry.map_err(store)?;
        let name = serde_json::from_value(key.value().into())?;
        all.insert(name, serde_json::from_slice(value.value())?);
    }
    Ok(all)
}

fn put<T: Serialize>(
    write: &WriteTransaction,
    table: TableDefinition<&str, &[u8]>,
    key: &Name,
    value: &T,
) -> Result<()> {
    let bytes = serde_json::to_vec(value)?;
    let mut table = write.open_table(table).map_err(store)?;
    table.insert(key.as_str(), bytes.as_slice()).map_err(store)?;
    Ok(())
}

fn remove(write: &WriteTransaction, table: TableDefinition<&str, &[u8]>, key: &Name) -> Result<()> {
    let mut table = write.open_table(table).map_err(store)?;
    table.remove(key.as_str()).map_err(store)?;
    Ok(())
}

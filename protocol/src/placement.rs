//! Which host a new VM goes to: seven algorithms over one idea of room.
//!
//! | algorithm | VMs in the order | hosts |
//! |---|---|---|
//! | `random` | shuffled | any that has room, each as likely |
//! | `round-robin` | given | the next by name after the last one used |
//! | `first-fit` | given | the first by name |
//! | `first-fit-decreasing` | largest first | fewest free cores first, sorted once |
//! | `best-fit` | largest first | fewest free cores at that moment |
//! | `sorting` | largest first | most VMs first, then fewest free cores; sorted once |
//! | `singleton` | given | all on one host that has no VM yet |
//!
//! The names and the orders are those of UnaCloud's allocators (`back/pmallocators` of UnaCloud2), whose idea of room is
//! cores and RAM, and whose `sorting` prefers hosts at which somebody works (ours does not know). Ours has free disk as well, and
//! the base that the VM is made on; all but `singleton` put at most [`PREFERRED_VMS`] on a host as long as
//! that is possible: VMs of one host save at the same time (four of them cost four to five times as much in the published
//! figures). Either every VM has its place, or none.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::operator::Place;

#[cfg(test)]
mod tests;

/// More VMs than this on one host make snapshots slower for all of them.
pub const PREFERRED_VMS: u32 = 2;
/// So many hosts are listed in an error.
const LISTED_HOSTS: usize = 8;

/// How hosts are chosen; see the table above.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// Any host that has room.
    Random,
    /// One after the other: the flattest, hence the fastest snapshots.
    #[default]
    RoundRobin,
    /// The first host that has room.
    FirstFit,
    /// Large VMs first, into small hosts first.
    FirstFitDecreasing,
    /// Large VMs first, each where it leaves the least.
    BestFit,
    /// Large VMs first, onto hosts that are used already.
    Sorting,
    /// All on one unused host.
    Singleton,
}

/// What a machine has for its VMs, used or not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Processors.
    pub cores: u32,
    /// RAM, MiB.
    pub memory_mb: u64,
}

/// What a host has left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// The host.
    pub host: Name,
    /// Cores that no VM of it uses.
    pub cores: u32,
    /// RAM that no VM of it uses, MiB.
    pub memory_mb: u64,
    /// Free disk where its VMs and snapshots lie, bytes.
    pub disk_bytes: u64,
    /// VMs that it has.
    pub vms: u32,
    /// Bases that VMs can be made on there.
    pub bases: BTreeSet<Name>,
}

/// What a VM takes of a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// Virtual CPUs.
    pub cores: u32,
    /// RAM, MiB.
    pub memory_mb: u64,
    /// Disk, bytes.
    pub disk_bytes: u64,
}

/// A VM that looks for a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// The VM.
    pub vm: Name,
    /// What it takes.
    pub need: Need,
    /// What its disk begins with.
    pub base: Name,
}

impl Need {
    fn sum(wants: &[Want]) -> Self {
        wants.iter().fold(Self::default(), |sum, Want { need, .. }| Self {
            cores: sum.cores.saturating_add(need.cores),
            memory_mb: sum.memory_mb.saturating_add(need.memory_mb),
            disk_bytes: sum.disk_bytes.saturating_add(need.disk_bytes),
        })
    }
}

impl fmt::Display for Need {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cores, memory_mb, disk_bytes } = self;
        write!(formatter, "{cores} cores, {memory_mb} MiB of RAM and {} MiB of disk", disk_bytes >> 20)
    }
}

/// Where every VM goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// In the order in which the VMs were given.
    pub places: Vec<Place>,
    /// What the operator should know, in words.
    pub warnings: Vec<String>,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// One VM finds no room once those before it have theirs.
    #[error("no host has room for {vm} ({need}){after}: {hosts}; nothing was placed")]
    NoRoom {
        /// The VM.
        vm: Name,
        /// What it needs.
        need: Need,
        /// How many were placed before it, in words.
        after: String,
        /// What each host lacks.
        hosts: String,
    },
    /// `singleton` found no host.
    #[error("no unused host has room for all {count} VMs together ({total}): {hosts}; nothing was placed")]
    NoSingleHost {
        /// VMs.
        count: usize,
        /// What they need.
        total: String,
        /// What each host lacks.
        hosts: String,
    },
    /// There is nobody to ask.
    #[error("no host is connected: start the host agents")]
    NoHosts,
}

/// Places all of `wants` on `hosts`. The same seed gives the same plan; only `random` depends on it.
///
/// # Errors
/// [`PlacementError`] with what each host lacks; then nothing is placed.
pub fn place(
    algorithm: Algorithm,
    hosts: &[Room],
    wants: &[Want],
    seed: u64,
) -> Result<Plan, PlacementError> {
    if hosts.is_empty() {
        return Err(PlacementError::NoHosts);
    }
    if algorithm == Algorithm::Singleton {
        return on_one_host(hosts, wants);
    }
    let quiet = Attempt::new(algorithm, hosts, Some(PREFERRED_VMS), seed).run(wants);
    let attempt = match quiet {
        Ok(attempt) => attempt,
        Err(_) => Attempt::new(algorithm, hosts, None, seed).run(wants)?,
    };
    let before: BTreeMap<&Name, u32> = hosts.iter().map(|room| (&room.host, room.vms)).collect();
    let fuller = |room: &&Room| room.vms > PREFERRED_VMS && room.vms > before[&room.host];
    let mut full: Vec<_> = attempt.rooms.iter().filter(fuller).collect();
    full.sort_by(|a, b| a.host.cmp(&b.host));
    let warnings = full.into_iter().map(crowded).collect();
    Ok(Plan { places: in_order(wants, &attempt.found), warnings })
}

fn crowded(room: &Room) -> String {
    format!(
        "{} will have {} VMs; more than {PREFERRED_VMS} on one host make the snapshots of all of them slower",
        room.host, room.vms
    )
}

fn in_order(wants: &[Want], found: &BTreeMap<Name, Name>) -> Vec<Place> {
    let place = |want: &Want| Some(Place { vm: want.vm.clone(), host: found.get(&want.vm)?.clone() });
    wants.iter().filter_map(place).collect()
}

/// One go at placing everything.
struct Attempt {
    algorithm: Algorithm,
    rooms: Vec<Room>,
    /// Most VMs of a host.
    most: Option<u32>,
    /// Index of the host that is asked first.
    next: usize,
    dice: Dice,
    found: BTreeMap<Name, Name>,
}

impl Attempt {
    fn new(algorithm: Algorithm, hosts: &[Room], most: Option<u32>, seed: u64) -> Self {
        let mut rooms = hosts.to_vec();
        match algorithm {
            Algorithm::Sorting => {
                rooms.sort_by_key(|room| (Reverse(room.vms), room.cores, room.host.clone()));
            }
            Algorithm::FirstFitDecreasing => rooms.sort_by_key(|room| (room.cores, room.host.clone())),
            _ => rooms.sort_by_key(|room| room.host.clone()),
        }
        Self { algorithm, rooms, most, next: 0, dice: Dice(seed), found: BTreeMap::new() }
    }

    fn run(mut self, wants: &[Want]) -> Result<Self, PlacementError> {
        let mut order: Vec<&Want> = wants.iter().collect();
        match self.algorithm {
            Algorithm::Random => self.dice.shuffle(&mut order),
            Algorithm::FirstFitDecreasing | Algorithm::BestFit | Algorithm::Sorting => {
                order.sort_by_key(|want| Reverse((want.need.cores, want.need.memory_mb)));
            }
            Algorithm::RoundRobin | Algorithm::FirstFit | Algorithm::Singleton => {}
        }
        for want in order {
            let Some(index) = self.choose(want) else { return Err(self.no_room(want)) };
            self.rooms[index].take(&want.need);
            self.found.insert(want.vm.clone(), self.rooms[index].host.clone());
        }
        Ok(self)
    }

    /// Index of the host for `want`.
    fn choose(&mut self, want: &Want) -> Option<usize> {
        let count = self.rooms.len();
        let fits = |index: &usize| self.rooms[*index].lacks(want, self.most).is_none();
        match self.algorithm {
            Algorithm::Random => {
                let fitting: Vec<_> = (0..count).filter(fits).collect();
                (!fitting.is_empty()).then(|| fitting[self.dice.below(fitting.len())])
            }
            Algorithm::RoundRobin => {
                let chosen = (self.next..count).chain(0..self.next).find(fits)?;
                self.next = (chosen + 1) % count;
                Some(chosen)
            }
            Algorithm::BestFit => (0..count).filter(fits).min_by_key(|index| self.rooms[*index].cores),
            _ => (0..count).find(fits),
        }
    }

    fn no_room(&self, want: &Want) -> PlacementError {
        let after = match self.found.len() {
            0 => String::new(),
            count => format!(" beside the {count} that were placed before it"),
        };
        let hosts = list(&self.rooms, |room| room.lacks(want, self.most));
        PlacementError::NoRoom { vm: want.vm.clone(), need: want.need, after, hosts }
    }
}

/// All together on the first host, by name, that has no VM.
fn on_one_host(hosts: &[Room], wants: &[Want]) -> Result<Plan, PlacementError> {
    let mut rooms = hosts.to_vec();
    rooms.sort_by(|a, b| a.host.cmp(&b.host));
    let total = Need::sum(wants);
    let lacks = |room: &Room| {
        let strange = wants.iter().find_map(|want| room.lacks_base(want));
        if room.vms > 0 { Some(Lack::Unused) } else { strange.or(room.lacks_room(&total)) }
    };
    let Some(room) = rooms.iter().find(|room| lacks(room).is_none()) else {
        let (count, hosts) = (wants.len(), list(&rooms, lacks));
        return Err(PlacementError::NoSingleHost { count, total: total.to_string(), hosts });
    };
    let place = |want: &Want| Place { vm: want.vm.clone(), host: room.host.clone() };
    let vms = u32::try_from(wants.len()).unwrap_or(u32::MAX);
    let warnings = (vms > PREFERRED_VMS).then(|| crowded(&Room { vms, ..room.clone() }));
    Ok(Plan { places: wants.iter().map(place).collect(), warnings: warnings.into_iter().collect() })
}

/// What a host has too little of.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Lack {
    Base(Name),
    Cores,
    Memory,
    Disk,
    Quiet,
    Unused,
}

impl Room {
    /// The first thing of which there is too little, if there is one; `most` VMs may it have in the end.
    fn lacks(&self, want: &Want, most: Option<u32>) -> Option<Lack> {
        let full = most.is_some_and(|most| self.vms >= most).then_some(Lack::Quiet);
        self.lacks_base(want).or(self.lacks_room(&want.need)).or(full)
    }

    fn lacks_base(&self, want: &Want) -> Option<Lack> {
        (!self.bases.contains(&want.base)).then(|| Lack::Base(want.base.clone()))
    }

    fn lacks_room(&self, need: &Need) -> Option<Lack> {
        if self.cores < need.cores {
            Some(Lack::Cores)
        } else if self.memory_mb < need.memory_mb {
            Some(Lack::Memory)
        } else if self.disk_bytes < need.disk_bytes {
            Some(Lack::Disk)
        } else {
            None
        }
    }

    fn take(&mut self, need: &Need) {
        self.cores -= need.cores;
        self.memory_mb -= need.memory_mb;
        self.disk_bytes -= need.disk_bytes;
        self.vms += 1;
    }

    fn says(&self, lack: Lack) -> String {
        let host = &self.host;
        match lack {
            Lack::Base(base) => format!("{host} has no usable base {base}"),
            Lack::Cores => format!("{host} has {} cores left", self.cores),
            Lack::Memory => format!("{host} has {} MiB of RAM left", self.memory_mb),
            Lack::Disk => format!("{host} has {} MiB of disk left", self.disk_bytes >> 20),
            Lack::Quiet => format!("{host} has {} VMs already", self.vms),
            Lack::Unused => format!("{host} has VMs"),
        }
    }
}

/// What each host lacks, in words.
fn list(rooms: &[Room], lacks: impl Fn(&Room) -> Option<Lack>) -> String {
    let mut words: Vec<_> =
        rooms.iter().take(LISTED_HOSTS).filter_map(|room| Some(room.says(lacks(room)?))).collect();
    if let Some(more @ 1..) = rooms.len().checked_sub(LISTED_HOSTS) {
        words.push(format!("{more} more are no better"));
    }
    words.join(", ")
}

/// Splitmix64 (Steele, Lea, Flood 2014): placing needs variety, not secrecy.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `limit`, which is not 0; off from even by less than `limit` in 2^64.
    fn below(&mut self, limit: usize) -> usize {
        (self.roll() % limit as u64) as usize
    }

    /// Fisher-Yates.
    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

//! What the host for tests does that is no member's affair.

use std::collections::{BTreeMap, BTreeSet};

use unasnap_protocol::control::{Colouring, Moved, VmReport, VmState};
use unasnap_protocol::files::{FileReport, FileRole, NeededFile, StoreKind, Totals};
use unasnap_protocol::guest::Prefix;
use unasnap_protocol::household::{Base, Bring, HostOrder, HostWord, NewVm, Outcome, Replica, Task};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{RequestError, RequestErrorKind};
use unasnap_protocol::participant::Participant;
use unasnap_protocol::placement::Capacity;

use super::host::{Host, Shared};

/// Everything about it.
pub struct House {
    /// What it has for VMs.
    pub capacity: Capacity,
    /// VMs whose guest agents do not answer.
    pub silent: BTreeSet<Name>,
    /// VMs that it does not make.
    pub refused: BTreeSet<Name>,
    /// Its base is not preloaded.
    pub lacks_base: bool,
    /// Of its base.
    pub digest: String,
    /// From whom it was to get it, and how.
    pub brought: Option<Bring>,
    /// The last replica that was wanted of it.
    pub replica: Option<Replica>,
    /// It never gets it to the end, and tells so much of it with each inventory.
    pub stuck_at: Option<Moved>,
    /// Number of the task by which it is to get it.
    bringing: Option<u64>,
    /// VMs that were made, as they were wanted.
    made: BTreeMap<Name, NewVm>,
    /// VMs that are not reported: their definitions are broken.
    pub hidden: BTreeSet<Name>,
    /// Names of the tasks that came.
    tasks: Vec<&'static str>,
    /// VMs that were asked for because they were missing.
    missed: Vec<Name>,
    /// The next answer is not given, and the connection breaks.
    breaks: bool,
    /// The same, when the next task of this name comes.
    pub breaks_after: Option<&'static str>,
    /// And it does not come back by itself.
    pub stays_away: bool,
    /// No answer is given.
    mute: bool,
    /// Said with the next inventory.
    gone: Vec<Name>,
}

impl Default for House {
    fn default() -> Self {
        Self {
            capacity: Capacity { cores: 8, memory_mb: 16 << 10 },
            silent: BTreeSet::new(),
            refused: BTreeSet::new(),
            lacks_base: false,
            digest: "ab".repeat(32),
            brought: None,
            replica: None,
            stuck_at: None,
            bringing: None,
            made: BTreeMap::new(),
            hidden: BTreeSet::new(),
            tasks: Vec::new(),
            missed: Vec::new(),
            breaks: false,
            breaks_after: None,
            stays_away: false,
            mute: false,
            gone: Vec::new(),
        }
    }
}

impl House {
    /// What is known of a VM that was made; of others, what the tests were written for.
    pub fn shape(&self, vm: &Name) -> VmReport {
        let made = self.made.get(vm);
        let addresses = made.map(|new| new.nics.iter().flat_map(|nic| nic.addresses.clone()).collect());
        VmReport {
            name: vm.clone(),
            deployment: made.map_or_else(|| Name::new("ring").unwrap(), |new| new.deployment.clone()),
            memory_mb: made.map_or(128, |new| new.memory_mb.try_into().unwrap()),
            cpus: made.map_or(1, |new| new.cpus),
            addresses: addresses.unwrap_or_else(|| vec![Prefix::V4([10, 0, 0, 1], 32)]),
            state: VmState::Stopped,
            colouring: Colouring::Guest,
            colouring_note: String::new(),
            ram_way: String::new(),
            accelerator: String::new(),
            guest: false,
            incarnation: 0,
        }
    }
}

impl Host {
    /// Its house, to be arranged.
    pub fn house<T>(&self, arrange: impl FnOnce(&mut House) -> T) -> T {
        arrange(&mut self.shared.lock().unwrap().house)
    }

    /// Names of the tasks that came.
    pub fn tasks(&self) -> Vec<&'static str> {
        self.shared.lock().unwrap().house.tasks.clone()
    }

    /// VMs that the coordinator missed.
    pub fn missed(&self) -> Vec<String> {
        self.shared.lock().unwrap().house.missed.iter().map(Name::to_string).collect()
    }

    /// Its definition is broken, or mended.
    pub fn hide(&self, vm: &str, hidden: bool) {
        let (mut shared, name) = (self.shared.lock().unwrap(), Name::new(vm).unwrap());
        if hidden {
            shared.house.hidden.insert(name);
        } else {
            shared.house.hidden.remove(&name);
        }
    }

    /// Somebody removes a VM while nobody is told.
    pub fn lose(&self, vm: &str) {
        self.shared.lock().unwrap().members.remove(&Name::new(vm).unwrap());
    }

    /// The next task is carried out, and its answer is lost with the connection.
    pub fn break_after_task(&self) {
        self.shared.lock().unwrap().house.breaks = true;
    }

    /// It says with its next inventory that this VM is gone.
    pub fn say_gone(&self, vm: &str) {
        self.shared.lock().unwrap().house.gone.push(Name::new(vm).unwrap());
    }

    /// Has it said all of that?
    pub fn has_said(&self) -> bool {
        self.shared.lock().unwrap().house.gone.is_empty()
    }

    /// Tasks are not answered.
    pub fn set_mute(&self, mute: bool) {
        self.shared.lock().unwrap().house.mute = mute;
    }
}

impl Shared {
    /// What a lying host says unasked.
    pub fn unasked(&mut self) -> Option<HostWord> {
        if let (Some(moved), Some(number)) = (self.house.stuck_at, self.house.bringing) {
            return Some(HostWord::Bringing { number, from: Name::new("h1").unwrap(), moved });
        }
        let gone = std::mem::take(&mut self.house.gone);
        (!gone.is_empty()).then_some(HostWord::Gone(gone))
    }

    /// What is said to an order. `Err` breaks the connection.
    pub fn keep_house(&mut self, order: HostOrder) -> Result<Option<HostWord>, ()> {
        match order {
            HostOrder::Missing(names) => {
                self.house.missed.extend(names.clone());
                let gone: Vec<_> =
                    names.into_iter().filter(|name| !self.members.contains_key(name)).collect();
                Ok((!gone.is_empty()).then_some(HostWord::Gone(gone)))
            }
            HostOrder::Task { number, incarnation, task } => {
                self.house.tasks.push(task.label());
                if self.house.stuck_at.is_some() && matches!(task, Task::Bring(_)) {
                    self.house.bringing = Some(number);
                    return Ok(None);
                }
                let breaks = self.house.breaks_after.take_if(|label| *label == task.label()).is_some();
                let outcome = self.carry_out(task, incarnation);
                if std::mem::take(&mut self.house.breaks) || breaks {
                    self.away |= self.house.stays_away;
                    return Err(());
                }
                Ok((!self.house.mute).then_some(HostWord::Done { number, outcome }))
            }
        }
    }

    fn carry_out(&mut self, task: Task, incarnation: u64) -> Result<Outcome, RequestError> {
        let base = Base {
            name: Name::new("debian").unwrap(),
            path: "/srv/images/debian.qcow2".to_owned(),
            format: "qcow2".to_owned(),
            virtual_bytes: 2 << 30,
            bytes: 300 << 20,
            blake3: self.house.digest.clone(),
            users: self.members.keys().cloned().collect(),
            problem: None,
        };
        match task {
            Task::Bases if self.house.lacks_base => Ok(Outcome::Bases(Vec::new())),
            Task::Bases => Ok(Outcome::Bases(vec![base])),
            Task::Preload { path, .. } if path.starts_with("/nowhere") => {
                let text = format!("there is no {path}");
                Err(RequestError::new(RequestErrorKind::NotFound, text))
            }
            Task::Preload { .. } => {
                self.house.lacks_base = false;
                Ok(Outcome::Preloaded(base))
            }
            Task::Bring(bring) => {
                self.house.brought = Some(*bring);
                self.house.lacks_base = false;
                Ok(Outcome::Preloaded(base))
            }
            Task::Files { vm, snapshot } => Ok(Outcome::Files(Box::new(files(&self.name, &vm, snapshot)))),
            Task::Unregister(_) => Ok(Outcome::Unregistered),
            Task::Create(new) if self.house.lacks_base || self.house.refused.contains(&new.name) => {
                Err(RequestError::new(RequestErrorKind::Refused, "the disk is full"))
            }
            Task::Create(new) => {
                if !self.members.contains_key(&new.name) {
                    self.house.made.insert(new.name.clone(), *new.clone());
                }
                Ok(self.made(new.name, incarnation))
            }
            Task::Clone(clone) => Ok(self.made(clone.name, incarnation)),
            Task::Freeze(vm) if self.states.get(&vm) != Some(&VmState::Stopped) => {
                Err(RequestError::new(RequestErrorKind::Refused, format!("VM {vm} is not stopped")))
            }
            Task::Freeze(_) => Ok(Outcome::Frozen([5; 32])),
            Task::Replicate(replica) => {
                let name = replica.clone.name.clone();
                self.house.replica = Some(*replica);
                Ok(self.made(name, incarnation))
            }
            Task::Delete { vm, force, .. } => {
                if !force && self.states.get(&vm) != Some(&VmState::Stopped) {
                    return Err(RequestError::new(
                        RequestErrorKind::Refused,
                        format!("VM {vm} runs: stop it first"),
                    ));
                }
                self.members.remove(&vm);
                self.house.made.remove(&vm);
                Ok(Outcome::Deleted)
            }
        }
    }

    fn made(&mut self, vm: Name, incarnation: u64) -> Outcome {
        let changed = !self.members.contains_key(&vm);
        if changed {
            self.states.insert(vm.clone(), VmState::Stopped);
            self.members.insert(vm.clone(), Participant::new(incarnation));
        }
        let report = self.inventory().vms.into_iter().find(|report| report.name == vm);
        Outcome::Made { report: Box::new(report.unwrap()), changed }
    }
}

/// A base that all VMs of a host share, and a layer of its own for each.
fn files(host: &Name, vm: &Name, snapshot: Option<Name>) -> FileReport {
    let file = |path: &str, role, bytes| NeededFile { path: path.to_owned(), role, bytes, parent: None };
    let needed = vec![
        file("/srv/images/debian.qcow2", FileRole::BaseDisk, 300 << 20),
        file("disk0-0000.qcow2", FileRole::DifferenceDisk, 1 << 20),
    ];
    FileReport {
        vm: vm.to_string(),
        kind: StoreKind::Qcow2,
        folder: format!("/var/lib/{host}/{vm}"),
        target: snapshot.map(|id| id.to_string()),
        current: None,
        snapshots: Vec::new(),
        totals: Totals::of(&needed, &[], &[]),
        needed,
        not_needed: Vec::new(),
        missing: Vec::new(),
    }
}

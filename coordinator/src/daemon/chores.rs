//! What hosts are asked that is no member's affair: VMs made and deleted, disks that they share.
//!
//! No VM comes or goes while anything is under way for its deployment, and nothing begins for a deployment while a VM of it
//! comes or goes; but several are made, or deleted, side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use unasnap_protocol::control::{CoordinatorSession, Moved, Phase};
use unasnap_protocol::elsewhere::{FetchProgress, FetchedMember};
use unasnap_protocol::household::{
    HostOrder, HostReport, HouseholdReport, HouseholdRequest, Outcome, Replica, Task,
};
use unasnap_protocol::image::ImageRequest;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Progress, Reply, RequestError, RequestErrorKind, ms};

use super::journal::Result;
use super::owner::{Owner, Watchers, tell};
use super::preloading::dealt;
use super::registry::not_connected;

/// For a digest of a large image.
const LONG_LIMIT: Duration = Duration::from_secs(3600);
/// For the disks of a VM to come over the network; what has come until then is not sent again.
const REPLICATE_LIMIT: Duration = Duration::from_secs(4 * 3600);
/// For everything else: a host that kills a VM may need half a minute.
const LIMIT: Duration = Duration::from_secs(60);

/// A task under way.
pub struct Chore {
    /// When those who have not answered are given up.
    pub deadline: Instant,
    /// For progress; no snapshot is called so.
    id: Name,
    pub(super) task: Task,
    pub(super) deployments: BTreeSet<Name>,
    began: Instant,
    hosts: BTreeSet<Name>,
    found: BTreeMap<Name, HostReport>,
    /// How far an image is, or the disks of a replica, by the host to which they come.
    coming: BTreeMap<Name, FetchedMember>,
    watchers: Watchers,
    then: Then,
}

/// What is made of the hosts' answers.
pub enum Then {
    /// They are the answer.
    Answer,
    /// Something of the image catalogue.
    Image(ImageRequest),
    /// An image has come to them; these have had it.
    Brought(Vec<HostReport>),
    /// The disks are frozen of which a replica is to be made on this host.
    Replicate(Box<Replica>, Name),
}

pub(super) type Checked<T> = std::result::Result<T, RequestError>;

pub(super) fn refuse<T>(text: String) -> Checked<T> {
    Err(RequestError::new(RequestErrorKind::Refused, text))
}

pub(super) fn not_found<T>(text: String) -> Checked<T> {
    Err(RequestError::new(RequestErrorKind::NotFound, text))
}

impl Chore {
    fn awaited(&self) -> impl Iterator<Item = &Name> {
        self.hosts.iter().filter(|host| !self.found.contains_key(*host))
    }

    /// Tells operators that it is under way.
    pub fn show(&mut self) {
        let progress = Progress {
            snapshot: self.id.clone(),
            phase: Phase::Control,
            members: self.hosts.iter().cloned().collect(),
            waiting: self.awaited().cloned().collect(),
        };
        tell(&self.watchers, &Reply::Progress(progress));
        if !self.coming.is_empty() {
            let members = self.coming.values().cloned().collect();
            tell(&self.watchers, &Reply::Fetching(FetchProgress { snapshot: self.id.clone(), members }));
        }
    }

    pub(super) fn words(&self) -> Option<String> {
        Some(format!("`{}` of {}", self.task.label(), self.task.vm()?))
    }

    fn enter(&mut self, host: &Name, outcome: Checked<Outcome>) {
        let ns = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.found.insert(host.clone(), HostReport { host: host.clone(), outcome, ms: ms(ns) });
    }
}

impl Owner {
    /// `disk` and those `vm` commands by which VMs come and go.
    pub(super) fn ask(
        &mut self,
        mut request: HouseholdRequest,
        then: Then,
        replies: mpsc::Sender<Reply>,
    ) -> Result<()> {
        // From where something comes is not for an operator to say.
        if let Task::Bring(_) | Task::Freeze(_) = request.task {
            let text =
                format!("only the coordinator asks this; `unasnap {}` has it asked", request.task.label());
            tell(&vec![replies], &Reply::Failed(RequestError::new(RequestErrorKind::Refused, text)));
            return Ok(());
        }
        if let Task::Replicate(replica) = &mut request.task {
            replica.source = None;
        }
        let checked = self.hosts_meant(&request).and_then(|hosts| {
            let deployments = self.may_begin(&request.task, &hosts)?;
            if let Task::Replicate(replica) = &request.task {
                let (freeze, source, then) = self.freeze_first(replica, &hosts)?;
                return Ok((freeze, source, deployments, then));
            }
            Ok((request.task, hosts, deployments, then))
        });
        match checked {
            Ok((task, hosts, deployments, then)) => {
                self.open_chore_at(task, hosts, deployments, then, vec![replies])
            }
            Err(error) => {
                tell(&vec![replies], &Reply::Failed(error));
                Ok(())
            }
        }
    }

    pub(super) fn open_chore_at(
        &mut self,
        task: Task,
        hosts: BTreeSet<Name>,
        deployments: BTreeSet<Name>,
        then: Then,
        watchers: Watchers,
    ) -> Result<()> {
        self.chore_count += 1;
        let term = self.journal.term();
        // An answer to an earlier coordinator has another number.
        let number = term << 32 | u64::from(self.chore_count);
        let Ok(id) = Name::new(&format!("task-{term}-{}-host", self.chore_count)) else {
            return Ok(());
        };
        let began = Instant::now();
        let limit = match &task {
            Task::Preload { .. } | Task::Bases | Task::Freeze(_) => LONG_LIMIT,
            Task::Replicate(_) => REPLICATE_LIMIT,
            Task::Bring(bring) => Duration::from_secs(bring.within_s.into()) + LONG_LIMIT,
            _ => LIMIT,
        };
        let home = self.home(&task);
        let incarnation = home.map_or(0, |deployment| self.journal.counters(&deployment).incarnation);
        let deadline = began + limit;
        let (found, coming) = (BTreeMap::new(), BTreeMap::new());
        let mut chore =
            Chore { deadline, id, task, deployments, began, hosts, found, coming, watchers, then };
        for (turn, host) in chore.hosts.clone().into_iter().enumerate() {
            let order = HostOrder::Task { number, incarnation, task: dealt(&chore.task, turn) };
            let message = CoordinatorSession::Household(order);
            if !self.registry.say(&host, &message) {
                chore.enter(&host, refuse(not_connected(&host)));
            }
        }
        self.chores.insert(number, chore);
        self.end_chore_if_complete(number)
    }

    /// What is awaited of a deployment, in words.
    pub(super) fn open_chore(&self, deployment: &Name) -> Option<String> {
        self.chores.values().filter(|chore| chore.deployments.contains(deployment)).find_map(Chore::words)
    }

    /// A host has carried out a task, or not.
    pub(super) fn on_done(&mut self, host: &Name, number: u64, outcome: Checked<Outcome>) -> Result<()> {
        let Some(chore) = self.chores.get_mut(&number).filter(|chore| chore.awaited().any(|one| one == host))
        else {
            return Ok(());
        };
        let (vm, expected) = (chore.task.vm().cloned(), fits(&chore.task, &outcome));
        if !expected {
            let text = format!("host {host} answers another question; install the same release on both");
            chore.enter(host, Err(RequestError::new(RequestErrorKind::Internal, text)));
        } else {
            chore.enter(host, outcome.clone());
            // The next inventory comes within a second; who asks before is to see it, too.
            match (outcome, vm) {
                (Ok(Outcome::Made { report, .. }), _) => self.on_made(host, *report)?,
                (Ok(Outcome::Deleted), Some(vm)) => self.on_gone(host, &[vm])?,
                _ => {}
            }
        }
        self.end_chore_if_complete(number)
    }

    /// A host tells how far the image is that comes to it, or the disks.
    pub(super) fn on_bringing(&mut self, host: &Name, number: u64, from: Name, moved: Moved) {
        let is_meant = |chore: &&mut Chore| {
            matches!(chore.task, Task::Bring(_) | Task::Replicate(_))
                && chore.awaited().any(|one| one == host)
        };
        let Some(chore) = self.chores.get_mut(&number).filter(is_meant) else { return };
        let seconds = chore.began.elapsed().as_secs_f64();
        let whose = chore.task.vm().unwrap_or(host);
        let new = || FetchedMember::new(whose.clone(), from.clone(), host.clone());
        let coming = chore.coming.entry(host.clone()).or_insert_with(new);
        coming.from = from;
        coming.note(moved, seconds);
    }

    /// A host has gone: whether it has done it nobody knows.
    pub(super) fn chores_lose(&mut self, host: &Name) -> Result<()> {
        let text = format!(
            "the connection to host {host} broke; repeat the command when it is back: what was done is not done twice"
        );
        self.give_chores_up(|_, awaited| {
            (awaited == host).then(|| RequestError::new(RequestErrorKind::Refused, text.clone()))
        })
    }

    /// Whoever has not answered is not waited for any more.
    pub(super) fn on_chore_deadline(&mut self) -> Result<()> {
        let now = Instant::now();
        self.give_chores_up(|chore, host| {
            let waited = (chore.deadline - chore.began).as_secs();
            let text = format!(
                "host {host} has not answered in {waited} s; look at the log of the host agent there"
            );
            (chore.deadline <= now).then(|| RequestError::new(RequestErrorKind::TimedOut, text))
        })
    }

    fn give_chores_up(&mut self, why: impl Fn(&Chore, &Name) -> Option<RequestError>) -> Result<()> {
        for chore in self.chores.values_mut() {
            let given_up = chore.awaited().filter_map(|host| Some((host.clone(), why(chore, host)?)));
            for (host, error) in given_up.collect::<Vec<_>>() {
                chore.enter(&host, Err(error));
            }
        }
        let mut numbers = self.chores.keys().copied().collect::<Vec<_>>().into_iter();
        numbers.try_for_each(|number| self.end_chore_if_complete(number))
    }

    fn end_chore_if_complete(&mut self, number: u64) -> Result<()> {
        if self.chores.get(&number).is_some_and(|chore| chore.awaited().next().is_none())
            && let Some(chore) = self.chores.remove(&number)
        {
            let hosts = chore.found.into_values().collect();
            match chore.then {
                Then::Answer => tell(&chore.watchers, &Reply::Household(HouseholdReport { hosts })),
                Then::Image(request) => return self.go_on_with_image(request, hosts, &chore.watchers),
                Then::Brought(had) => return self.on_brought(had, hosts, &chore.watchers),
                Then::Replicate(replica, to) => return self.on_frozen(*replica, to, hosts, chore.watchers),
            }
        }
        Ok(())
    }
}

/// A host cannot say of one VM that it is another.
fn fits(task: &Task, outcome: &Checked<Outcome>) -> bool {
    match (task, outcome) {
        (_, Err(_))
        | (Task::Bases, Ok(Outcome::Bases(_)))
        | (Task::Preload { .. }, Ok(Outcome::Preloaded(_)))
        | (Task::Unregister(_), Ok(Outcome::Unregistered))
        | (Task::Delete { .. }, Ok(Outcome::Deleted))
        | (Task::Files { .. }, Ok(Outcome::Files(_)))
        | (Task::Freeze(_), Ok(Outcome::Frozen(_))) => true,
        (Task::Bring(bring), Ok(Outcome::Preloaded(base))) => bring
            .sources
            .iter()
            .all(|source| blake3::Hash::from_bytes(source.digest).to_hex().as_str() == base.blake3),
        (Task::Create(_) | Task::Clone(_) | Task::Replicate(_), Ok(Outcome::Made { report, .. })) => {
            task.vm() == Some(&report.name)
        }
        _ => false,
    }
}

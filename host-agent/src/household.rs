//! What is asked of the host and not of a member: one task that owns the bases, one queue. VMs come and go through
//! [`Registry`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use unasnap_protocol::household::{HostOrder, HostWord, Outcome, Task};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::RequestError;

use self::files::{present_files, saved_files};
use self::plan::{Plan, of_clone, of_new};
use crate::bases::{Bases, Candidate, Considered};
use crate::definition::{ImageFormat, VmDefinition};
use crate::hypervisor::Ground;
use crate::registry::{Registry, internal, refused};
use crate::store::Store;
use crate::transfer::bringing::Brought;
use crate::transfer::frozen::Shelf;
use crate::transfer::receiving::Receiver;
use crate::transfer::telling::Far;
use crate::works::{Works, chain};

mod files;
mod plan;
mod replicas;

/// Orders that may wait.
const QUEUE: usize = 64;

/// What a task has come to.
type Result<T> = std::result::Result<T, RequestError>;

/// Starts the task; it ends when the sender is dropped.
#[must_use]
pub fn start(
    registry: Arc<Registry>,
    bases: Bases,
    store: Store,
    receiver: Arc<Receiver>,
    shelf: Arc<Shelf>,
    words: mpsc::UnboundedSender<HostWord>,
) -> mpsc::Sender<HostOrder> {
    let (sender, orders) = mpsc::channel(QUEUE);
    let (coming, reading, replicas) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
    let household = Household { registry, bases, store, receiver, shelf, words, coming, reading, replicas };
    tokio::spawn(household.run(orders));
    sender
}

struct Household {
    registry: Arc<Registry>,
    bases: Bases,
    store: Store,
    receiver: Arc<Receiver>,
    shelf: Arc<Shelf>,
    words: mpsc::UnboundedSender<HostWord>,
    /// Images that come from other hosts, with the numbers of their tasks and the names that they get.
    coming: JoinSet<(u64, Name, Result<Brought>)>,
    /// Files whose digests are being computed, with the numbers of their tasks.
    reading: JoinSet<(u64, Result<Candidate>)>,
    /// Replicas that are sent or come, with the numbers of their tasks.
    replicas: JoinSet<(u64, Result<Outcome>)>,
}

impl Household {
    async fn run(mut self, mut orders: mpsc::Receiver<HostOrder>) {
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(HostOrder::Missing(names)) => {
                        let gone = self.registry.gone_among(&names);
                        if !gone.is_empty() {
                            self.say(HostWord::Gone(gone));
                        }
                    }
                    Some(HostOrder::Task { number, incarnation, task }) => {
                        tracing::info!(number, task = task.label(), vm = task.vm().map(Name::as_str));
                        if let Some(outcome) = self.carry_out(number, incarnation, task).await {
                            self.answer(number, outcome);
                        }
                    }
                    None => return,
                },
                Some(came) = self.coming.join_next() => match came {
                    Ok((number, name, Ok(brought))) => {
                        let considered = self.bases.consider_brought(brought, name).await;
                        if let Some(outcome) = self.preload(number, considered).await {
                            self.answer(number, outcome);
                        }
                    }
                    Ok((number, _, Err(error))) => self.answer(number, Err(error)),
                    Err(error) => tracing::error!("an image did not come: {error}"),
                },
                Some(ended) = self.replicas.join_next() => match ended {
                    Ok((number, outcome)) => self.answer(number, outcome),
                    Err(error) => tracing::error!("a replica came to nothing: {error}"),
                },
                Some(read) = self.reading.join_next() => match read {
                    Ok((number, read)) => {
                        let outcome = match read {
                            Ok(candidate) => self.enter(candidate).await,
                            Err(error) => Err(error),
                        };
                        self.answer(number, outcome);
                    }
                    Err(error) => tracing::error!("a digest was not computed: {error}"),
                },
            }
        }
    }

    /// `None` when the answer comes later.
    async fn carry_out(&mut self, number: u64, incarnation: u64, task: Task) -> Option<Result<Outcome>> {
        Some(match task {
            Task::Bases => Ok(self.all_bases().await),
            Task::Preload { path, name } => {
                let considered = self.bases.consider(&path, name).await;
                return self.preload(number, considered).await;
            }
            Task::Bring(bring) => {
                let (receiver, tell) = (Arc::clone(&self.receiver), self.teller(number));
                self.coming.spawn(async move {
                    let came = receiver.bring(&bring, tell).await;
                    (number, bring.name, came.map_err(|failure| refused(failure.text)))
                });
                return None;
            }
            Task::Freeze(vm) => {
                let (registry, shelf) = (Arc::clone(&self.registry), Arc::clone(&self.shelf));
                self.replicas.spawn(async move { (number, replicas::freeze(&registry, &shelf, &vm).await) });
                return None;
            }
            Task::Replicate(replica) => {
                let (registry, receiver) = (Arc::clone(&self.registry), Arc::clone(&self.receiver));
                let tell = self.teller(number);
                self.replicas.spawn(async move {
                    (number, replicas::replicate(&registry, &receiver, &replica, incarnation, tell).await)
                });
                return None;
            }
            Task::Unregister(name) => self.unregister(&name),
            Task::Create(new) => match self.bases.sound(&new.base).await {
                Ok(base) => match of_new(&new, base, &self.bases, self.registry.members()) {
                    Ok(plan) => self.make(plan, incarnation).await,
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            },
            Task::Clone(clone) => match of_clone(&clone, &self.bases, self.registry.members()) {
                Ok(plan) => self.make(plan, incarnation).await,
                Err(error) => Err(error),
            },
            Task::Files { vm, snapshot: Some(id) } => saved_files(&self.store, &vm, &id),
            Task::Files { vm, snapshot: None } => present_files(self.registry.members(), &vm),
            Task::Delete { vm, force, .. } => {
                self.registry.remove(&vm, force).await.map(|()| Outcome::Deleted)
            }
        })
    }

    async fn preload(&mut self, number: u64, considered: Result<Considered>) -> Option<Result<Outcome>> {
        match considered {
            Ok(considered @ (Considered::New(_) | Considered::Read(_)))
                if considered.format() == Some(ImageFormat::Vdi)
                    && let Err(error) = self.registry.needs_virtualbox().await =>
            {
                Some(Err(refused(format!(
                    "of a vdi image only VMs of VirtualBox are made, which this host does not drive: {}; for QEMU's, convert it \
                     (`qemu-img convert -O qcow2`) and preload that",
                    chain(&error)
                ))))
            }
            Ok(Considered::New(unread)) => {
                self.reading.spawn(async move { (number, unread.read().await) });
                None
            }
            Ok(Considered::Read(candidate)) => Some(self.enter(candidate).await),
            Ok(Considered::Known(name)) => Some(self.preloaded(&name).await),
            Err(error) => Some(Err(error)),
        }
    }

    async fn enter(&mut self, candidate: Candidate) -> Result<Outcome> {
        let name = self.bases.enter(candidate)?;
        self.preloaded(&name).await
    }

    async fn make(&self, plan: Plan, incarnation: u64) -> Result<Outcome> {
        let Plan { definition, like, known } = plan;
        let ground =
            like.as_ref().map_or(Ground::Bases(&known), |other: &VmDefinition| Ground::DisksOf(other));
        let (member, changed) = self.registry.make(definition, ground, incarnation).await?;
        Ok(Outcome::Made { report: Box::new(member.standing().report), changed })
    }

    async fn all_bases(&self) -> Outcome {
        let mut bases = Vec::new();
        for name in self.bases.known().keys() {
            bases.extend(self.bases.tell(name, self.users(name)).await);
        }
        Outcome::Bases(bases)
    }

    async fn preloaded(&self, name: &Name) -> Result<Outcome> {
        let base = self.bases.tell(name, self.users(name)).await;
        base.map(Outcome::Preloaded).ok_or_else(|| internal(format!("base {name} is gone")))
    }

    fn unregister(&mut self, name: &Name) -> Result<Outcome> {
        let users = self.users(name);
        if users.is_empty() {
            return self.bases.remove(name).map(|()| Outcome::Unregistered);
        }
        let users = users.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
        Err(refused(format!("base {name} is below disks of {users}: delete them first")))
    }

    /// VMs that have a base below a disk.
    fn users(&self, base: &Name) -> Vec<Name> {
        let Some(known) = self.bases.known().get(base) else { return Vec::new() };
        // A definition written by hand may name it by another way.
        let is_base = |path: &Path| path.canonicalize().is_ok_and(|path| path == known.image.path);
        let members = self.registry.members().list();
        let works = members.iter().map(|member| member.works());
        let uses =
            |works: &&Arc<Works>| images(works).iter().any(|image| image.as_deref().is_none_or(is_base));
        works.filter(uses).map(|works| works.definition().name.clone()).collect()
    }

    /// Says how far the transfer of a task is.
    fn teller(&self, number: u64) -> impl Fn(Far) + Send + use<> {
        let words = self.words.clone();
        // The other end lives as long as the process.
        move |Far { from, moved }| drop(words.send(HostWord::Bringing { number, from, moved }))
    }

    fn answer(&self, number: u64, outcome: Result<Outcome>) {
        if let Err(error) = &outcome {
            tracing::warn!(number, "it is not carried out: {error}");
        }
        self.say(HostWord::Done { number, outcome });
    }

    fn say(&self, word: HostWord) {
        // The receiver lives as long as the process.
        let _ = self.words.send(word);
    }
}

/// The images below the disks of a VM. `None` is any: what a machine of VirtualBox has is not known where its files cannot be read.
fn images(works: &Works) -> Vec<Option<PathBuf>> {
    let definition = works.definition();
    if definition.machine.is_none() {
        return definition.disks.iter().map(|disk| Some(disk.image.clone())).collect();
    }
    match works.disk_files() {
        Ok(disks) => disks.into_iter().map(|files| files.into_iter().next()).collect(),
        Err(failure) => {
            tracing::warn!(vm = %definition.name, "what is below its disks is not known: {}", failure.text);
            vec![None]
        }
    }
}

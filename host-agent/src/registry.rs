//! VMs come and go while the host agent runs.
//!
//! A VM is there exactly while its definition, a `*.toml` in the folder of definitions, is there. One that is being made or
//! removed has a `<name>.toml.undone` instead, durable before anything else is done: whatever the state folder holds of
//! it then is nobody's. So a crash in between leaves the VM or nothing of it:
//!
//! ```text
//!   make:    write .undone ──▶ make its disks ──▶ rename to .toml ──▶ start its member
//!   remove:  end its member ──▶ rename to .undone ──▶ delete its disks ──▶ delete .undone ──▶ say that it is gone
//!   open:    of each .undone: delete the disks, delete .undone
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use tokio::sync::{Mutex, mpsc};
use unasnap_protocol::control::{Answer, Envelope, MAX_VMS_PER_HOST};
use unasnap_protocol::household::HostWord;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{RequestError, RequestErrorKind};

use self::starting::{Found, find_or_start};
use crate::colouring::host::Taps;
use crate::definition::{MAX_FILE_BYTES, VmDefinition, load_files, load_folder};
use crate::drivers::{Drivers, Runners};
use crate::hypervisor::{Ground, Hypervisor, HypervisorError, Pending};
use crate::member::{self, Handle};
use crate::members::Members;
use crate::store::Store;
use crate::store::files;
use crate::store::manifest::Facts;
use crate::switches::Switches;
use crate::together::Together;
use crate::works::{Works, chain};

mod starting;

/// Follows the name of a VM that is not there (yet, or any more).
const UNDONE: &str = ".toml.undone";

/// What members answer, with the envelopes of their orders.
pub type Answers = mpsc::UnboundedSender<(Envelope, Answer)>;

/// Who is on this host. Changes come one after the other.
pub struct Registry {
    vm_dir: PathBuf,
    members: Members,
    store: Store,
    taps: Arc<dyn Taps>,
    answers: Answers,
    words: mpsc::UnboundedSender<HostWord>,
    together: Together,
    drivers: Mutex<Drivers>,
    changing: Mutex<()>,
}

impl Registry {
    /// Ends what an earlier agent did not live to end, then finds or starts all VMs that are defined.
    ///
    /// # Errors
    /// A hypervisor that is needed is not usable, or the folder of definitions cannot be listed.
    pub async fn open(
        vm_dir: &Path,
        drivers: Drivers,
        store: Store,
        taps: Arc<dyn Taps>,
        answers: Answers,
        words: mpsc::UnboundedSender<HostWord>,
        together: Together,
    ) -> Result<Self> {
        let registry = Self {
            vm_dir: vm_dir.to_owned(),
            members: Members::default(),
            store,
            taps,
            answers,
            words,
            together,
            drivers: Mutex::new(drivers),
            changing: Mutex::default(),
        };
        registry.undo_all().await?;
        let (definitions, problems) = load_folder(vm_dir)?;
        for problem in problems {
            tracing::error!("a VM is left out: {:#}", anyhow::Error::from(problem));
        }
        let mut drivers = registry.drivers.lock().await;
        // Also where no VM is defined yet: what is wrong with the host is better known now.
        if definitions.iter().all(|vm| vm.machine.is_none())
            && let Err(error) = drivers.open(false).await
        {
            // A host whose VMs will be VirtualBox's need not have QEMU.
            if !definitions.is_empty() || drivers.open(true).await.is_err() {
                return Err(error.into());
            }
            tracing::warn!("VMs of VirtualBox only can be made here: {}", chain(&error));
        }
        let mut defined = Vec::new();
        for definition in definitions {
            let hypervisor = drivers.of(&definition).await?;
            defined.push((definition, hypervisor));
        }
        drop(drivers);
        for (definition, hypervisor, found) in find_or_start(defined, &registry.store).await {
            registry.take_in(definition, hypervisor, found).await?;
        }
        Ok(registry)
    }

    /// Refuses where VirtualBox cannot be driven.
    ///
    /// # Errors
    /// Why not.
    pub async fn needs_virtualbox(&self) -> Result<(), HypervisorError> {
        self.facts(true).await.map(drop)
    }

    /// All VMs that are there.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Enters a VM whose disks, if it has any here already, lie in the state folder. It does not run yet. Success when
    /// the same VM is there already: `false` then.
    ///
    /// # Errors
    /// There is another one of this name, or its definition is wrong or cannot be written.
    pub async fn add(&self, definition: VmDefinition) -> Result<(Handle, bool), RequestError> {
        self.come(definition, None).await
    }

    /// As [`add`](Self::add), with disks that are made now; what lies in the state folder under its name is deleted.
    ///
    /// # Errors
    /// As there, or the hypervisor's.
    pub async fn make(
        &self,
        definition: VmDefinition,
        ground: Ground<'_>,
        incarnation: u64,
    ) -> Result<(Handle, bool), RequestError> {
        self.come(definition, Some((ground, incarnation))).await
    }

    async fn come(
        &self,
        definition: VmDefinition,
        making: Option<(Ground<'_>, u64)>,
    ) -> Result<(Handle, bool), RequestError> {
        let _changing = self.changing.lock().await;
        let name = definition.name.clone();
        let path = self.vm_dir.join(format!("{name}.toml"));
        let text = definition.to_toml().map_err(|error| refused(error.to_string()))?;
        let definition = VmDefinition::parse(&text, &path).map_err(|error| refused(chain(&error)))?;
        if let Some(known) = self.members.get(&name) {
            if *known.works().definition() == definition {
                return Ok((known, false));
            }
            return Err(refused(format!("this host has another VM {name}; choose another name")));
        }
        if path.exists() {
            let path = path.display();
            return Err(refused(format!("{path} is there and no VM of this agent's; mend or remove it")));
        }
        if self.members.list().len() >= MAX_VMS_PER_HOST {
            return Err(refused(format!("this host has {MAX_VMS_PER_HOST} VMs; use another host")));
        }
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(refused(
                "its definition would be larger than 64 KiB; give it fewer addresses".to_owned(),
            ));
        }
        let hypervisor =
            self.drivers.lock().await.of(&definition).await.map_err(|error| refused(chain(&error)))?;
        let undone = self.undone(&name);
        files::write_durably(&undone, text.as_bytes()).map_err(|error| cannot("write", &undone, &error))?;
        let begun = async {
            if let Some((ground, incarnation)) = making {
                let made = hypervisor.make(&definition, ground, incarnation).await;
                made.map_err(|error| refused(chain(&error)))?;
            }
            self.rename(&undone, &path)
        };
        if let Err(error) = begun.await {
            if let Err(left) = self.undo(&name, making.is_some().then_some(hypervisor.as_ref())).await {
                tracing::warn!(vm = %name, "what was made of it is left until the next start: {left:#}");
            }
            return Err(error);
        }
        tracing::info!(vm = %name, "it is defined by {}", path.display());
        let handle =
            self.take_in(definition, hypervisor, None).await.map_err(|error| internal(error.to_string()))?;
        Ok((handle, true))
    }

    /// Ends a VM for good and deletes its disks; its snapshots stay. Success when it is not there.
    ///
    /// # Errors
    /// It runs and this is not `force`; something is under way there; or something cannot be deleted. It is still there then.
    pub async fn remove(&self, vm: &Name, force: bool) -> Result<(), RequestError> {
        self.see_off(vm, force).await?;
        // The receiver lives as long as the process.
        let _ = self.words.send(HostWord::Gone(vec![vm.clone()]));
        Ok(())
    }

    /// As [`remove`](Self::remove), of one that lives on elsewhere: nobody is told that it is gone.
    ///
    /// # Errors
    /// As there.
    pub async fn see_off(&self, vm: &Name, force: bool) -> Result<(), RequestError> {
        let _changing = self.changing.lock().await;
        let Some(handle) = self.members.get(vm) else {
            if self.gone_among(std::slice::from_ref(vm)).is_empty() {
                let folder = self.vm_dir.display();
                let text = format!(
                    "a definition in {folder} is wrong, and may be that of {vm}; look at this host's log"
                );
                return Err(refused(text));
            }
            return Ok(());
        };
        let busy = |what| refused(format!("{what} is under way at VM {vm}; try again when it has ended"));
        handle.end().await.map_err(busy)?;
        let works = handle.works().clone();
        if let Err(error) = self.take_away(&works, force).await {
            self.members.enter(vm.clone(), member::start(works, self.answers.clone()).await);
            return Err(error);
        }
        tracing::info!(vm = %vm, "it is removed");
        self.members.leave(vm);
        Ok(())
    }

    /// Nobody else has to do with the VM now.
    async fn take_away(&self, works: &Works, force: bool) -> Result<(), RequestError> {
        works.end(force).await.map_err(|failure| refused(failure.text))?;
        let definition = works.definition();
        let undone = self.undone(&definition.name);
        let (found, _) = load_files(&self.vm_dir).map_err(|error| internal(chain(&error)))?;
        let file = found.into_iter().find(|(_, other)| other.name == definition.name).map(|(path, _)| path);
        match &file {
            Some(path) => self.rename(path, &undone)?,
            // Whoever took it away wanted no less.
            None => {
                let text = definition.to_toml().map_err(|error| internal(error.to_string()))?;
                files::write_durably(&undone, text.as_bytes())
                    .map_err(|error| cannot("write", &undone, &error))?;
            }
        }
        if let Err(failure) = works.forget().await {
            if let Some(path) = &file {
                self.rename(&undone, path)?;
            }
            return Err(refused(failure.text));
        }
        self.strike(&undone).map_err(|error| cannot("delete", &undone, &error))
    }

    /// Of these names, those that are certainly no VM's of this host: a definition that is wrong may be any VM's.
    #[must_use]
    pub fn gone_among(&self, names: &[Name]) -> Vec<Name> {
        let (defined, wrong) = match load_files(&self.vm_dir) {
            Ok(files) => files,
            Err(error) => {
                tracing::error!("{}", chain(&error));
                return Vec::new();
            }
        };
        if !wrong.is_empty() {
            let vms = names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
            tracing::error!("a definition is wrong, so that nobody can tell whether {vms} are gone");
            return Vec::new();
        }
        let is_defined = |name: &Name| defined.iter().any(|(_, vm)| vm.name == *name);
        names.iter().filter(|name| self.members.get(name).is_none() && !is_defined(name)).cloned().collect()
    }

    async fn take_in(
        &self,
        definition: VmDefinition,
        hypervisor: Arc<dyn Hypervisor>,
        found: Found,
    ) -> Result<Handle> {
        let (name, switches) = (definition.name.clone(), Switches::from_environment(&definition.name)?);
        let works = Works::new(definition, hypervisor, self.store.clone(), self.taps.clone(), switches);
        let works = works.pausing_with(self.together.clone());
        works.take_charge(found).await;
        let handle = member::start(Arc::new(works), self.answers.clone()).await;
        self.members.enter(name, handle.clone());
        Ok(handle)
    }

    /// What an earlier agent did not live to make or to remove is removed.
    async fn undo_all(&self) -> Result<()> {
        for entry in fs::read_dir(&self.vm_dir)? {
            let file = entry?.file_name().to_string_lossy().into_owned();
            if file.strip_suffix(".new").is_some_and(|half| half.ends_with(UNDONE)) {
                files::remove_if_there(&self.vm_dir.join(file))?;
                continue;
            }
            let Some(name) = file.strip_suffix(UNDONE).and_then(|name| Name::new(name).ok()) else {
                continue;
            };
            if self.vm_dir.join(format!("{name}.toml")).exists() {
                tracing::warn!(vm = %name, "it is defined again: its {file} is deleted");
                self.strike(&self.undone(&name))?;
                continue;
            }
            tracing::warn!(vm = %name, "it was being made or removed when the agent ended: it is removed");
            let text = fs::read_to_string(self.vm_dir.join(&file)).unwrap_or_default();
            let virtualbox = toml::from_str::<VmDefinition>(&text).is_ok_and(|vm| vm.machine.is_some());
            let hypervisor = self.drivers.lock().await.open(virtualbox).await?;
            if let Err(error) = self.undo(&name, Some(hypervisor.as_ref())).await {
                tracing::error!(vm = %name, "it is not removed altogether: {error:#}");
            }
        }
        Ok(())
    }

    async fn undo(&self, vm: &Name, hypervisor: Option<&dyn Hypervisor>) -> Result<()> {
        if let Some(hypervisor) = hypervisor {
            hypervisor.destroy(vm).await?;
            hypervisor.forget(vm).await?;
        }
        Ok(self.strike(&self.undone(vm))?)
    }

    fn undone(&self, vm: &Name) -> PathBuf {
        self.vm_dir.join(format!("{vm}{UNDONE}"))
    }

    fn strike(&self, file: &Path) -> std::io::Result<()> {
        files::remove_if_there(file)?;
        files::sync_folder(&self.vm_dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), RequestError> {
        let renamed = fs::rename(from, to).and_then(|()| files::sync_folder(&self.vm_dir));
        renamed.map_err(|error| cannot("rename", from, &error))
    }
}

impl Runners for Registry {
    fn facts(&self, virtualbox: bool) -> Pending<'_, Facts> {
        Box::pin(async move { Ok(self.drivers.lock().await.open(virtualbox).await?.about().clone()) })
    }
}

pub(crate) fn refused(text: String) -> RequestError {
    RequestError::new(RequestErrorKind::Refused, text)
}

pub(crate) fn no_vm(vm: &Name) -> RequestError {
    RequestError::new(RequestErrorKind::NotFound, format!("this host has no VM {vm}"))
}

pub(crate) fn internal(text: String) -> RequestError {
    RequestError::new(RequestErrorKind::Internal, text)
}

pub(crate) fn cannot(what: &str, path: &Path, error: &std::io::Error) -> RequestError {
    internal(format!("cannot {what} {}: {error}", path.display()))
}

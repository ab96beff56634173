//! VirtualBox, driven through VBoxManage.
//!
//! | module | what is in it |
//! |---|---|
//! | `buttons` | what stops a machine or lets it run, outside any cut |
//! | `calls` | one call of VBoxManage: bounded, and what its answer means |
//! | `coming` | machines that another host's unasnap has made |
//! | `config` | the `[virtualbox]` part of `host.toml` |
//! | `console` | what guests write to their serial consoles |
//! | `guestcontrol` | the guest channel of machines without a free serial port |
//! | `holder` | a base that machines share |
//! | `info` | `showvminfo` |
//! | `making` | machines that unasnap makes, clones and deletes |
//! | `manage` | what is asked of VirtualBox about one machine |
//! | `machine` | which files belong to a cut; into a local snapshot and out of it |
//! | `record` | what is remembered between two lives of the host agent |
//! | `restoring` | a machine as a local snapshot has it |
//! | `vm` | one machine that runs: prepare, cut, save, discard |
//!
//! The operator makes the machine, or unasnap does, on a base that several share; unasnap starts, snapshots and restores it. A cut is
//! a snapshot of VirtualBox whose files are copied into the local snapshot and which is deleted then, so that nothing of unasnap's
//! grows in VirtualBox, and a local snapshot needs nothing of VirtualBox but the bases of its disks. A restore lets VirtualBox forget
//! the machine, puts the files in their places and registers it again: the same on the host where it was and on any other.
//!
//! VBoxManage cannot load a machine without letting it run. So a restored machine stands *saved* until START: every byte of it was
//! compared with its digest, and VirtualBox reads it when it starts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use unasnap_protocol::name::Name;

use self::calls::{Calls, VBoxManage};
pub use self::config::{Login, VirtualBoxConfig};
use self::console::Console;
use self::guestcontrol::Relay;
use self::info::{Info, State};
use self::machine::{BASE, Machine};
use self::manage::Manage;
pub use self::record::own_machine;
use self::record::{Record, VmFolder, socket_path};
use self::vm::{Stage, VirtualBoxVm};
use super::process::Process;
use super::{FrozenDisks, Ground, Hypervisor, HypervisorError, Pending, SavedVm, Vm};
use crate::definition::VmDefinition;
use crate::store::files::remove_if_there;
use crate::store::manifest::{Accel, Facts, RamWay};

mod buttons;
pub mod calls;
pub mod coming;
mod config;
mod console;
mod guestcontrol;
pub mod holder;
pub mod info;
pub mod machine;
mod making;
pub mod manage;
mod record;
mod restoring;
mod vm;

/// How long the session of a machine may stay locked after its end.
const UNLOCK_LIMIT: Duration = Duration::from_secs(30);
/// How long a killed process may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// The driver.
pub struct VirtualBox {
    config: VirtualBoxConfig,
    calls: Arc<dyn Calls>,
    facts: Facts,
    /// One after the other has VirtualBox change which machines share a base.
    sharing: Mutex<()>,
}

impl VirtualBox {
    /// Asks the host's VirtualBox for its version.
    ///
    /// # Errors
    /// It is not installed.
    pub async fn open(config: VirtualBoxConfig) -> Result<Self, HypervisorError> {
        let folder = config.state_dir.join("virtualbox");
        std::fs::create_dir_all(&folder).map_err(HypervisorError::file("create", &folder))?;
        let calls = Arc::new(VBoxManage::new(&config, &folder));
        Self::with_calls(config, calls).await
    }

    /// As [`open`](Self::open), with somebody else who makes the calls.
    ///
    /// # Errors
    /// As there.
    pub async fn with_calls(
        mut config: VirtualBoxConfig,
        calls: Arc<dyn Calls>,
    ) -> Result<Self, HypervisorError> {
        // VirtualBox's service has a working directory of its own.
        config.state_dir =
            config.state_dir.canonicalize().map_err(HypervisorError::file("resolve", &config.state_dir))?;
        let arguments = ["--version"];
        let answer = calls.call("(any)", &arguments, UNLOCK_LIMIT).await?.success("(any)", &arguments)?;
        let facts = Facts {
            kind: "virtualbox".to_owned(),
            version: answer.stdout.trim().to_owned(),
            machine: String::new(),
            accel: Accel::VirtualBox,
            ram_way: RamWay::StopAndSave,
        };
        Ok(Self { config, calls, facts, sharing: Mutex::default() })
    }

    fn manage(&self, vm: &Name, uuid: String) -> Manage {
        Manage::new(self.calls.clone(), vm.to_string(), uuid)
    }

    fn folder(&self, vm: &Name) -> VmFolder {
        VmFolder::new(&self.config.state_dir, vm)
    }

    async fn start_vm(&self, vm: &VmDefinition, incarnation: u64) -> Result<Box<dyn Vm>, HypervisorError> {
        let (machine, folder) = (machine(vm)?, self.folder(&vm.name));
        let manage = self.manage(&vm.name, machine.uuid()?);
        let last = folder.read()?;
        if manage.find().await?.is_none() {
            manage.register(&machine.vbox, &[]).await?;
        }
        let info = manage.info().await?;
        if !info.is_accessible() {
            let why =
                format!("VirtualBox misses a file of {}: restore its deployment", machine.vbox.display());
            return Err(manage.wrong_state("start", why));
        }
        if info.state.is_alive() {
            return Err(manage.wrong_state("start", "it already runs: destroy that first".to_owned()));
        }
        let mut info = manage.unlocked(UNLOCK_LIMIT).await?;
        check_size(vm, &info)?;
        if info.state == State::Off {
            self.make_ready(&vm.name, &manage, &machine, &info).await?;
            info = manage.info().await?;
        }
        let incarnation = last.as_ref().map_or(incarnation, |last| incarnation.max(last.incarnation));
        let bases = last.map(|last| last.bases).unwrap_or_default();
        let uuid = manage.uuid().to_owned();
        let made = folder.owns(vm);
        let record =
            Record { uuid, incarnation, awaits_resume: false, fenced: false, paused: false, bases, made };
        folder.write(&record)?;
        prepare_sockets(&info, &folder)?;
        manage.start().await?;
        Ok(Box::new(self.vm(vm, manage, machine, record, &info)?))
    }

    /// What can be changed only while the machine is off.
    async fn make_ready(
        &self,
        vm: &Name,
        manage: &Manage,
        machine: &Machine,
        info: &Info,
    ) -> Result<(), HypervisorError> {
        if let Some(engine) = &self.config.execution_engine {
            manage.modify(&[&format!("--vm-execution-engine={engine}")]).await?;
        }
        if info.guest_channel.is_none() && !self.config.guestcontrol.contains_key(vm) {
            let socket = socket_path(&self.folder(vm).guest_channel())?;
            manage.modify(&["--uart2", "0x2F8", "3", "--uart-mode2", "server", &socket]).await?;
        }
        if !machine.written_bases()?.is_empty() {
            manage.take(BASE).await?;
        }
        Ok(())
    }

    fn vm(
        &self,
        vm: &VmDefinition,
        manage: Manage,
        machine: Machine,
        record: Record,
        info: &Info,
    ) -> Result<VirtualBoxVm, HypervisorError> {
        let folder = self.folder(&vm.name);
        let console = record.made.then(|| Console::keep(folder.console_socket(), folder.console()));
        let login = self.config.guestcontrol.get(&vm.name);
        let relay =
            login.map(|login| Relay::listen(manage.clone(), login.clone(), folder.clone())).transpose()?;
        let port = info.guest_channel.clone().unwrap_or_default();
        let guest_channel = if relay.is_some() { folder.relay() } else { port };
        Ok(VirtualBoxVm {
            manage,
            machine,
            folder,
            _console: console,
            record,
            facts: self.facts.clone(),
            memory_bytes: info.memory_mb << 20,
            guest_channel,
            relay,
            stage: Stage::Idle,
            tidying: None,
        })
    }

    async fn adopt_vm(&self, vm: &VmDefinition) -> Result<Option<Box<dyn Vm>>, HypervisorError> {
        let (machine, last) = (machine(vm)?, self.folder(&vm.name).read()?);
        if !machine.vbox.exists() {
            return Ok(None);
        }
        let manage = self.manage(&vm.name, machine.uuid()?);
        let last = last.filter(|last| last.uuid == manage.uuid());
        let Some(info) = manage.find().await? else { return Ok(None) };
        let awaits_resume = last.as_ref().is_some_and(|last| last.awaits_resume);
        let is_loaded = info.state == State::Saved && awaits_resume;
        if !info.state.is_alive() && !is_loaded {
            return Ok(None);
        }
        check_size(vm, &info)?;
        let record = last.unwrap_or_else(|| Record {
            uuid: manage.uuid().to_owned(),
            incarnation: 0,
            awaits_resume: false,
            fenced: false,
            paused: false,
            bases: Vec::new(),
            made: self.folder(&vm.name).owns(vm),
        });
        let mut adopted = self.vm(vm, manage, machine, record, &info)?;
        match adopted.discard_cut().await {
            // VirtualBox still merges disks: that ends behind the instance, and its next cut waits for it.
            Err(error) if adopted.tidying.is_some() => tracing::warn!(%error, "it is adopted as it is"),
            other => other?,
        }
        Ok(Some(Box::new(adopted)))
    }

    async fn destroy_vm(&self, vm: &Name) -> Result<(), HypervisorError> {
        let folder = self.folder(vm);
        let Some(mut record) = folder.read()? else { return Ok(()) };
        let manage = self.manage(vm, record.uuid.clone());
        let Some(info) = manage.find().await? else { return Ok(()) };
        if info.state.is_alive() {
            let ended = match manage.power_off().await {
                Ok(()) => manage.unlocked(UNLOCK_LIMIT).await,
                Err(error) => Err(error),
            };
            // VirtualBox powers nothing off that hangs half-way, while it reads a damaged RAM for one.
            if let Err(error) = ended
                && manage.info().await?.state.is_alive()
            {
                tracing::warn!(vm = %vm, %error, "its process is killed");
                self.kill(vm, &record.uuid).await?;
                manage.unlocked(UNLOCK_LIMIT).await?;
            }
        }
        // Nobody may start a restored machine that was given up.
        if record.awaits_resume && manage.unlocked(UNLOCK_LIMIT).await?.state == State::Saved {
            manage.discard_saved().await?;
        }
        record.awaits_resume = false;
        folder.write(&record)
    }

    /// Kills the process of a machine of this VirtualBox.
    async fn kill(&self, vm: &Name, uuid: &str) -> Result<(), HypervisorError> {
        let home = self.config.ipc_socket_id.as_ref().map(|id| format!("VBOX_IPC_SOCKETID={id}"));
        for pid in Process::with_argument(uuid) {
            let Some(process) = Process::of(pid) else { continue };
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let mut variables = environment.split(|byte| *byte == 0);
            if home.as_ref().is_none_or(|home| variables.any(|variable| variable == home.as_bytes())) {
                process.kill(KILL_LIMIT).await.map_err(|_| HypervisorError::TimedOut {
                    vm: vm.to_string(),
                    what: format!("the end of process {pid} after SIGKILL"),
                    after: KILL_LIMIT,
                })?;
            }
        }
        Ok(())
    }
}

/// The machine of a VM that is defined as VirtualBox's.
fn machine(vm: &VmDefinition) -> Result<Machine, HypervisorError> {
    let what = || format!("VM {} has no machine: it is not VirtualBox's", vm.name);
    let vbox = vm.machine.clone().ok_or_else(|| HypervisorError::Unsupported { what: what() })?;
    Ok(Machine { vbox })
}

/// What the operator is told of a VM is what its definition says.
fn check_size(vm: &VmDefinition, info: &Info) -> Result<(), HypervisorError> {
    if (vm.memory_mb, vm.cpus) == (info.memory_mb, info.cpus) {
        return Ok(());
    }
    let what = format!(
        "VM {} is defined with memory_mb = {} and cpus = {}, and its machine has {} and {}: correct the definition",
        vm.name, vm.memory_mb, vm.cpus, info.memory_mb, info.cpus
    );
    Err(HypervisorError::Unsupported { what })
}

/// VirtualBox makes the sockets of serial ports, if their folder is there and those of an earlier process are not.
fn prepare_sockets(info: &Info, folder: &VmFolder) -> Result<(), HypervisorError> {
    for socket in info.guest_channel.iter().chain([&folder.console_socket()]) {
        let above = socket.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(above).map_err(HypervisorError::file("create", above))?;
        remove_if_there(socket).map_err(HypervisorError::file("delete", socket))?;
    }
    Ok(())
}

impl Hypervisor for VirtualBox {
    fn about(&self) -> &Facts {
        &self.facts
    }

    fn start<'a>(&'a self, vm: &'a VmDefinition, incarnation: u64) -> Pending<'a, Box<dyn Vm>> {
        Box::pin(self.start_vm(vm, incarnation))
    }

    fn adopt<'a>(&'a self, vm: &'a VmDefinition) -> Pending<'a, Option<Box<dyn Vm>>> {
        Box::pin(self.adopt_vm(vm))
    }

    fn restore<'a>(
        &'a self,
        vm: &'a VmDefinition,
        saved: SavedVm<'a>,
        incarnation: u64,
    ) -> Pending<'a, Box<dyn Vm>> {
        Box::pin(self.restore_vm(vm, saved, incarnation))
    }

    fn destroy<'a>(&'a self, vm: &'a Name) -> Pending<'a, ()> {
        Box::pin(self.destroy_vm(vm))
    }

    fn make<'a>(&'a self, vm: &'a VmDefinition, ground: Ground<'a>, incarnation: u64) -> Pending<'a, ()> {
        Box::pin(self.make_vm(vm, ground, incarnation))
    }

    fn forget<'a>(&'a self, vm: &'a Name) -> Pending<'a, ()> {
        Box::pin(self.forget_vm(vm))
    }

    fn freeze<'a>(&'a self, vm: &'a VmDefinition) -> Pending<'a, FrozenDisks> {
        Box::pin(self.frozen_disks(vm))
    }

    /// A machine that was made by hand has its own use for its ports.
    fn console(&self, vm: &Name) -> Option<PathBuf> {
        let folder = self.folder(vm);
        folder.read().ok().flatten().filter(|record| record.made).map(|_| folder.console())
    }

    /// Its `.vbox` knows them. Where none is yet, a restore brings it.
    fn disk_files(&self, vm: &VmDefinition) -> Result<Vec<Vec<PathBuf>>, HypervisorError> {
        let machine = machine(vm)?;
        if machine.vbox.exists() { machine.disks() } else { Ok(Vec::new()) }
    }
}

//! QEMU, driven through QMP.
//!
//! | module | what is in it |
//! |---|---|
//! | `probe` | what this host's QEMU can do |
//! | `command` | the command line |
//! | `config` | its part of the configuration |
//! | `console` | keeps what guests write small |
//! | `instance` | what is remembered between two lives of the host agent |
//! | `qmp` | the monitor protocol |
//! | `vm` | one living instance: prepare, cut, save, discard |
//! | `buttons` | what an operator does to it: pause, resume, power |
//! | `disks`, `ram` | the parts of a cut |
//! | `making` | disks of VMs that come, and the end of those that go |
//! | `guest_ram` | a word of the guest's RAM, read and written in a pause |
//! | `devices` | were any plugged in or out meanwhile? |
//! | `urgency` | real-time priority around a cut, and the last place in the queue before it |
//! | `tap`, `tool` | network devices; programs of the host |
//!
//! QEMU daemonizes: it survives the host agent, whatever ends that, and is adopted by the next one.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use unasnap_protocol::name::Name;

use self::command::{BINARY, Begin};
pub use self::config::QemuConfig;
use self::instance::{Chain, Instance, VmFolder};
use self::qmp::Qmp;
use self::urgency::Urgent;
use self::vm::QemuVm;
use super::process::Process;
use super::{FrozenDisks, Ground, Hypervisor, HypervisorError, Pending, SavedVm, Vm};
use crate::definition::VmDefinition;
use crate::fault_point;
use crate::store::files::remove_if_there;
use crate::store::manifest::{Facts, FileRole, RamWay};

mod buttons;
mod command;
pub mod config;
mod console;
mod devices;
mod disks;
mod guest_ram;
mod instance;
mod making;
mod probe;
mod qmp;
mod ram;
mod tap;
pub(crate) mod tool;
mod urgency;
mod vm;

/// How long a new QEMU may take to set itself up.
const SPAWN_PATIENCE: Duration = Duration::from_secs(60);
/// How long a killed QEMU may take to be gone; a large RAM takes the kernel a while to free.
const KILL_PATIENCE: Duration = Duration::from_secs(30);

/// The driver.
#[derive(Debug)]
pub struct Qemu {
    config: QemuConfig,
    facts: Facts,
}

impl Qemu {
    /// Probes the host's QEMU and removes the tap devices of VMs that died.
    ///
    /// # Errors
    /// QEMU is not installed, or cannot do what the configuration insists on.
    pub async fn open(mut config: QemuConfig) -> Result<Self, HypervisorError> {
        let vms = config.state_dir.join("vms");
        std::fs::create_dir_all(&vms).map_err(HypervisorError::file("create", &vms))?;
        // QEMU changes its working directory when it daemonizes.
        config.state_dir =
            config.state_dir.canonicalize().map_err(HypervisorError::file("resolve", &config.state_dir))?;
        let facts = probe::probe(&config).await?;
        let driver = Self { config, facts };
        driver.remove_leftovers().await?;
        tokio::spawn(console::keep_small(driver.config.state_dir.join("vms")));
        Ok(driver)
    }

    fn folder(&self, vm: &Name) -> VmFolder {
        VmFolder::new(&self.config.state_dir, vm)
    }

    async fn remove_leftovers(&self) -> Result<(), HypervisorError> {
        let vms = self.config.state_dir.join("vms");
        for entry in std::fs::read_dir(&vms).map_err(HypervisorError::file("list", &vms))? {
            let entry = entry.map_err(HypervisorError::file("list", &vms))?;
            let Ok(name) = Name::new(&entry.file_name().to_string_lossy()) else { continue };
            let folder = self.folder(&name);
            if let Some(instance) = Instance::read(&folder)?
                && instance.living(&folder).is_none()
            {
                tap::remove_all(&instance.taps).await?;
            }
        }
        Ok(())
    }

    /// Refuses when an instance lives; otherwise the record of the last one.
    fn last_life(
        &self,
        vm: &VmDefinition,
        wanted: &'static str,
    ) -> Result<Option<Instance>, HypervisorError> {
        let folder = self.folder(&vm.name);
        let instance = Instance::read(&folder)?;
        if let Some(process) = instance.as_ref().and_then(|instance| instance.living(&folder)) {
            let why = format!("it already runs as process {}: destroy that first", process.pid);
            return Err(HypervisorError::WrongState { vm: vm.name.to_string(), wanted, why });
        }
        Ok(instance)
    }

    async fn start_vm(&self, vm: &VmDefinition, incarnation: u64) -> Result<Box<dyn Vm>, HypervisorError> {
        let last = self.last_life(vm, "start")?;
        let incarnation = last.as_ref().map_or(incarnation, |last| incarnation.max(last.incarnation));
        let folder = self.folder(&vm.name);
        folder.create()?;
        let known = last.map(|instance| instance.disks).unwrap_or_default();
        let mut chains = Vec::new();
        for (index, disk) in vm.disks.iter().enumerate() {
            chains.push(match known.get(index).filter(|chain| chain.base.path == disk.image) {
                Some(chain) => disks::after_a_crash(chain.clone(), &folder),
                None => disks::new_chain(index, disk, &folder).await?,
            });
        }
        let launch = Launch { vm, folder, facts: self.facts.clone(), incarnation, begin: Begin::Boot };
        Ok(Box::new(self.launch(launch, chains).await?))
    }

    async fn restore_vm(
        &self,
        vm: &VmDefinition,
        saved: SavedVm<'_>,
        incarnation: u64,
    ) -> Result<Box<dyn Vm>, HypervisorError> {
        self.last_life(vm, "restore")?;
        let manifest = saved.manifest;
        let has = |role| manifest.files.iter().any(|file| file.role == role);
        let way = match () {
            () if has(FileRole::Ram) => RamWay::Live,
            () if has(FileRole::MigrationStream) => RamWay::StopAndSave,
            () => return Err(unsupported("the snapshot holds no RAM: verify it".to_owned())),
        };
        if manifest.hypervisor.kind != "qemu" {
            let what = format!("the snapshot was taken by {}, this host runs qemu", manifest.hypervisor.kind);
            return Err(unsupported(what));
        }
        let folder = self.folder(&vm.name);
        folder.create()?;
        std::fs::remove_dir_all(&folder.disks).map_err(HypervisorError::file("empty", &folder.disks))?;
        folder.create()?;
        // A snapshot fits the machine type it was taken on; how later cuts are made is this host's affair.
        let facts = Facts { machine: manifest.hypervisor.machine.clone(), ..self.facts.clone() };
        let chains = disks::from_snapshot(manifest, saved.folder, &vm.disks, &folder).await?;
        let ram = saved.folder.join(ram::RAM_FILE);
        let begin = if way == RamWay::Live { Begin::IncomingAbove(&ram) } else { Begin::Incoming };
        let launch = Launch { vm, folder, facts, incarnation, begin };
        let mut loaded = self.launch(launch, chains).await?;
        if let Err(error) = loaded.load(way, saved.folder).await {
            self.destroy_vm(&vm.name).await?;
            return Err(error);
        }
        Ok(Box::new(loaded))
    }

    /// Makes the process and connects to it; on an error nothing of it is left but its log.
    async fn launch(&self, launch: Launch<'_>, chains: Vec<Chain>) -> Result<QemuVm, HypervisorError> {
        let Launch { vm, folder, facts, incarnation, begin } = launch;
        let taps = tap::create_all(&self.config.state_dir, vm).await?;
        let arguments = command::arguments(vm, &facts, &folder, &chains, &taps, begin);
        let awaits_resume = begin != Begin::Boot;
        let memory_bytes = vm.memory_bytes();
        let mut instance = Instance {
            process: None,
            incarnation,
            facts,
            memory_bytes,
            taps,
            disks: chains,
            awaits_resume,
            fenced: false,
            paused: false,
            untouched: false,
        };
        let connected = async {
            for stale in [&folder.qmp, &folder.guest, &folder.pid_file] {
                remove_if_there(stale).map_err(HypervisorError::file("delete", stale))?;
            }
            instance.write(&folder)?;
            if !awaits_resume {
                tap::raise(&instance.taps).await?;
            }
            let point = HypervisorError::file("start QEMU in", &folder.root);
            fault_point::before("qemu", "spawn").await.map_err(point)?;
            let process = spawn(vm, &folder, &arguments).await?;
            let point = HypervisorError::file("start QEMU in", &folder.root);
            fault_point::after("qemu", "spawn").await.map_err(point)?;
            instance.process = Some(process);
            instance.write(&folder)?;
            Qmp::connect(vm.name.as_str(), &folder.qmp, &folder.log).await
        };
        match connected.await {
            Ok(qmp) => Ok(QemuVm::new(vm.name.clone(), folder, instance, qmp)),
            Err(error) => {
                self.destroy_vm(&vm.name).await?;
                Err(error)
            }
        }
    }

    async fn adopt_vm(&self, vm: &VmDefinition) -> Result<Option<Box<dyn Vm>>, HypervisorError> {
        let folder = self.folder(&vm.name);
        let Some(mut instance) = Instance::read(&folder)? else { return Ok(None) };
        let Some(process) = instance.living(&folder) else { return Ok(None) };
        instance.process = Some(process);
        // An agent that died in a cut has left QEMU urgent.
        drop(Urgent::raise(&process));
        let qmp = Qmp::connect(vm.name.as_str(), &folder.qmp, &folder.log).await?;
        let mut adopted = QemuVm::new(vm.name.clone(), folder, instance, qmp);
        adopted.discard_cut().await?;
        Ok(Some(Box::new(adopted)))
    }

    async fn destroy_vm(&self, vm: &Name) -> Result<(), HypervisorError> {
        let folder = self.folder(vm);
        let Some(instance) = Instance::read(&folder)? else { return Ok(()) };
        let point = |error| HypervisorError::file("kill QEMU in", &folder.root)(error);
        fault_point::before("qemu", "kill").await.map_err(point)?;
        if let Some(process) = instance.living(&folder) {
            process.kill(KILL_PATIENCE).await.map_err(|error| match error.kind() {
                std::io::ErrorKind::TimedOut => HypervisorError::TimedOut {
                    vm: vm.to_string(),
                    what: format!("the end of process {} after SIGKILL", process.pid),
                    after: KILL_PATIENCE,
                },
                _ => HypervisorError::file("kill the process of", &folder.pid_file)(error),
            })?;
        }
        fault_point::after("qemu", "kill").await.map_err(point)?;
        tap::remove_all(&instance.taps).await?;
        for leftover in [&folder.qmp, &folder.guest, &folder.pid_file] {
            remove_if_there(leftover).map_err(HypervisorError::file("delete", leftover))?;
        }
        Ok(())
    }
}

/// What a new process is to be.
struct Launch<'a> {
    vm: &'a VmDefinition,
    folder: VmFolder,
    facts: Facts,
    incarnation: u64,
    begin: Begin<'a>,
}

impl Hypervisor for Qemu {
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

    fn disk_files(&self, vm: &VmDefinition) -> Result<Vec<Vec<PathBuf>>, HypervisorError> {
        self.layers_of(vm)
    }

    fn console(&self, vm: &Name) -> Option<std::path::PathBuf> {
        Some(self.folder(vm).console)
    }
}

fn unsupported(what: String) -> HypervisorError {
    HypervisorError::Unsupported { what }
}

/// Runs QEMU until it has daemonized: everything that is wrong with its arguments is known by then.
async fn spawn(
    vm: &VmDefinition,
    folder: &VmFolder,
    arguments: &[String],
) -> Result<Process, HypervisorError> {
    let log = std::fs::File::create(&folder.log).map_err(HypervisorError::file("create", &folder.log))?;
    let mut command = Command::new(BINARY);
    command.args(arguments);
    command.arg("-daemonize").arg("-pidfile").arg(&folder.pid_file).arg("-D").arg(&folder.log);
    let server = |kind: &str, path| format!("{kind}{},server=on,wait=off", command::option_value(path));
    command.arg("-qmp").arg(server("unix:", &folder.qmp));
    command.arg("-chardev").arg(server("socket,id=guest,path=", &folder.guest));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
    let ended = tokio::time::timeout(SPAWN_PATIENCE, command.status()).await;
    let status = match ended {
        Ok(status) => status.map_err(HypervisorError::file("run", BINARY.as_ref()))?,
        Err(_) => {
            let what = "the start of QEMU".to_owned();
            return Err(HypervisorError::TimedOut { vm: vm.name.to_string(), what, after: SPAWN_PATIENCE });
        }
    };
    let mark = folder.pid_file.to_string_lossy();
    match Process::from_pid_file(&folder.pid_file, &mark).filter(|_| status.success()) {
        Some(process) => Ok(process),
        None => {
            let words = std::fs::read_to_string(&folder.log).unwrap_or_default();
            let reason = format!("{status}: {}", words.trim());
            Err(HypervisorError::Refused { vm: vm.name.to_string(), command: BINARY.to_owned(), reason })
        }
    }
}

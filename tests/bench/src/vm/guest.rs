//! One VM under the driver, and its gauge.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use unasnap_host::definition::VmDefinition;
use unasnap_host::hypervisor::qemu::{Qemu, QemuConfig};
use unasnap_host::hypervisor::{CutTimes, Hypervisor, InPause, SavedVm, Vm};
use unasnap_host::store::manifest::{Accel, Identity, RamWay};
use unasnap_host::store::space::Limits;
use unasnap_host::store::{Draft, Store};
use unasnap_protocol::name::Name;
use unasnap_tests::gauge::Gauge;
use unasnap_tests::gauge::load::Load;

use super::{BRIDGE, OBSERVER, Yard};

/// TCP port of the gauge.
const PORT: u16 = 9002;
/// For a guest to boot; emulation on a busy machine is slow.
const BOOT: Duration = Duration::from_secs(180);

/// How a VM is driven.
#[derive(Debug)]
pub struct Settings {
    /// The driver's folder.
    pub state_dir: PathBuf,
    /// What runs the guest's instructions; found out when it is not known.
    pub accel: Option<Accel>,
    /// How its RAM is taken.
    pub way: RamWay,
}

/// A VM with its host agent's driver and store.
pub struct Guest {
    definition: VmDefinition,
    driver: Qemu,
    store: Store,
    vm: Option<Box<dyn Vm>>,
    gauge: Option<Gauge>,
    incarnation: u64,
}

/// A local snapshot that is not durable yet.
#[derive(Debug)]
pub struct Cut {
    name: Name,
    draft: Draft,
    before: Duration,
    began: Instant,
    times: CutTimes,
}

/// One local snapshot.
#[derive(Debug)]
pub struct Taken {
    /// From `prepare_cut` to the cut.
    pub before: Duration,
    /// The cut.
    pub times: CutTimes,
    /// From the cut's begin until every byte was durable.
    pub total: Duration,
}

impl Guest {
    /// Boots VM `number` of a yard.
    ///
    /// # Errors
    /// The driver refuses.
    pub async fn boot(yard: &Yard<'_>, way: RamWay, memory_mb: u64, number: u8) -> Result<Self> {
        let options = yard.options;
        let state_dir = options.state.join(format!("vm{number}-{memory_mb}"));
        let address = IpAddr::from(Ipv4Addr::new(10, 79, 0, number));
        let socket = SocketAddr::new(address, PORT);
        std::fs::create_dir_all(&state_dir).with_context(|| format!("making {}", state_dir.display()))?;
        let file = state_dir.join("vm.toml");
        let text = format!(
            "name = 'vm{number}'\ndeployment = 'bench'\nmemory_mb = {memory_mb}\nkernel = '{}'\ninitrd = '{}'\n\
             append = 'console=ttyS0 quiet panic=1 no_timer_check unasnap.name=vm{number} unasnap.ip={address}/24 \
             unasnap.run=unasnap-ring%20gauge%20serve%20--listen%20{socket}%20--show%20{OBSERVER}'\n[[disk]]\nimage = '{}'\n[[nic]]\n\
             bridge = '{BRIDGE}'\nmac = '52:54:00:79:00:{number:02x}'\naddresses = ['{address}']\n",
            options.kernel.display(),
            options.initramfs.display(),
            options.state.join("disk.qcow2").display(),
        );
        std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        let settings = Settings { state_dir, accel: Some(yard.accel), way };
        Self::launch(settings, VmDefinition::load(&file)?).await
    }

    /// Starts a VM.
    ///
    /// # Errors
    /// The driver refuses.
    pub async fn launch(settings: Settings, definition: VmDefinition) -> Result<Self> {
        let Settings { state_dir, accel, way } = settings;
        let store = Store::open(&state_dir, Limits::default())?;
        let driver = Qemu::open(QemuConfig { state_dir, accel, ram_way: Some(way) }).await?;
        let vm = driver.start(&definition, 1).await?;
        Ok(Self { definition, driver, store, vm: Some(vm), gauge: None, incarnation: 1 })
    }

    /// Connects to the gauge inside, once it is there.
    ///
    /// # Errors
    /// It does not come up.
    pub fn wait_for_gauge(&mut self) -> Result<()> {
        let nic = self.definition.nics.first().context("the VM has no NIC")?;
        let address: IpAddr = nic.addresses.first().context("the NIC has no address")?.parse()?;
        let connected = Gauge::connect(SocketAddr::new(address, PORT), BOOT);
        self.gauge = Some(connected.with_context(|| format!("VM {}", self.definition.name))?);
        Ok(())
    }

    /// What runs inside.
    ///
    /// # Errors
    /// The gauge was not waited for.
    pub fn gauge(&mut self) -> Result<&mut Gauge> {
        self.gauge.as_mut().context("the guest's gauge is not connected")
    }

    /// How the VM's RAM is taken.
    pub fn way(&self) -> RamWay {
        self.driver.about().ram_way
    }

    fn vm(&mut self) -> Result<&mut Box<dyn Vm>> {
        self.vm.as_mut().context("the VM does not run")
    }

    /// Fills what the guest will write while it is dirtying.
    ///
    /// # Errors
    /// The guest does not answer.
    pub fn fill(&mut self, mib: u32) -> Result<()> {
        self.gauge()?.load(Load::Dirty(mib))?;
        self.gauge()?.load(Load::Off)
    }

    /// A whole local snapshot.
    ///
    /// # Errors
    /// The driver's or the store's.
    pub async fn snapshot(&mut self, name: &str) -> Result<Taken> {
        let cut = self.cut(name).await?;
        self.save(cut).await
    }

    /// The first half of a snapshot: the VM runs again when this returns.
    ///
    /// # Errors
    /// The driver's or the store's.
    pub async fn cut(&mut self, name: &str) -> Result<Cut> {
        let name = Name::new(name)?;
        let draft = self.store.begin(&name, &self.definition.name)?;
        let vm = self.vm()?;
        let start = Instant::now();
        vm.prepare_cut(draft.folder()).await?;
        vm.arm_cut().await?;
        let began = Instant::now();
        let times = vm.cut(InPause::nothing()).await?;
        Ok(Cut { name, draft, before: began - start, began, times })
    }

    /// The second half: until every byte is durable.
    ///
    /// # Errors
    /// The driver's or the store's.
    pub async fn save(&mut self, cut: Cut) -> Result<Taken> {
        let Cut { name, draft, before, began, times } = cut;
        let saved = self.vm()?.save().await?;
        let (store, definition) = (self.store.clone(), self.definition.clone());
        let identity = Identity {
            snapshot: name.clone(),
            deployment: definition.deployment.clone(),
            epoch: 1,
            definition,
        };
        // Hashing takes its time: not on a thread that drives other VMs.
        let finish = tokio::task::spawn_blocking(move || {
            store.finish(&draft, identity, saved)?;
            store.commit(&name)
        });
        finish.await.context("finishing the snapshot")??;
        Ok(Taken { before, times, total: began.elapsed() })
    }

    /// Forgets a snapshot.
    ///
    /// # Errors
    /// A file cannot be deleted.
    pub fn delete(&self, name: &str) -> Result<()> {
        Ok(self.store.delete(&Name::new(name)?)?)
    }

    /// Ends the VM.
    ///
    /// # Errors
    /// It does not die.
    pub async fn destroy(&mut self) -> Result<()> {
        self.vm = None;
        Ok(self.driver.destroy(&self.definition.name).await?)
    }

    /// Loads a snapshot and lets it run: until it is loaded, until it runs, until its gauge answers.
    ///
    /// # Errors
    /// The driver refuses, or the guest does not answer.
    pub async fn restore(&mut self, name: &str) -> Result<[Duration; 3]> {
        let name = Name::new(name)?;
        let manifest = self.store.manifest(&name, &self.definition.name)?;
        let folder = self.store.vm_folder(&name, &self.definition.name);
        self.incarnation += 1;
        let start = Instant::now();
        let saved = SavedVm { folder: &folder, manifest: &manifest, here: None };
        let mut vm = self.driver.restore(&self.definition, saved, self.incarnation).await?;
        let loaded = start.elapsed();
        vm.resume().await?;
        let running = start.elapsed();
        self.vm = Some(vm);
        self.wait_for_gauge()?;
        self.gauge()?.load(Load::Off)?;
        Ok([loaded, running, start.elapsed()])
    }
}

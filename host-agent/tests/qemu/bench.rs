//! A VM to test with: its guest counts on the console, on its disk and in its RAM.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;
use nix::unistd::Pid;
use unasnap_host::definition::VmDefinition;
use unasnap_host::hypervisor::qemu::{Qemu, QemuConfig};
use unasnap_host::hypervisor::{CutTimes, Hypervisor, InPause, SavedVm, Vm};
use unasnap_host::store::manifest::{Accel, Identity, RamWay};
use unasnap_host::store::space::Limits;
use unasnap_host::store::{Draft, Store};
use unasnap_protocol::name::Name;

/// One VM at a time: under emulation, two of them on two cores starve each other.
static MACHINE: Mutex<()> = Mutex::new(());
/// Probed once for all tests: where KVM cannot boot a guest, finding that out takes seconds.
static ACCEL: OnceLock<Accel> = OnceLock::new();
/// How long a guest may take to say something that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Bench {
    folder: tempfile::TempDir,
    pub driver: Qemu,
    pub store: Store,
    pub vm: VmDefinition,
}

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Runs `test` with a bench, and ends its VM whatever becomes of the test.
pub fn with_bench<F>(ram_way: Option<RamWay>, test: F)
where
    F: for<'a> FnOnce(&'a Bench) -> Pin<Box<dyn Future<Output = ()> + 'a>>,
{
    with_changed_bench(ram_way, |_| (), test);
}

/// As [`with_bench`], with another VM.
pub fn with_changed_bench<F>(ram_way: Option<RamWay>, change: impl FnOnce(&mut Bench), test: F)
where
    F: for<'a> FnOnce(&'a Bench) -> Pin<Box<dyn Future<Output = ()> + 'a>>,
{
    let _alone = alone();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut bench = runtime.block_on(Bench::new(ram_way));
    change(&mut bench);
    let run = || runtime.block_on(test(&bench));
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    runtime.block_on(bench.driver.destroy(&bench.vm.name)).unwrap();
    assert_eq!(taps(), 0, "a tap device is left");
    if let Err(panic) = outcome {
        eprintln!("--- console\n{}\n--- QEMU\n{}", bench.console(), bench.file("qemu.log"));
        std::panic::resume_unwind(panic);
    }
}

/// Waits for the machine, and takes this thread and what it starts into namespaces with the bridge `br0`.
pub fn alone() -> MutexGuard<'static, ()> {
    let alone = MACHINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // Taps, bridge and mounts of the tests are nobody else's, and end with this thread.
    nix::sched::unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .expect("the tests of the driver want root");
    run("mount", &["--make-rprivate", "/"]);
    run("ip", &["link", "add", "br0", "type", "bridge"]);
    alone
}

impl Bench {
    async fn new(ram_way: Option<RamWay>) -> Self {
        let folder = tempfile::Builder::new().prefix("unasnap-").tempdir().unwrap();
        let path = folder.path();
        let state_dir = path.join("state");
        write_initrd(&path.join("initrd"), include_bytes!("workload.sh"));
        let image = path.join("base.qcow2");
        run("qemu-img", &["create", "-q", "-f", "qcow2", &image.to_string_lossy(), "64M"]);
        let kernel = from_environment("UNASNAP_TEST_KERNEL");
        let text = format!(
            "name = 'counter'\ndeployment = 'test'\nmemory_mb = 128\nkernel = '{}'\ninitrd = 'initrd'\n\
             append = 'console=ttyS0 rdinit=/workload quiet no_timer_check'\n[[disk]]\nimage = 'base.qcow2'\n\
             [[nic]]\nbridge = 'br0'\nmac = '52:54:00:00:00:01'\naddresses = ['10.0.0.1']\n",
            kernel.display()
        );
        std::fs::write(path.join("counter.toml"), text).unwrap();
        let vm = VmDefinition::load(&path.join("counter.toml")).unwrap();
        let store = Store::open(&state_dir, Limits::default()).unwrap();
        let accel = ACCEL.get().copied();
        let driver = Qemu::open(QemuConfig { state_dir, accel, ram_way }).await.unwrap();
        ACCEL.get_or_init(|| driver.about().accel);
        Self { folder, driver, store, vm }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Content of a file in the VM's folder.
    pub fn file(&self, file: &str) -> String {
        let path = self.path().join("state/vms/counter").join(file);
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    }

    pub fn console(&self) -> String {
        let text = self.file("console.log");
        assert!(!text.contains("torn"), "RAM and disk are of different instants:\n{text}");
        text
    }

    /// What the guest counted since the console had `from` bytes; the last, unfinished line does not count.
    pub fn ticks(&self, from: usize) -> Vec<u64> {
        let text = self.console().split_off(from);
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().filter_map(|line| line.trim().strip_prefix("tick ")?.parse().ok()).collect()
    }

    /// Waits until the guest has counted `more` times since the console had `from` bytes.
    pub async fn wait_ticks(&self, from: usize, more: usize) -> Vec<u64> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ticks = self.ticks(from);
            if ticks.len() >= more {
                return ticks;
            }
            assert!(Instant::now() < deadline, "the guest counted only {ticks:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The VM counts on.
    pub async fn assert_counting(&self) {
        self.wait_ticks(self.console().len(), 5).await;
    }

    pub async fn start(&self) -> Box<dyn Vm> {
        let vm = self.driver.start(&self.vm, 1).await.unwrap();
        self.wait_ticks(0, 5).await;
        vm
    }

    /// A whole local snapshot, committed.
    pub async fn snapshot(&self, vm: &mut dyn Vm, snapshot: &str) -> CutTimes {
        let draft = self.store.begin(&name(snapshot), &self.vm.name).unwrap();
        vm.prepare_cut(draft.folder()).await.unwrap();
        vm.arm_cut().await.unwrap();
        let times = vm.cut(InPause::nothing()).await.unwrap();
        self.finish(vm, draft, snapshot).await;
        times
    }

    pub async fn finish(&self, vm: &mut dyn Vm, draft: Draft, snapshot: &str) {
        let saved = vm.save().await.unwrap();
        let identity = Identity {
            snapshot: name(snapshot),
            deployment: self.vm.deployment.clone(),
            epoch: 1,
            definition: self.vm.clone(),
        };
        self.store.finish(&draft, identity, saved).unwrap();
        self.store.commit(&name(snapshot)).unwrap();
    }

    pub async fn restore(&self, snapshot: &str) -> Box<dyn Vm> {
        let snapshot = name(snapshot);
        let manifest = self.store.verify(&snapshot, &self.vm.name).unwrap();
        let folder = self.store.vm_folder(&snapshot, &self.vm.name);
        let saved = SavedVm { folder: &folder, manifest: &manifest, here: None };
        self.driver.restore(&self.vm, saved, 2).await.unwrap()
    }

    pub fn qemu_pid(&self) -> Pid {
        Pid::from_raw(self.file("qemu.pid").trim().parse().unwrap())
    }

    /// All of the RAM of a VM that was booted, from outside.
    pub fn ram(&self) -> Vec<u8> {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", self.qemu_pid())).unwrap();
        let is_ram = |path: &PathBuf| {
            std::fs::read_link(path)
                .is_ok_and(|link| link.to_string_lossy().starts_with("/memfd:memory-backend"))
        };
        let ram = descriptors.map(|entry| entry.unwrap().path()).find(is_ram).expect("RAM in a memfd");
        std::fs::read(ram).unwrap()
    }

    /// Names of the layers of the disk.
    pub fn layers(&self) -> Vec<String> {
        let disks = std::fs::read_dir(self.path().join("state/vms/counter/disks")).unwrap();
        disks.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// A second host agent after the first one died: nothing but the state folder connects them.
    pub async fn second_driver(&self) -> Qemu {
        self.driver_of("state").await
    }

    /// A driver with this state folder.
    pub async fn driver_of(&self, state: &str) -> Qemu {
        let (accel, ram_way) = (ACCEL.get().copied(), Some(self.driver.about().ram_way));
        Qemu::open(QemuConfig { state_dir: self.path().join(state), accel, ram_way }).await.unwrap()
    }
}

/// Runs a program of the host.
pub fn run(program: &str, arguments: &[&str]) {
    let status = std::process::Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

/// Tap devices in this thread's network namespace.
fn taps() -> usize {
    let devices = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    devices.lines().filter(|line| line.trim_start().starts_with("us")).count()
}

pub fn from_environment(variable: &str) -> PathBuf {
    let value = std::env::var_os(variable);
    value.unwrap_or_else(|| panic!("{variable} is not set: run `cargo xtask test`")).into()
}

/// Writes the project's initramfs, with this script as `/workload`.
pub fn write_initrd(to: &Path, script: &[u8]) {
    let project = std::fs::read(from_environment("UNASNAP_TEST_INITRD")).unwrap();
    std::fs::write(to, [project, archive(script)].concat()).unwrap();
}

/// An initramfs that is unpacked over another: one file, `/workload`.
fn archive(script: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, mode, content) in [("workload", 0o100_755, script), ("TRAILER!!!", 0, &[])] {
        let fields = [1, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        let header: String = fields.iter().map(|field| format!("{field:08x}")).collect();
        for part in [format!("070701{header}{name}\0").as_bytes(), content] {
            archive.extend_from_slice(part);
            archive.resize(archive.len().next_multiple_of(4), 0);
        }
    }
    archive
}

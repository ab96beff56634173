//! The real VirtualBox: `UNASNAP_TEST_VIRTUALBOX` names a VBoxManage, `UNASNAP_TEST_VIRTUALBOX_DIR` a folder that it sees under the same
//! path. Without its kernel module machines are interpreted, which is slow and correct.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use unasnap_host::definition::VmDefinition;
use unasnap_host::hypervisor::virtualbox::calls::{Calls, VBoxManage};
use unasnap_host::hypervisor::virtualbox::{VirtualBox, VirtualBoxConfig, coming, own_machine};
use unasnap_host::hypervisor::{Ground, Hypervisor, HypervisorError, InPause, SavedVm, VmState};
use unasnap_host::store::manifest::{BaseImage, Identity, Manifest};
use unasnap_host::store::space::Limits;
use unasnap_host::store::{Placed, Store};

use crate::support::name;

const LIMIT: Duration = Duration::from_secs(120);

/// `again: mov dx,0x3f8; out dx,al; inc al; jmp again`, as a disk that boots: the guest counts on its first serial port.
fn boot_disk() -> Vec<u8> {
    let mut disk = vec![0; 8 << 20];
    disk[..8].copy_from_slice(&[0xba, 0xf8, 0x03, 0xee, 0xfe, 0xc0, 0xeb, 0xf8]);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

/// A host of its own, which knows nothing of the others on this machine.
struct Real {
    folder: PathBuf,
    config: VirtualBoxConfig,
    calls: VBoxManage,
}

impl Drop for Real {
    /// A test that fails leaves no machine running.
    fn drop(&mut self) {
        let order = |arguments: &[&str]| {
            let mut order = std::process::Command::new(&self.config.vboxmanage);
            order.args(arguments).stderr(Stdio::null());
            order.envs(self.config.user_home.as_ref().map(|home| ("VBOX_USER_HOME", home)));
            order.envs(self.config.ipc_socket_id.as_ref().map(|id| ("VBOX_IPC_SOCKETID", id)));
            let answer = order.output().map(|output| output.stdout).unwrap_or_default();
            String::from_utf8_lossy(&answer).into_owned()
        };
        for line in order(&["list", "runningvms"]).lines() {
            let uuid = line.rsplit_once('{').and_then(|(_, end)| end.strip_suffix('}'));
            uuid.map(|uuid| order(&["controlvm", uuid, "poweroff"]));
        }
    }
}

impl Real {
    fn new(name: &str, folder: &Path) -> Self {
        // The service of the test before lives on for some seconds, with another home.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (count, process) = (COUNT.fetch_add(1, Ordering::Relaxed), std::process::id());
        let state_dir = folder.join(name);
        std::fs::create_dir(&state_dir).unwrap();
        let config = VirtualBoxConfig {
            user_home: Some(state_dir.join("home")),
            ipc_socket_id: Some(format!("unasnap{process}-{count}")),
            state_dir,
            vboxmanage: variable("UNASNAP_TEST_VIRTUALBOX"),
            execution_engine: Some("recompiler".to_owned()),
            ..VirtualBoxConfig::default()
        };
        let calls = VBoxManage::new(&config, &config.state_dir);
        Self { folder: folder.to_owned(), config, calls }
    }

    fn vbox(&self) -> PathBuf {
        self.config.state_dir.join("vms/run/run.vbox")
    }

    fn definition(&self) -> VmDefinition {
        let machine = self.vbox();
        let text = format!("name='web'\ndeployment='d'\nmemory_mb=32\nmachine='{}'\n", machine.display());
        let file = self.config.state_dir.join("web.toml");
        std::fs::write(&file, text).unwrap();
        VmDefinition::load(&file).unwrap()
    }

    async fn order(&self, line: &str) -> String {
        let arguments: Vec<&str> = line.split(' ').collect();
        let answer = self.calls.call("web", &arguments, LIMIT).await.unwrap();
        answer.success("web", &arguments).unwrap().stdout
    }

    /// How far the guest has counted, modulo what a byte holds.
    fn counted(&self) -> u64 {
        std::fs::metadata(self.folder.join("counter")).map_or(0, |meta| meta.len())
    }

    async fn counts(&self) {
        let before = self.counted();
        for _ in 0..600 {
            if self.counted() > before {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the guest stands still");
    }

    /// Waits until nobody writes the machine's settings any more. The front end with windows notes there how large its window
    /// is, which changes while the guest boots, and VBoxSVC 7.2 dies when that comes while it takes a snapshot: its
    /// `SessionMachine::i_takeSnapshotHandler` goes on with media that the other call has committed.
    async fn settles(&self) {
        let written = || std::fs::metadata(self.vbox()).unwrap().modified().unwrap();
        for _ in 0..60 {
            if written().elapsed().is_ok_and(|quiet| quiet > Duration::from_secs(3)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        panic!("the machine's settings are written again and again");
    }

    /// Makes and registers a machine, as an operator does.
    async fn make(&self) {
        let (image, disk) = (self.folder.join("boot.img"), self.vbox().with_extension("vdi"));
        std::fs::write(&image, boot_disk()).unwrap();
        let (folder, own) = (self.folder.display(), self.config.state_dir.display());
        self.order(&format!("createvm --name run --ostype Other --register --basefolder {own}/vms")).await;
        self.order(&format!("convertfromraw {} {} --format VDI", image.display(), disk.display())).await;
        self.order(&format!(
            "modifyvm run --memory 32 --vram 8 --nic1 none --audio-enabled off --graphicscontroller vboxvga --boot1 disk \
             --uart1 0x3F8 4 --uart-mode1 file {folder}/counter"
        ))
        .await;
        self.order("storagectl run --name IDE --add ide").await;
        let disk = disk.display();
        self.order(&format!(
            "storageattach run --storagectl IDE --port 0 --device 0 --type hdd --medium {disk}"
        ))
        .await;
    }

    /// A snapshot, from which the machine counts on, and which VirtualBox does not list. Leaves nothing of the machine.
    async fn restores(&self, driver: &VirtualBox, definition: &VmDefinition, saved: SavedVm<'_>) {
        let mut vm = driver.restore(definition, saved, 2).await.unwrap();
        assert_eq!(vm.state().await.unwrap(), VmState::Paused);
        vm.resume().await.unwrap();
        self.counts().await;
        // It is away for a moment while VirtualBox puts a new one in its place.
        let lists_a_cut =
            || std::fs::read_to_string(self.vbox()).map_or(true, |text| text.contains("unasnap cut"));
        for _ in 0..300 {
            if !lists_a_cut() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(!lists_a_cut(), "VirtualBox still has the snapshot of a cut");
        driver.destroy(&definition.name).await.unwrap();
        self.order(&format!("unregistervm {} --delete", uuid(&self.vbox()))).await;
    }
}

#[tokio::test]
async fn a_real_machine_is_snapshotted_and_restored() {
    let scratch = tempfile::tempdir_in(variable("UNASNAP_TEST_VIRTUALBOX_DIR")).unwrap();
    let here = Real::new("a", scratch.path());
    here.make().await;
    let definition = here.definition();
    let store = Store::open(&here.config.state_dir, Limits::default()).unwrap();
    let driver = VirtualBox::open(here.config.clone()).await.unwrap();

    let mut vm = driver.start(&definition, 1).await.unwrap();
    assert_eq!(vm.state().await.unwrap(), VmState::Running);
    here.counts().await;
    here.settles().await;
    assert!(vm.guest_channel_path().exists(), "{}", vm.guest_channel_path().display());

    // Given up, then made.
    let draft = store.begin(&name("s0"), &definition.name).unwrap();
    vm.prepare_cut(draft.folder()).await.unwrap();
    vm.cut(InPause::nothing()).await.unwrap();
    // The disk is merged while the guest writes; where it is interpreted, that may take longer than the driver waits.
    while let Err(error) = vm.discard_cut().await {
        assert!(matches!(error, HypervisorError::TimedOut { .. }), "{error}");
    }
    store.abandon(&draft).unwrap();
    let draft = store.begin(&name("s1"), &definition.name).unwrap();
    vm.prepare_cut(draft.folder()).await.unwrap();
    let times = vm.cut(InPause::nothing()).await.unwrap();
    assert!(times.stopped_at < times.instant && times.instant < times.resumed_at);
    here.counts().await;
    let saved = vm.save().await.unwrap();
    let identity =
        Identity { snapshot: name("s1"), deployment: name("d"), epoch: 1, definition: definition.clone() };
    store.finish(&draft, identity, saved).unwrap();
    let manifest = store.verify(&name("s1"), &definition.name).unwrap();

    // An agent that comes later.
    drop(vm);
    let driver = VirtualBox::open(here.config.clone()).await.unwrap();
    let mut vm = driver.adopt(&definition).await.unwrap().unwrap();
    vm.fence().await.unwrap();
    assert_eq!(vm.state().await.unwrap(), VmState::Paused);
    vm.resume().await.unwrap();
    driver.destroy(&definition.name).await.unwrap();
    drop(vm);

    let folder = store.vm_folder(&name("s1"), &definition.name);
    let saved = SavedVm { folder: &folder, manifest: &manifest, here: None };
    // A host that has only the base, under the same name as here.
    let there = Real::new("b", scratch.path());
    std::fs::create_dir_all(there.vbox().parent().unwrap()).unwrap();
    let base = scratch.path().join("c.vdi");
    for copy in [there.vbox().with_extension("vdi"), base.clone()] {
        std::fs::copy(here.vbox().with_extension("vdi"), copy).unwrap();
    }
    here.restores(&driver, &definition, saved).await;
    let driver = VirtualBox::open(there.config.clone()).await.unwrap();
    there.restores(&driver, &there.definition(), saved).await;

    // One that believes the first comes to the place of its own machines, above a base that lies anywhere.
    let believing = Real::new("c", scratch.path());
    let web = believing.own(definition.name.as_str());
    let placed = Placed { definition: web.clone(), bases: vec![base], believed: true };
    coming::check(&manifest, &folder, &placed).unwrap();
    let driver = VirtualBox::open(believing.config.clone()).await.unwrap();
    let mut vm = driver.restore(&web, SavedVm { here: Some(&placed), ..saved }, 2).await.unwrap();
    vm.resume().await.unwrap();
    believing.counts().await;
    drop(vm);
    driver.destroy(&web.name).await.unwrap();
    driver.forget(&web.name).await.unwrap();
    assert!(!believing.order("list vms").await.contains('{'), "VirtualBox still has a machine");
    store.verify(&name("s1"), &definition.name).unwrap();
}

/// A guest that writes: it counts its starts in the second sector of its disk, and says the number on both serial ports, again and
/// again. `mov ax,0x201; mov cx,2; mov dh,0; push 0; pop es; mov bx,0x7e00; int 0x13; inc byte [es:bx]; mov ax,0x301; int 0x13; mov
/// al,[es:bx]; again: mov dx,0x3f8; out dx,al; mov dx,0x2f8; out dx,al; jmp again`.
fn counting_disk() -> Vec<u8> {
    let mut disk = boot_disk();
    let code = [
        0xb8, 0x01, 0x02, 0xb9, 0x02, 0x00, 0xb6, 0x00, 0x6a, 0x00, 0x07, 0xbb, 0x00, 0x7e, 0xcd, 0x13, 0x26,
        0xfe, 0x07, 0xb8, 0x01, 0x03, 0xcd, 0x13, 0x26, 0x8a, 0x07, 0xba, 0xf8, 0x03, 0xee, 0xba, 0xf8, 0x02,
        0xee, 0xeb, 0xf6,
    ];
    disk[..code.len()].copy_from_slice(&code);
    disk
}

impl Real {
    fn own(&self, vm: &str) -> VmDefinition {
        let machine = own_machine(&self.config.state_dir, &name(vm));
        let text = format!("name='{vm}'\ndeployment='d'\nmemory_mb=32\nmachine='{}'\n", machine.display());
        VmDefinition::parse(&text, "test".as_ref()).unwrap()
    }

    /// Starts a machine and ends it when it has said, on its console, how often it was started.
    async fn starts(&self, driver: &VirtualBox, vm: &VmDefinition) -> u8 {
        let said = driver.console(&vm.name).unwrap();
        let _ = std::fs::remove_file(&said);
        let running = driver.start(vm, 1).await.unwrap();
        for _ in 0..600 {
            if let Some(number) = std::fs::read(&said).unwrap_or_default().last() {
                drop(running);
                driver.destroy(&vm.name).await.unwrap();
                return *number;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the guest says nothing");
    }

    /// Of a machine that runs for that, and is off then.
    async fn snapshot(&self, driver: &VirtualBox, vm: &VmDefinition, store: &Store) -> Manifest {
        let mut running = driver.start(vm, 1).await.unwrap();
        // As the host agent is. A port to which nobody is connected when its state is saved says nothing after a restore.
        let mut channel = UnixStream::connect(running.guest_channel_path()).await.unwrap();
        tokio::spawn(async move { tokio::io::copy(&mut channel, &mut tokio::io::sink()).await });
        tokio::time::sleep(Duration::from_secs(5)).await;
        let draft = store.begin(&name("s1"), &vm.name).unwrap();
        running.prepare_cut(draft.folder()).await.unwrap();
        running.cut(InPause::nothing()).await.unwrap();
        let saved = running.save().await.unwrap();
        let identity =
            Identity { snapshot: name("s1"), deployment: name("d"), epoch: 1, definition: vm.clone() };
        store.finish(&draft, identity, saved).unwrap();
        // VirtualBox may hang when it is told to end a machine whose disks it merges.
        running.discard_cut().await.unwrap();
        driver.destroy(&vm.name).await.unwrap();
        store.verify(&name("s1"), &vm.name).unwrap()
    }

    /// Ends the service that keeps what VirtualBox knows in memory; the next call starts another one.
    async fn end_service(&self) {
        let home = format!("VBOX_IPC_SOCKETID={}", self.config.ipc_socket_id.as_ref().unwrap());
        let is_it = |pid: &String| {
            let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            read("comm") == b"VBoxSVC\n"
                && read("environ").split(|byte| *byte == 0).any(|one| one == home.as_bytes())
        };
        let name =
            |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let living = || std::fs::read_dir("/proc").unwrap().map(name).find(is_it);
        let pid = living().expect("no service of this host");
        assert!(std::process::Command::new("kill").arg(&pid).status().unwrap().success());
        while living().is_some() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Restores a snapshot of another host, above this `base`, as it would have come from there; leaves nothing of the machine.
    async fn goes_on(&self, saved: SavedVm<'_>, base: &Path, starts: u8) {
        let manifest = saved.manifest;
        let vm = self.own(manifest.identity.definition.name.as_str());
        // Nobody has told VirtualBox what it is.
        let bases = [self.config.state_dir.join("images").join(&manifest.bases[0].blake3)];
        std::fs::create_dir_all(bases[0].parent().unwrap()).unwrap();
        std::fs::rename(base, &bases[0]).unwrap();
        let here = Placed { definition: vm.clone(), bases: bases.to_vec(), believed: false };
        coming::check(manifest, saved.folder, &here).unwrap();
        let driver = VirtualBox::open(self.config.clone()).await.unwrap();
        let saved = SavedVm { here: Some(&here), ..saved };
        let mut restored = driver.restore(&vm, saved, 2).await.unwrap();
        restored.resume().await.unwrap();
        assert_eq!(restored.guest_channel_path(), self.machine(&vm).with_file_name("guest.sock"));
        // Its place was another one where it was snapshotted.
        let mut channel = UnixStream::connect(restored.guest_channel_path()).await.unwrap();
        assert_eq!(tokio::time::timeout(LIMIT, channel.read_u8()).await.unwrap().unwrap(), starts);
        assert_eq!(restored.state().await.unwrap(), VmState::Running);
        drop(restored);
        driver.destroy(&vm.name).await.unwrap();
        assert_eq!(self.starts(&driver, &vm).await, starts + 1);
        driver.forget(&vm.name).await.unwrap();
        assert!(!self.order("list vms").await.contains('{'), "VirtualBox still has a machine");
        let blake3 = blake3::hash(&std::fs::read(&bases[0]).unwrap()).to_hex().to_string();
        assert_eq!(blake3, manifest.bases[0].blake3, "the base was written");
    }

    fn machine(&self, vm: &VmDefinition) -> PathBuf {
        own_machine(&self.config.state_dir, &vm.name)
    }
}

/// As the simulated one has it: made on a base, cloned, snapshotted, and deleted, the machine that first had the base first.
#[tokio::test]
async fn real_machines_share_a_base() {
    let scratch = tempfile::tempdir_in(variable("UNASNAP_TEST_VIRTUALBOX_DIR")).unwrap();
    let here = Real::new("a", scratch.path());
    let (raw, image) = (scratch.path().join("boot.img"), scratch.path().join("base.vdi"));
    std::fs::write(&raw, counting_disk()).unwrap();
    here.order(&format!("convertfromraw {} {} --format VDI", raw.display(), image.display())).await;
    std::fs::set_permissions(&image, std::fs::Permissions::from_mode(0o444)).unwrap();
    let content = std::fs::read(&image).unwrap();
    let driver = VirtualBox::open(here.config.clone()).await.unwrap();
    let meta = std::fs::metadata(&image).unwrap();
    let base = BaseImage {
        path: image.clone(),
        size: meta.size(),
        modified: meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
        blake3: blake3::hash(&content).to_hex().to_string(),
    };
    let (one, two, twin) = (here.own("one"), here.own("two"), here.own("twin"));
    for vm in [&one, &two] {
        driver.make(vm, Ground::Bases(std::slice::from_ref(&base)), 1).await.unwrap();
    }
    assert_eq!(here.starts(&driver, &one).await, 1);
    driver.make(&twin, Ground::DisksOf(&one), 1).await.unwrap();
    driver.forget(&one.name).await.unwrap();
    assert_eq!(here.starts(&driver, &twin).await, 2);

    let store = Store::open(&here.config.state_dir, Limits::default()).unwrap();
    let manifest = here.snapshot(&driver, &two, &store).await;
    let folder = store.vm_folder(&name("s1"), &two.name);
    let saved = SavedVm { folder: &folder, manifest: &manifest, here: None };
    let copy = scratch.path().join("copy.vdi");
    std::fs::copy(&image, &copy).unwrap();
    Real::new("b", scratch.path()).goes_on(saved, &copy, 1).await;
    let mut restored = driver.restore(&two, saved, 2).await.unwrap();
    restored.resume().await.unwrap();
    assert_eq!(restored.state().await.unwrap(), VmState::Running);
    drop(restored);
    driver.destroy(&two.name).await.unwrap();
    // What VirtualBox knows it has written down.
    here.end_service().await;
    assert_eq!(here.starts(&driver, &two).await, 2, "machines see each other's disk");
    for vm in [&two, &twin] {
        driver.forget(&vm.name).await.unwrap();
    }
    assert_eq!(std::fs::read_dir(here.config.state_dir.join("vms")).unwrap().count(), 0);
    assert!(!here.order("list vms").await.contains('{'), "VirtualBox still has a machine");
    let now = std::fs::metadata(&image).unwrap();
    assert_eq!(
        (now.mtime(), now.mtime_nsec()),
        (meta.mtime(), meta.mtime_nsec()),
        "the base was opened for writing"
    );
    assert!(std::fs::read(&image).unwrap() == content, "the base was written");
}

fn variable(name: &str) -> PathBuf {
    let value = std::env::var_os(name);
    value.unwrap_or_else(|| panic!("{name} is not set: run `cargo xtask test --virtualbox`")).into()
}

fn uuid(vbox: &Path) -> String {
    let text = std::fs::read_to_string(vbox).unwrap();
    let begin = text.find("<Machine uuid=\"{").unwrap() + "<Machine uuid=\"{".len();
    text[begin..begin + 36].to_owned()
}

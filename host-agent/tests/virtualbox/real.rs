//! The real VirtualBox, where there is one: `UNASNAP_TEST_VIRTUALBOX` names a VBoxManage, `UNASNAP_TEST_VIRTUALBOX_DIR` a folder that
//! it sees under the same path. Without its kernel module machines are interpreted, which is slow and correct.

use std::path::{Path, PathBuf};
use std::time::Duration;

use unasnap_host::definition::VmDefinition;
use unasnap_host::hypervisor::virtualbox::calls::{Calls, VBoxManage};
use unasnap_host::hypervisor::virtualbox::{VirtualBox, VirtualBoxConfig};
use unasnap_host::hypervisor::{Hypervisor, InPause, SavedVm, VmState};
use unasnap_host::store::Store;
use unasnap_host::store::manifest::Identity;
use unasnap_host::store::space::Limits;

use crate::support::name;

const LIMIT: Duration = Duration::from_secs(120);

/// `again: mov dx,0x3f8; out dx,al; inc al; jmp again`, as a disk that boots: the guest counts on its first serial port.
fn boot_disk() -> Vec<u8> {
    let mut disk = vec![0; 8 << 20];
    disk[..8].copy_from_slice(&[0xba, 0xf8, 0x03, 0xee, 0xfe, 0xc0, 0xeb, 0xf8]);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

struct Real {
    folder: PathBuf,
    calls: VBoxManage,
}

impl Real {
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

    /// Makes and registers a machine, as an operator does.
    async fn make(&self, vbox: &Path) {
        let (image, disk) = (self.folder.join("boot.img"), vbox.with_extension("vdi"));
        std::fs::write(&image, boot_disk()).unwrap();
        let folder = self.folder.display();
        self.order(&format!("createvm --name run --ostype Other --register --basefolder {folder}/vms")).await;
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
}

#[tokio::test]
#[ignore = "needs VirtualBox: set UNASNAP_TEST_VIRTUALBOX and UNASNAP_TEST_VIRTUALBOX_DIR"]
async fn a_real_machine_is_snapshotted_and_restored() {
    let variable =
        |name: &str| std::env::var_os(name).map(PathBuf::from).unwrap_or_else(|| panic!("set {name}"));
    let scratch = tempfile::tempdir_in(variable("UNASNAP_TEST_VIRTUALBOX_DIR")).unwrap();
    let folder = scratch.path().to_owned();
    let config = VirtualBoxConfig {
        state_dir: folder.clone(),
        vboxmanage: variable("UNASNAP_TEST_VIRTUALBOX"),
        execution_engine: Some("recompiler".to_owned()),
        user_home: Some(folder.join("home")),
        ipc_socket_id: Some(format!("unasnap{}", std::process::id())),
    };
    let real = Real { calls: VBoxManage::new(&config, &folder), folder: folder.clone() };
    let vbox = folder.join("vms/run/run.vbox");
    real.make(&vbox).await;
    let text = format!("name='web'\ndeployment='d'\nmemory_mb=32\nmachine='{}'\n", vbox.display());
    std::fs::write(folder.join("web.toml"), text).unwrap();
    let definition = VmDefinition::load(&folder.join("web.toml")).unwrap();
    let store = Store::open(&folder, Limits::default()).unwrap();
    let driver = VirtualBox::open(config.clone()).await.unwrap();

    let mut vm = driver.start(&definition, 1).await.unwrap();
    assert_eq!(vm.state().await.unwrap(), VmState::Running);
    real.counts().await;
    assert!(vm.guest_channel_path().exists(), "{}", vm.guest_channel_path().display());

    // Given up, then made.
    let draft = store.begin(&name("s0"), &definition.name).unwrap();
    vm.prepare_cut(draft.folder()).await.unwrap();
    vm.cut(InPause::nothing()).await.unwrap();
    vm.discard_cut().await.unwrap();
    store.abandon(&draft).unwrap();
    let draft = store.begin(&name("s1"), &definition.name).unwrap();
    vm.prepare_cut(draft.folder()).await.unwrap();
    let times = vm.cut(InPause::nothing()).await.unwrap();
    assert!(times.stopped_at < times.instant && times.instant < times.resumed_at);
    real.counts().await;
    let saved = vm.save().await.unwrap();
    let identity =
        Identity { snapshot: name("s1"), deployment: name("d"), epoch: 1, definition: definition.clone() };
    store.finish(&draft, identity, saved).unwrap();
    let manifest = store.verify(&name("s1"), &definition.name).unwrap();

    // An agent that comes later, then a restore as on a host that has only the base.
    drop(vm);
    let driver = VirtualBox::open(config).await.unwrap();
    let mut vm = driver.adopt(&definition).await.unwrap().unwrap();
    vm.fence().await.unwrap();
    assert_eq!(vm.state().await.unwrap(), VmState::Paused);
    vm.resume().await.unwrap();
    for elsewhere in [false, true] {
        driver.destroy(&definition.name).await.unwrap();
        drop(vm);
        if elsewhere {
            real.order(&format!("unregistervm {}", manifest_uuid(&vbox))).await;
            std::fs::remove_dir_all(vbox.with_file_name("Snapshots")).unwrap();
            std::fs::remove_file(&vbox).unwrap();
        }
        let saved = SavedVm { folder: &store.vm_folder(&name("s1"), &definition.name), manifest: &manifest };
        vm = driver.restore(&definition, saved, 2).await.unwrap();
        assert_eq!(vm.state().await.unwrap(), VmState::Paused);
        vm.resume().await.unwrap();
        real.counts().await;
        no_cut_is_left(&vbox).await;
        store.verify(&name("s1"), &definition.name).unwrap();
    }
    driver.destroy(&definition.name).await.unwrap();
    real.order(&format!("unregistervm {} --delete", manifest_uuid(&vbox))).await;
}

fn manifest_uuid(vbox: &Path) -> String {
    let text = std::fs::read_to_string(vbox).unwrap();
    let begin = text.find("<Machine uuid=\"{").unwrap() + "<Machine uuid=\"{".len();
    text[begin..begin + 36].to_owned()
}

async fn no_cut_is_left(vbox: &Path) {
    for _ in 0..300 {
        if !std::fs::read_to_string(vbox).unwrap().contains("unasnap cut") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("VirtualBox still has the snapshot of a cut");
}

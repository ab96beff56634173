//! A host with one VirtualBox, a store, and a VM that is defined for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use unasnap_host::definition::VmDefinition;
use unasnap_host::hypervisor::virtualbox::{VirtualBox, VirtualBoxConfig};
use unasnap_host::hypervisor::{Hypervisor, InPause, SavedVm, Vm};
use unasnap_host::store::manifest::{Identity, Manifest, Saved};
use unasnap_host::store::space::Limits;
use unasnap_host::store::{Draft, Store};
use unasnap_protocol::name::Name;

use crate::simulated::Simulated;

pub struct Host {
    pub folder: TempDir,
    pub virtualbox: Arc<Simulated>,
    pub driver: VirtualBox,
    pub store: Store,
    pub vm: VmDefinition,
}

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

impl Host {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("vms")).unwrap();
        std::fs::create_dir(folder.path().join("machine")).unwrap();
        let vbox = folder.path().join("machine/run.vbox");
        let virtualbox = Arc::new(Simulated::new(&vbox));
        let driver = driver(folder.path(), virtualbox.clone()).await;
        let store = Store::open(folder.path(), Limits::default()).unwrap();
        let vm = definition(folder.path(), "");
        Self { vm: vm.unwrap(), folder, virtualbox, driver, store }
    }

    pub fn machine(&self, name: &str) -> PathBuf {
        self.folder.path().join("machine").join(name)
    }

    pub async fn start(&self) -> Box<dyn Vm> {
        let vm = self.driver.start(&self.vm, 3).await.unwrap();
        self.virtualbox.taken();
        vm
    }

    /// Another host agent after this one's death.
    pub async fn adopt(&self) -> Option<Box<dyn Vm>> {
        let driver = driver(self.folder.path(), self.virtualbox.clone()).await;
        driver.adopt(&self.vm).await.unwrap()
    }

    pub fn draft(&self) -> Draft {
        self.store.begin(&name("s1"), &self.vm.name).unwrap()
    }

    /// A whole local snapshot.
    pub async fn snapshot(&self, vm: &mut dyn Vm) -> Manifest {
        let draft = self.draft();
        vm.prepare_cut(draft.folder()).await.unwrap();
        vm.arm_cut().await.unwrap();
        vm.cut(InPause::nothing()).await.unwrap();
        let saved = vm.save().await.unwrap();
        self.finish(&draft, saved)
    }

    pub fn finish(&self, draft: &Draft, saved: Saved) -> Manifest {
        let identity =
            Identity { snapshot: name("s1"), deployment: name("d"), epoch: 1, definition: self.vm.clone() };
        self.store.finish(draft, identity, saved).unwrap();
        self.store.verify(&name("s1"), &self.vm.name).unwrap()
    }

    pub fn saved_folder(&self) -> PathBuf {
        self.store.vm_folder(&name("s1"), &self.vm.name)
    }

    pub async fn restore(&self, manifest: &Manifest) -> Result<Box<dyn Vm>, String> {
        let folder = self.saved_folder();
        let saved = SavedVm { folder: &folder, manifest, here: None };
        self.driver.restore(&self.vm, saved, 9).await.map_err(|error| error.to_string())
    }
}

/// Of a host with this state folder.
pub fn config(state_dir: &Path) -> VirtualBoxConfig {
    VirtualBoxConfig {
        state_dir: state_dir.to_owned(),
        execution_engine: Some("recompiler".to_owned()),
        ipc_socket_id: Some("hostA".to_owned()),
        ..VirtualBoxConfig::default()
    }
}

async fn driver(state_dir: &Path, virtualbox: Arc<Simulated>) -> VirtualBox {
    VirtualBox::with_calls(config(state_dir), virtualbox).await.unwrap()
}

/// The VM's definition with `more` in it.
pub fn definition(folder: &Path, more: &str) -> Result<VmDefinition, String> {
    let path = folder.join("web.toml");
    let text = format!(
        "name = 'web'\ndeployment = 'd'\nmemory_mb = 64\nmachine = 'machine/run.vbox'\n{more}\n[[nic]]\naddresses = ['10.0.0.1']\n"
    );
    std::fs::write(&path, text).unwrap();
    VmDefinition::load(&path).map_err(|error| error.to_string())
}

/// Waits until what goes on behind the VM is done.
pub async fn until(what: impl Fn() -> bool) {
    for _ in 0..500 {
        if what() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("it does not come");
}

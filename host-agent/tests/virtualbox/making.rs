//! Machines that unasnap makes on a base that they share, clones and deletes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use unasnap_files::vdi;
use unasnap_host::definition::VmDefinition;
use unasnap_host::hypervisor::virtualbox::holder::media;
use unasnap_host::hypervisor::virtualbox::{VirtualBox, VirtualBoxConfig, own_machine};
use unasnap_host::hypervisor::{Ground, Hypervisor, InPause, SavedVm, VmState};
use unasnap_host::store::manifest::{BaseImage, Identity, Manifest};
use unasnap_host::store::space::Limits;
use unasnap_host::store::{Placed, Store};
use unasnap_host::transfer::frozen::Shelf;
use unasnap_protocol::transfer::Disks;

use crate::recorded::answer;
use crate::shared::{Sharing, State, image};
use crate::support::{name, until};

struct Host {
    folder: TempDir,
    virtualbox: Arc<Sharing>,
    driver: VirtualBox,
    base: BaseImage,
}

const CONTENT: &str = "the operating system";

impl Host {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("vms")).unwrap();
        let path = folder.path().join("base.vdi");
        std::fs::write(&path, image(0xba5e, None, CONTENT)).unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        let modified = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
        let blake3 = blake3::hash(&image(0xba5e, None, CONTENT)).to_hex().to_string();
        let base = BaseImage { path, size: meta.size(), modified, blake3 };
        let virtualbox = Arc::new(Sharing::default());
        let driver = Self::driver(&folder, &virtualbox).await;
        Self { folder, virtualbox, driver, base }
    }

    async fn driver(folder: &TempDir, virtualbox: &Arc<Sharing>) -> VirtualBox {
        let config = VirtualBoxConfig { state_dir: folder.path().to_owned(), ..VirtualBoxConfig::default() };
        VirtualBox::with_calls(config, virtualbox.clone()).await.unwrap()
    }

    fn vm(&self, vm: &str) -> VmDefinition {
        let machine = own_machine(self.folder.path(), &name(vm));
        let text = format!(
            "name='{vm}'\ndeployment='d'\nmemory_mb=64\ncpus=2\nmachine='{}'\n[[nic]]\nbridge='br0'\nmac='52:54:00:00:00:01'\naddresses=['10.0.0.1']\n",
            machine.display()
        );
        VmDefinition::parse(&text, "test".as_ref()).unwrap()
    }

    async fn make(&self, vm: &str) -> Result<(), String> {
        let made = self.driver.make(&self.vm(vm), Ground::Bases(std::slice::from_ref(&self.base)), 7).await;
        made.map_err(|error| error.to_string())
    }

    async fn clone(&self, of: &str, vm: &str) -> Result<(), String> {
        let made = self.driver.make(&self.vm(vm), Ground::DisksOf(&self.vm(of)), 7).await;
        made.map_err(|error| error.to_string())
    }

    /// The only disk of a VM, above the base.
    fn difference(&self, vm: &str) -> PathBuf {
        let disks = self.driver.disk_files(&self.vm(vm)).unwrap();
        let [disk] = disks.as_slice() else { panic!("{disks:?}") };
        let [base, difference] = disk.as_slice() else { panic!("{disk:?}") };
        assert_eq!(*base, self.base.path);
        difference.clone()
    }

    fn untouched(&self) {
        assert_eq!(std::fs::read(&self.base.path).unwrap(), image(0xba5e, None, CONTENT));
        self.virtualbox.change(|state| assert!(state.written().is_empty(), "a machine writes the base"));
    }

    fn leaves_nothing(&self) {
        self.virtualbox.change(|state| assert!(state.media.is_empty() && state.machines.is_empty()));
        assert_eq!(std::fs::read_dir(self.folder.path().join("vms")).unwrap().count(), 0);
    }

    fn is_gone(&self, vm: &str) -> bool {
        let of = format!("{vm}.vbox");
        let known = self
            .virtualbox
            .change(|state| state.machines.values().any(|machine| machine.vbox.ends_with(&of)));
        !known && !self.folder.path().join("vms").join(vm).exists()
    }

    /// Calls of the last VM, with `M` for its machine.
    fn calls(&self) -> Vec<String> {
        let base = self.base.path.display().to_string();
        let machines: Vec<_> = self.virtualbox.change(|state| state.known_machines());
        let short = |call: String| {
            machines.iter().fold(call.replace(&base, "BASE"), |call, uuid| call.replace(uuid, "M"))
        };
        self.virtualbox.taken().into_iter().map(short).collect()
    }
}

#[tokio::test]
async fn machines_share_a_base_and_the_last_one_leaves_it() {
    let host = Host::new().await;
    let begin =
        ["createvm --name one --uuid M", "registervm ", "modifyvm M ", "storagectl M ", "storageattach M "];
    let holds =
        ["createvm --name base.M --uuid M", "registervm ", "storagectl M ", "unregistervm M", "registervm "];
    for (vm, held) in [("one", &holds[..]), ("two", &[])] {
        host.make(vm).await.unwrap();
        let calls = host.calls();
        let expected: Vec<_> = held.iter().chain(&begin).map(|begin| begin.replace("one", vm)).collect();
        assert_eq!(calls.len(), expected.len(), "{calls:?}");
        for (call, begin) in calls.iter().zip(expected) {
            assert!(call.starts_with(&begin), "{calls:?}");
        }
    }
    assert_ne!(host.difference("one"), host.difference("two"));
    host.untouched();

    let machine = host
        .virtualbox
        .change(|state| state.machines.values().find(|machine| machine.disk.is_some()).unwrap().clone());
    let expected = [
        ("--memory", "64"),
        ("--cpus", "2"),
        ("--nic1", "bridged"),
        ("--bridge-adapter1", "br0"),
        ("--mac-address1", "525400000001"),
        ("--nic2", "none"),
    ];
    for (setting, value) in expected {
        assert_eq!(machine.setting(setting), Some(value), "{setting}");
    }

    for vm in ["one", "one", "two"] {
        host.driver.forget(&name(vm)).await.unwrap();
        assert!(host.is_gone(vm));
    }
    assert_eq!(host.calls(), ["unregistervm M", "unregistervm M", "closemedium disk M", "unregistervm M"]);
    host.leaves_nothing();
    host.untouched();
}

/// Every call in turn does not come to its end, or does and nobody hears of it; then the agent is another one.
#[tokio::test]
async fn whatever_breaks_off_the_vm_is_made_or_nothing_of_it() {
    for done in [false, true] {
        for number in 0.. {
            let mut host = Host::new().await;
            host.make("other").await.unwrap();
            host.virtualbox.taken();
            host.virtualbox.change(|state| state.fails = Some((number, done)));
            let made = host.make("web").await;
            host.virtualbox.change(|state| state.fails = None);
            if made.is_ok() {
                assert_eq!(number, 7, "calls");
                break;
            }
            host.driver = Host::driver(&host.folder, &host.virtualbox).await;
            host.driver.destroy(&name("web")).await.unwrap();
            host.driver.forget(&name("web")).await.unwrap();
            assert!(host.is_gone("web"), "call {number}: something is left");
            host.make("web").await.unwrap();
            host.difference("web");
            host.difference("other");
            host.untouched();
        }
    }
}

/// The same for the machine that first has the base, where more calls are made.
#[tokio::test]
async fn whatever_breaks_off_the_base_can_be_shared() {
    for done in [false, true] {
        for number in 0.. {
            let host = Host::new().await;
            host.virtualbox.taken();
            host.virtualbox.change(|state| state.fails = Some((number, done)));
            let made = host.make("web").await;
            host.virtualbox.change(|state| state.fails = None);
            host.make("web").await.unwrap();
            host.difference("web");
            host.untouched();
            host.virtualbox
                .change(|state| assert!(state.machines.values().all(|machine| machine.controller)));
            if made.is_ok() {
                break;
            }
        }
    }
}

#[tokio::test]
async fn whatever_breaks_off_the_vm_is_there_or_deleted() {
    for done in [false, true] {
        for number in 0.. {
            let host = Host::new().await;
            host.make("web").await.unwrap();
            host.virtualbox.taken();
            host.virtualbox.change(|state| state.fails = Some((number, done)));
            let forgotten = host.driver.forget(&name("web")).await;
            host.virtualbox.change(|state| state.fails = None);
            let is_there = host.folder.path().join("vms/web").exists();
            assert_eq!(forgotten.is_err(), is_there, "call {number}");
            host.driver.forget(&name("web")).await.unwrap();
            assert!(host.is_gone("web"));
            host.untouched();
            if forgotten.is_ok() {
                assert!(number > 1);
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_clone_has_what_the_other_ones_disk_holds_and_nothing_in_common_but_the_base() {
    let host = Host::new().await;
    host.make("web").await.unwrap();
    let theirs = host.difference("web");
    let base = vdi::read(&host.base.path).unwrap().unwrap().uuid().unwrap();
    let write = |content: &str| {
        let mut bytes = std::fs::read(&theirs).unwrap();
        bytes.truncate(512);
        bytes.extend(content.as_bytes());
        std::fs::write(&theirs, bytes).unwrap();
    };
    write("what the guest wrote");
    host.clone("web", "twin").await.unwrap();
    let own = host.difference("twin");
    write("what it wrote later");
    assert_eq!(&std::fs::read(&own).unwrap()[512..], b"what the guest wrote");
    let uuid = |path: &PathBuf| vdi::read(path).unwrap().unwrap().uuid().unwrap();
    assert!(uuid(&own) != uuid(&theirs) && own.ends_with(format!("{{{}}}.vdi", uuid(&own))));
    assert_eq!(vdi::read(&own).unwrap().unwrap().parent(), Some(base));
    let folder = own.parent().unwrap();
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1, "a half copy is left");
    host.driver.forget(&name("web")).await.unwrap();
    assert_eq!(host.difference("twin"), own);
    host.untouched();

    // One that does not stand still has no content.
    host.virtualbox.change(|state| state.machines.values_mut().for_each(|machine| machine.state = "saved"));
    let error = host.clone("twin", "third").await.unwrap_err();
    assert!(error.contains("its machine is Saved, not off"), "{error}");
    assert!(host.is_gone("third"));
}

#[tokio::test]
async fn a_replica_has_what_the_other_hosts_disk_held_on_a_base_of_its_own() {
    let (here, there) = (Host::new().await, Host::new().await);
    here.make("web").await.unwrap();
    let theirs = here.difference("web");
    let mut bytes = std::fs::read(&theirs).unwrap();
    bytes.extend(b"what the guest wrote");
    std::fs::write(&theirs, &bytes).unwrap();
    let shelf = Shelf::default();
    let web = here.vm("web");
    let digest = shelf.put(&web, here.driver.freeze(&web).await.unwrap()).unwrap();
    let frozen = shelf.get(&Disks { vm: web.name.clone(), digest }).unwrap();
    assert_eq!(frozen.manifest.bases, std::slice::from_ref(&here.base));

    there.make("other").await.unwrap();
    let bases = vec![there.base.path.clone()];
    let placed = Placed { definition: there.vm("web"), bases, believed: false };
    let came = SavedVm { folder: &frozen.folder, manifest: &frozen.manifest, here: Some(&placed) };
    there.driver.make(&there.vm("twin"), Ground::Frozen(came), 0).await.unwrap();
    let own = there.difference("twin");
    assert_eq!(std::fs::read(&own).unwrap()[512..], bytes[512..]);
    assert_ne!(vdi::read(&own).unwrap().unwrap().uuid(), vdi::read(&theirs).unwrap().unwrap().uuid());
    // Frozen again, and no link is left of a machine that goes.
    here.driver.freeze(&web).await.unwrap();
    here.driver.forget(&web.name).await.unwrap();
    here.leaves_nothing();

    std::fs::write(&there.base.path, image(0xba5e, None, "another")).unwrap();
    let error = there.driver.make(&there.vm("third"), Ground::Frozen(came), 0).await.unwrap_err().to_string();
    assert!(error.contains("is not the one below this snapshot"), "{error}");
}

#[tokio::test]
async fn a_machine_that_an_operator_made_is_left_to_him() {
    let host = Host::new().await;
    let mut vm = host.vm("web");
    vm.machine = Some(host.folder.path().join("elsewhere/web.vbox"));
    let bases = [host.base.clone()];
    let error = host.driver.make(&vm, Ground::Bases(&bases), 0).await.unwrap_err().to_string();
    assert!(error.contains("made by hand: make it with VirtualBox's own means"), "{error}");
    let twin = host.vm("twin");
    let error = host.driver.make(&twin, Ground::DisksOf(&vm), 0).await.unwrap_err().to_string();
    assert!(error.contains("made by hand: clone it with VirtualBox's own means"), "{error}");
    assert_eq!(host.virtualbox.taken(), [] as [&str; 0]);
}

#[tokio::test]
async fn a_base_that_a_machine_writes_itself_is_not_shared() {
    let host = Host::new().await;
    host.make("web").await.unwrap();
    // As if an operator had attached it to a machine of his own.
    host.virtualbox.change(|state| {
        let base = state.media.iter().find(|(_, medium)| medium.parent.is_none()).unwrap().0.clone();
        state.media.retain(|uuid, _| *uuid == base);
        state.media.get_mut(&base).unwrap().shared = false;
        state.machines.values_mut().for_each(|machine| machine.disk = Some(base.clone()));
    });
    let error = host.make("two").await.unwrap_err();
    assert!(
        error.contains("closemedium disk") && error.contains("still attached to 2 virtual machines"),
        "{error}"
    );
}

#[tokio::test]
async fn a_made_machine_is_started_as_it_is() {
    let host = Host::new().await;
    host.make("web").await.unwrap();
    host.virtualbox.taken();
    let vm = host.driver.start(&host.vm("web"), 0).await.unwrap();
    assert_eq!(vm.incarnation(), 7, "of what runs now");
    let calls = host.calls();
    assert!(calls.iter().all(|call| !call.starts_with("snapshot")), "its base is frozen already: {calls:?}");
    drop(vm);
    let error = host.driver.forget(&name("web")).await.unwrap_err().to_string();
    assert!(error.contains("cannot delete: it runs"), "{error}");
    host.driver.destroy(&name("web")).await.unwrap();
    host.driver.forget(&name("web")).await.unwrap();
    assert!(host.is_gone("web"));
}

#[test]
fn recorded_lists_of_disks_are_understood() {
    let all = media(&answer("04b-multiattach-modifymedium/017-list-hdds").stdout);
    let base =
        all.iter().find(|medium| medium.location == Path::new("/srv/hostA/vms/base/base.vdi")).unwrap();
    assert!(base.is_shared && base.parent == "base");
    assert_eq!(all.iter().filter(|medium| medium.parent == base.uuid).count(), 2);
    assert!(all.iter().all(|medium| !medium.is_shared || medium.uuid == base.uuid));
}

/// A local snapshot of a machine, which is off afterwards.
async fn snapshot_of(host: &Host, web: &VmDefinition) -> (Store, Manifest) {
    let store = Store::open(host.folder.path(), Limits::default()).unwrap();
    let mut vm = host.driver.start(web, 0).await.unwrap();
    let draft = store.begin(&name("s1"), &web.name).unwrap();
    vm.prepare_cut(draft.folder()).await.unwrap();
    vm.cut(InPause::nothing()).await.unwrap();
    let saved = vm.save().await.unwrap();
    assert_eq!(saved.bases, std::slice::from_ref(&host.base));
    let identity =
        Identity { snapshot: name("s1"), deployment: name("d"), epoch: 1, definition: web.clone() };
    store.finish(&draft, identity, saved).unwrap();
    let manifest = store.verify(&name("s1"), &web.name).unwrap();
    until(|| host.virtualbox.change(|state| state.machines.values().all(|machine| machine.cut.is_none())))
        .await;
    drop(vm);
    host.driver.destroy(&web.name).await.unwrap();
    (store, manifest)
}

/// VirtualBox's own service may end at any time between.
#[tokio::test]
async fn a_machine_is_restored_beside_others_that_have_its_base() {
    let host = Host::new().await;
    for vm in ["web", "other"] {
        host.make(vm).await.unwrap();
    }
    let web = host.vm("web");
    let (store, manifest) = snapshot_of(&host, &web).await;
    let folder = store.vm_folder(&name("s1"), &web.name);
    host.driver.forget(&name("other")).await.unwrap();
    for lost in [false, true, false] {
        if lost {
            host.virtualbox.change(|state| {
                state.machines.values_mut().for_each(|machine| machine.state = "inaccessible")
            });
        }
        let saved = SavedVm { folder: &folder, manifest: &manifest, here: None };
        let mut vm = host.driver.restore(&web, saved, 2).await.unwrap();
        host.virtualbox.change(State::end_service);
        assert_eq!(vm.state().await.unwrap(), VmState::Paused, "its disk is known to nobody");
        vm.resume().await.unwrap();
        host.difference("web");
        host.driver.destroy(&web.name).await.unwrap();
        host.virtualbox.change(State::end_service);
        host.make("other").await.unwrap();
        host.driver.forget(&name("other")).await.unwrap();
        host.untouched();
    }
    host.driver.forget(&web.name).await.unwrap();
    host.leaves_nothing();
}

/// Every call in turn does not come to its end, or does and nobody hears of it.
#[tokio::test]
async fn whatever_breaks_off_the_restore_can_be_repeated() {
    let mut calls = 0;
    for done in [false, true] {
        for number in 0.. {
            let host = Host::new().await;
            host.make("web").await.unwrap();
            let web = host.vm("web");
            let (store, manifest) = snapshot_of(&host, &web).await;
            let folder = store.vm_folder(&name("s1"), &web.name);
            let saved = SavedVm { folder: &folder, manifest: &manifest, here: None };
            host.virtualbox.taken();
            host.virtualbox.change(|state| state.fails = Some((number, done)));
            let restored = host.driver.restore(&web, saved, 2).await.is_ok();
            host.virtualbox.change(|state| state.fails = None);
            let again = host.driver.restore(&web, saved, 2).await;
            let mut vm = again.unwrap_or_else(|error| panic!("call {number}: {error}"));
            vm.resume().await.unwrap();
            host.difference("web");
            drop(vm);
            host.driver.destroy(&web.name).await.unwrap();
            host.driver.forget(&web.name).await.unwrap();
            host.leaves_nothing();
            host.untouched();
            if restored {
                calls = calls.max(number);
                break;
            }
        }
    }
    assert!(calls > 6, "only {calls} calls were broken off");
}

#[tokio::test]
async fn a_base_that_lies_elsewhere_is_named() {
    let host = Host::new().await;
    host.make("web").await.unwrap();
    let moved = host.folder.path().join("moved.vdi");
    std::fs::copy(&host.base.path, &moved).unwrap();
    let base = BaseImage { path: moved, ..host.base.clone() };
    let made = host.driver.make(&host.vm("two"), Ground::Bases(&[base]), 0).await;
    let error = made.unwrap_err().to_string();
    assert!(error.contains("moved.vdi as ") && error.contains("/base.vdi: make machines of that"), "{error}");
    host.driver.forget(&name("two")).await.unwrap();
    host.difference("web");
}

#[tokio::test]
async fn a_machine_that_virtualbox_cannot_read_is_named_and_can_be_deleted() {
    let host = Host::new().await;
    host.make("web").await.unwrap();
    let lose =
        |state: &mut State| state.machines.values_mut().for_each(|machine| machine.state = "inaccessible");
    host.virtualbox.change(lose);
    let error = host.driver.start(&host.vm("web"), 0).await.map(drop).unwrap_err().to_string();
    assert!(
        error.contains("VirtualBox misses a file of") && error.contains("restore its deployment"),
        "{error}"
    );
    host.driver.forget(&name("web")).await.unwrap();
    assert!(host.is_gone("web"));
    host.leaves_nothing();
}

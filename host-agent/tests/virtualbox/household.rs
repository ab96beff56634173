//! What operators ask of a host about VMs of VirtualBox on a base that they share, from a file until nothing of it is left.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use tokio::sync::mpsc;
use unasnap_host::bases::Bases;
use unasnap_host::colouring::host::KernelTaps;
use unasnap_host::definition::VmDefinition;
use unasnap_host::drivers::Drivers;
use unasnap_host::household;
use unasnap_host::hypervisor::Hypervisor;
use unasnap_host::hypervisor::virtualbox::{VirtualBox, VirtualBoxConfig, own_machine};
use unasnap_host::registry::Registry;
use unasnap_host::store::Store;
use unasnap_host::store::space::Limits;
use unasnap_host::together::Together;
use unasnap_host::transfer::images::Images;
use unasnap_host::transfer::receiving::Receiver;
use unasnap_protocol::control::{Answer, Envelope};
use unasnap_protocol::household::{HostOrder, HostWord, NewNic, NewVm, Outcome, Runner, Task, VmClone};
use unasnap_protocol::operator::RequestError;

use crate::authority::Authority;
use crate::shared::{Sharing, image};
use crate::support::name;

/// A host whose VMs are VirtualBox's.
struct House {
    folder: TempDir,
    virtualbox: Arc<Sharing>,
}

/// A host agent's life.
struct Agent {
    orders: mpsc::Sender<HostOrder>,
    words: mpsc::UnboundedReceiver<HostWord>,
    _answers: mpsc::UnboundedReceiver<(Envelope, Answer)>,
}

impl House {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for made in ["definitions", "images", "state"] {
            fs::create_dir(folder.path().join(made)).unwrap();
        }
        Self { folder, virtualbox: Arc::default() }
    }

    fn path(&self, place: &str) -> PathBuf {
        self.folder.path().join(place)
    }

    async fn agent(&self) -> Agent {
        let config = VirtualBoxConfig { state_dir: self.path("state"), ..VirtualBoxConfig::default() };
        let driver = VirtualBox::with_calls(config, self.virtualbox.clone()).await.unwrap();
        let driver: Arc<dyn Hypervisor> = Arc::new(driver);
        let drivers = Drivers::with_qemu(driver.clone()).and_virtualbox(driver);
        let store = Store::open(&self.path("state"), Limits::default()).unwrap();
        let (answers, _answers) = mpsc::unbounded_channel();
        let (sender, words) = mpsc::unbounded_channel();
        let taps = Arc::new(KernelTaps::new(&self.path("state")));
        let (definitions, together) = (self.path("definitions"), Together::new().0);
        let registry =
            Registry::open(&definitions, drivers, store.clone(), taps, answers, sender.clone(), together);
        let bases = Bases::open(&self.path("state"), &[self.path("images")]).unwrap();
        let registry = Arc::new(registry.await.unwrap());
        let receiver = Receiver {
            store: store.clone(),
            images: Images::new(&self.path("state")),
            trust: Authority::new().trust("h1.host.unasnap"),
            runners: registry.clone(),
            believes: Vec::new(),
        };
        let orders = household::start(registry, bases, store, receiver.into(), Arc::default(), sender);
        Agent { orders, words, _answers }
    }
}

impl Agent {
    async fn ask(&mut self, task: Task) -> Result<Outcome, RequestError> {
        self.orders.send(HostOrder::Task { number: 1, incarnation: 3, task }).await.unwrap();
        loop {
            if let HostWord::Done { outcome, .. } = self.words.recv().await.unwrap() {
                break outcome;
            }
        }
    }

    async fn refused(&mut self, task: Task, words: &str) {
        let error = self.ask(task).await.unwrap_err();
        assert!(error.text.contains(words), "{error}");
    }
}

fn new(vm: &str) -> NewVm {
    let nic = NewNic { bridge: "br0".to_owned(), mac: None, addresses: vec!["10.0.0.1".parse().unwrap()] };
    NewVm {
        name: name(vm),
        deployment: name("ring"),
        base: name("base"),
        memory_mb: 64,
        cpus: 1,
        kernel: None,
        initrd: None,
        append: String::new(),
        colouring: None,
        nics: vec![nic],
        hypervisor: Runner::Virtualbox,
    }
}

fn create(new: NewVm) -> Task {
    Task::Create(Box::new(new))
}

#[tokio::test]
async fn vms_come_and_go_on_a_base_that_stays_while_they_have_it() {
    let house = House::new();
    let mut agent = house.agent().await;
    let base = house.path("images/base.vdi");
    fs::write(&base, image(0xba5e, None, "the operating system")).unwrap();
    let preload = Task::Preload { path: base.display().to_string(), name: None };
    let Ok(Outcome::Preloaded(told)) = agent.ask(preload).await else { panic!("it is no base") };
    assert_eq!((told.format.as_str(), told.virtual_bytes, told.users.len()), ("vdi", 8 << 20, 0));
    assert!(fs::metadata(&base).unwrap().permissions().readonly());

    for changed in [true, false] {
        let made = agent.ask(create(new("web"))).await;
        let Ok(Outcome::Made { changed: is, .. }) = made else { panic!("{made:?}") };
        assert_eq!(is, changed);
    }
    let other = NewNic { bridge: "br1".to_owned(), ..new("web").nics[0].clone() };
    agent.refused(create(NewVm { nics: vec![other], ..new("web") }), "has another VM web").await;
    let defined = VmDefinition::load(&house.path("definitions/web.toml")).unwrap();
    assert_eq!(defined.machine, Some(own_machine(&house.path("state"), &name("web"))));
    let clone = VmClone {
        of: name("web"),
        name: name("twin"),
        deployment: None,
        addresses: vec![vec!["10.0.0.2".parse().unwrap()]],
    };
    let made = agent.ask(Task::Clone(Box::new(clone))).await;
    assert!(matches!(made, Ok(Outcome::Made { changed: true, .. })), "{made:?}");
    let twin = VmDefinition::load(&house.path("definitions/twin.toml")).unwrap();
    assert_eq!(twin.machine, Some(own_machine(&house.path("state"), &name("twin"))));
    assert!(twin.nics[0].mac != defined.nics[0].mac && twin.nics[0].bridge == "br0");

    // The next agent asks the machines.
    let mut agent = house.agent().await;
    let Ok(Outcome::Bases(bases)) = agent.ask(Task::Bases).await else { panic!("no answer") };
    assert_eq!(bases[0].users, [name("twin"), name("web")]);
    let delete = |vm| Task::Delete { vm: name(vm), force: true, lose_snapshots: false };
    for users in ["twin, web", "twin"] {
        let words = format!("base base is below disks of {users}");
        agent.refused(Task::Unregister(name("base")), &words).await;
        let vm = if users.contains("web") { "web" } else { "twin" };
        assert_eq!(agent.ask(delete(vm)).await, Ok(Outcome::Deleted));
    }
    assert_eq!(agent.ask(Task::Unregister(name("base"))).await, Ok(Outcome::Unregistered));
    assert_eq!(fs::read(&base).unwrap(), image(0xba5e, None, "the operating system"));
    assert!(house.virtualbox.change(|state| state.machines.is_empty()));
    assert_eq!(fs::read_dir(house.path("state/vms")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_what_to_do() {
    let house = House::new();
    let mut agent = house.agent().await;
    for (file, content) in [("base.vdi", image(0xba5e, None, "")), ("raw.img", vec![7; 512])] {
        let path = house.path("images").join(file);
        fs::write(&path, content).unwrap();
        agent.ask(Task::Preload { path: path.display().to_string(), name: None }).await.unwrap();
    }
    let half = house.path("images/half.vdi");
    fs::write(&half, image(1, Some("20d1e9a4-523c-4243-a6bd-635926e1d6f9"), "")).unwrap();
    let preload = Task::Preload { path: half.display().to_string(), name: None };
    agent.refused(preload, "the rest is the disk 20d1e9a4-523c-4243-a6bd-635926e1d6f9").await;
    let of_qemu = NewVm { hypervisor: Runner::Qemu, ..new("web") };
    agent.refused(create(of_qemu), "convert it (`qemu-img convert -O qcow2`)").await;
    let raw = NewVm { base: name("raw"), ..new("web") };
    agent.refused(create(raw), "convert it (`qemu-img convert -O vdi`)").await;
    let direct = NewVm { kernel: Some("/boot/vmlinuz".to_owned()), ..new("web") };
    agent.refused(create(direct), "boots no kernel of the host").await;
    assert_eq!(fs::read_dir(house.path("definitions")).unwrap().count(), 0);
}

/// Whatever was half made when the agent died.
#[tokio::test]
async fn a_vm_that_was_being_made_is_removed_by_the_next_agent() {
    let house = House::new();
    let mut agent = house.agent().await;
    let base = house.path("images/base.vdi");
    fs::write(&base, image(0xba5e, None, "")).unwrap();
    agent.ask(Task::Preload { path: base.display().to_string(), name: None }).await.unwrap();
    agent.ask(create(new("web"))).await.unwrap();
    drop(agent);
    fs::rename(house.path("definitions/web.toml"), house.path("definitions/web.toml.undone")).unwrap();
    let mut agent = house.agent().await;
    assert!(house.virtualbox.change(|state| state.machines.is_empty()));
    assert_eq!(fs::read_dir(house.path("state/vms")).unwrap().count(), 0);
    let made = agent.ask(create(new("web"))).await;
    assert!(matches!(made, Ok(Outcome::Made { changed: true, .. })), "{made:?}");
}

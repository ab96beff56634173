//! VMs come and go while the host agent runs: a definition is there or not, whatever breaks off in between.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;
use unasnap_host::bases::Bases;
use unasnap_host::definition::VmDefinition;
use unasnap_host::drivers::Drivers;
use unasnap_host::household;
use unasnap_host::hypervisor::Ground;
use unasnap_host::registry::Registry;
use unasnap_host::store::Store;
use unasnap_host::store::space::Limits;
use unasnap_host::together::Together;
use unasnap_host::transfer::images::Images;
use unasnap_host::transfer::receiving::Receiver;
use unasnap_protocol::control::{Envelope, Order, Source};
use unasnap_protocol::household::{Bring, HostOrder, HostWord, Outcome, Task, VmClone};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{RequestError, RequestErrorKind};
use unasnap_protocol::power::Verb;

use super::authority::Authority;
use super::{FakeHypervisor, FakeTaps, Log, TapState, facts};

struct House {
    folder: tempfile::TempDir,
    log: Log,
}

/// A host agent's life.
struct Agent {
    registry: Registry,
    words: mpsc::UnboundedReceiver<HostWord>,
    sender: mpsc::UnboundedSender<HostWord>,
    _answers: mpsc::UnboundedReceiver<(Envelope, unasnap_protocol::control::Answer)>,
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

impl House {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for made in ["vms", "images"] {
            fs::create_dir(folder.path().join(made)).unwrap();
        }
        fs::write(folder.path().join("images/base.qcow2"), b"x").unwrap();
        Self { folder, log: Log::default() }
    }

    fn path(&self, place: &str) -> PathBuf {
        self.folder.path().join(place)
    }

    fn definition(&self, vm: &str) -> VmDefinition {
        let image = self.path("images/base.qcow2");
        let text = format!(
            "name = '{vm}'\ndeployment = 'ring'\nmemory_mb = 64\n[[disk]]\nimage = '{}'\n[[nic]]\nbridge = 'br0'\nmac = '52:54:00:00:00:01'\naddresses = ['10.0.0.1']\n",
            image.display()
        );
        VmDefinition::parse(&text, Path::new("test")).unwrap()
    }

    async fn agent(&self) -> Agent {
        let socket = self.path("guest.sock");
        let hypervisor = FakeHypervisor { facts: facts(), log: self.log.clone(), socket };
        let store = Store::open(self.folder.path(), Limits::default()).unwrap();
        let taps = Arc::new(FakeTaps(TapState::Healthy, self.log.clone()));
        let (answers, _answers) = mpsc::unbounded_channel();
        let (sender, words) = mpsc::unbounded_channel();
        let drivers = Drivers::with_qemu(Arc::new(hypervisor));
        let registry = Registry::open(
            &self.path("vms"),
            drivers,
            store,
            taps,
            answers,
            sender.clone(),
            Together::new().0,
        )
        .await
        .unwrap();
        Agent { registry, words, sender, _answers }
    }

    /// Names of the files of definitions.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("vms")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// What the hypervisor was asked since.
    fn asked(&self) -> Vec<String> {
        let of_disks = ["make", "forget", "boot", "destroy"];
        self.log.taken().into_iter().filter(|line| of_disks.contains(&line.as_str())).collect()
    }
}

impl Agent {
    async fn make(&self, definition: VmDefinition) -> Result<bool, RequestError> {
        self.registry.make(definition, Ground::Bases(&[]), 3).await.map(|(_, changed)| changed)
    }

    fn vms(&self) -> Vec<String> {
        self.registry
            .members()
            .list()
            .iter()
            .map(|member| member.standing().report.name.to_string())
            .collect()
    }
}

#[tokio::test]
async fn a_vm_that_is_made_is_there_for_the_next_agent_too() {
    let house = House::new();
    let mut agent = house.agent().await;
    assert_eq!(agent.make(house.definition("vm1")).await, Ok(true));
    assert_eq!((agent.vms(), house.files()), (vec!["vm1".to_owned()], vec!["vm1.toml".to_owned()]));
    assert_eq!(house.asked(), ["make"]);
    // As an operator would have written it.
    let read = VmDefinition::load(&house.path("vms/vm1.toml")).unwrap();
    assert_eq!(read, house.definition("vm1"));

    assert_eq!(agent.make(house.definition("vm1")).await, Ok(false), "the same once more");
    let other = VmDefinition { memory_mb: 65, ..house.definition("vm1") };
    assert!(agent.make(other).await.unwrap_err().text.contains("another VM vm1"));
    assert_eq!(house.asked(), [] as [&str; 0]);
    let next = house.agent().await;
    assert_eq!((next.vms(), house.asked()), (vec!["vm1".to_owned()], vec!["boot".to_owned()]));
    assert!(agent.words.try_recv().is_err());
}

#[tokio::test]
async fn a_vm_that_is_removed_is_gone_and_that_is_said() {
    let house = House::new();
    let mut agent = house.agent().await;
    agent.make(house.definition("vm1")).await.unwrap();
    house.asked();
    agent.registry.remove(&name("vm1"), false).await.unwrap();
    assert_eq!(house.asked(), ["forget"]);
    assert_eq!((agent.vms(), house.files()), (Vec::new(), Vec::new()));
    assert_eq!(agent.words.try_recv(), Ok(HostWord::Gone(vec![name("vm1")])));
    // Repeated after its answer was lost.
    agent.registry.remove(&name("vm1"), false).await.unwrap();
    assert_eq!(agent.words.try_recv(), Ok(HostWord::Gone(vec![name("vm1")])));
}

#[tokio::test]
async fn a_vm_that_lives_on_elsewhere_is_not_called_gone() {
    let house = House::new();
    let mut agent = house.agent().await;
    agent.make(house.definition("vm1")).await.unwrap();
    house.asked();
    for _ in 0..2 {
        agent.registry.see_off(&name("vm1"), true).await.unwrap();
    }
    assert_eq!(house.asked(), ["destroy", "forget"]);
    assert_eq!((agent.vms(), house.files()), (Vec::new(), Vec::new()));
    assert!(agent.words.try_recv().is_err(), "the coordinator would forget it");
}

#[tokio::test]
async fn a_vm_that_runs_is_removed_by_force_only() {
    let house = House::new();
    fs::write(house.path("vms/by-hand.toml"), house.definition("vm1").to_toml().unwrap()).unwrap();
    let agent = house.agent().await;
    assert_eq!(house.asked(), ["boot"]);
    let refused = agent.registry.remove(&name("vm1"), false).await.unwrap_err();
    assert!(refused.text.contains("VM vm1 runs"), "{refused}");
    assert_eq!((agent.vms(), house.files()), (vec!["vm1".to_owned()], vec!["by-hand.toml".to_owned()]));
    // Its member lives on.
    let member = agent.registry.members().get(&name("vm1")).unwrap();
    assert!(member.end().await.is_ok());
    agent.registry.remove(&name("vm1"), true).await.unwrap();
    assert_eq!(house.asked(), ["destroy", "forget"]);
    assert_eq!(house.files(), [] as [&str; 0]);
}

#[tokio::test]
async fn a_vm_at_which_something_is_under_way_stays() {
    let house = House::new();
    fs::write(house.path("vms/deaf.toml"), house.definition("deaf").to_toml().unwrap()).unwrap();
    let agent = house.agent().await;
    let envelope = Envelope {
        vm: name("deaf"),
        deployment: name("ring"),
        snapshot: name("control-1-1-vm"),
        epoch: 0,
        term: 1,
        incarnation: 0,
    };
    // Its guest does not mind the power button.
    agent.registry.members().get(&name("deaf")).unwrap().order(envelope, Order::Control(Verb::Stop));
    let refused = agent.registry.remove(&name("deaf"), true).await.unwrap_err();
    assert!(refused.text.contains("control-1-1-vm is under way at VM deaf"), "{refused}");
    assert_eq!((agent.vms(), house.files()), (vec!["deaf".to_owned()], vec!["deaf.toml".to_owned()]));
}

/// What a dead agent left is not a VM, and not an obstacle.
#[tokio::test]
async fn what_was_half_made_or_half_removed_is_removed_at_the_next_start() {
    let house = House::new();
    let text = house.definition("half").to_toml().unwrap();
    fs::write(house.path("vms/half.toml.undone"), &text).unwrap();
    fs::write(house.path("vms/torn.toml.undone.new"), &text[..9]).unwrap();
    // Somebody has defined it once more.
    fs::write(
        house.path("vms/whole.toml"),
        text.replace("'half'", "'whole'").replace("\"half\"", "\"whole\""),
    )
    .unwrap();
    fs::write(house.path("vms/whole.toml.undone"), &text).unwrap();
    let agent = house.agent().await;
    assert_eq!((agent.vms(), house.files()), (vec!["whole".to_owned()], vec!["whole.toml".to_owned()]));
    assert_eq!(house.asked(), ["destroy", "forget", "boot"]);
}

#[tokio::test]
async fn what_cannot_be_written_is_not_made() {
    let house = House::new();
    let agent = house.agent().await;
    fs::create_dir(house.path("vms/vm1.toml.undone.new")).unwrap();
    let failed = agent.make(house.definition("vm1")).await.unwrap_err();
    assert_eq!(failed.kind, RequestErrorKind::Internal, "{failed}");
    assert_eq!((agent.vms(), house.asked()), (Vec::new(), Vec::new()));
    fs::remove_dir(house.path("vms/vm1.toml.undone.new")).unwrap();

    // A file of this name that is no VM's is not overwritten.
    fs::write(house.path("vms/vm1.toml"), "nonsense").unwrap();
    assert!(agent.make(house.definition("vm1")).await.unwrap_err().text.contains("mend or remove it"));
    assert_eq!(fs::read_to_string(house.path("vms/vm1.toml")).unwrap(), "nonsense");
}

/// While a definition is wrong, nobody knows whose it is.
#[tokio::test]
async fn nobody_is_said_to_be_gone_who_may_be_behind_a_wrong_definition() {
    let house = House::new();
    let mut agent = house.agent().await;
    agent.make(house.definition("vm1")).await.unwrap();
    assert_eq!(agent.registry.gone_among(&[name("vm1"), name("vm2")]), [name("vm2")]);
    fs::write(house.path("vms/x.toml"), "nonsense").unwrap();
    assert_eq!(agent.registry.gone_among(&[name("vm1"), name("vm2")]), []);
    assert!(agent.registry.remove(&name("vm2"), false).await.is_err());
    assert!(agent.words.try_recv().is_err());
    // One that the agent has is known whatever the others are.
    agent.registry.remove(&name("vm1"), false).await.unwrap();
    assert_eq!(agent.words.try_recv(), Ok(HostWord::Gone(vec![name("vm1")])));
}

#[tokio::test]
async fn a_household_answers_every_task_once() {
    let house = House::new();
    let Agent { registry, mut words, sender, .. } = house.agent().await;
    let store = Store::open(house.folder.path(), Limits::default()).unwrap();
    let (handle, _) = registry.make(house.definition("vm1"), Ground::Bases(&[]), 0).await.unwrap();
    let bases = Bases::open(house.folder.path(), &[house.path("images")]).unwrap();
    let registry = Arc::new(registry);
    let receiver = Receiver {
        store: store.clone(),
        images: Images::new(house.folder.path()),
        trust: Authority::new().trust("h1.host.unasnap"),
        runners: registry.clone(),
        believes: Vec::new(),
    };
    let orders = household::start(registry, bases, store, receiver.into(), Arc::default(), sender);
    let mut ask = async |number: u64, task: Task| {
        orders.send(HostOrder::Task { number, incarnation: 3, task }).await.unwrap();
        loop {
            match words.recv().await.unwrap() {
                HostWord::Done { number: answered, outcome } => {
                    assert_eq!(answered, number);
                    break outcome;
                }
                HostWord::Gone(gone) => assert_eq!(gone, [name("vm2")]),
                other => panic!("{other:?}"),
            }
        }
    };
    assert_eq!(ask(1, Task::Bases).await, Ok(Outcome::Bases(Vec::new())));
    let addresses = vec![vec!["10.0.0.2".parse().unwrap()]];
    let clone = VmClone { of: name("vm1"), name: name("vm2"), deployment: None, addresses };
    let Ok(Outcome::Made { report, changed: true }) = ask(2, Task::Clone(Box::new(clone.clone()))).await
    else {
        panic!("it is not cloned")
    };
    assert_eq!((report.name, report.addresses), (name("vm2"), clone.addresses[0].clone()));
    let made = VmDefinition::load(&house.path("vms/vm2.toml")).unwrap();
    let other = handle.works().definition();
    assert!(made.nics[0].mac != other.nics[0].mac && made.nics[0].mac.starts_with("52:54:00:"));
    assert_eq!((made.disks, made.memory_mb), (other.disks.clone(), other.memory_mb));
    let again = ask(3, Task::Clone(Box::new(clone.clone()))).await;
    assert!(matches!(again, Ok(Outcome::Made { changed: false, .. })), "{again:?}");
    for (clone, words) in [
        (VmClone { of: name("vm9"), ..clone.clone() }, "has no VM vm9"),
        (VmClone { addresses: Vec::new(), ..clone.clone() }, "as many --addresses"),
    ] {
        let refused = ask(4, Task::Clone(Box::new(clone))).await.unwrap_err();
        assert!(refused.text.contains(words), "{refused}");
    }
    let Ok(Outcome::Files(files)) = ask(5, Task::Files { vm: name("vm1"), snapshot: None }).await else {
        panic!("it has no files")
    };
    let source = Source { host: name("h2"), address: "127.0.0.1:1".to_owned(), digest: [7; 32] };
    let bring = Bring { name: name("debian"), sources: vec![source], per_second: None, within_s: 9 };
    let refused = ask(6, Task::Bring(Box::new(bring))).await.unwrap_err();
    assert!(refused.text.contains("127.0.0.1:1"), "{refused}");
    let refused = ask(6, Task::Freeze(name("vm9"))).await.unwrap_err();
    assert!(refused.text.contains("has no VM vm9"), "{refused}");
    let refused = ask(6, Task::Freeze(name("vm1"))).await.unwrap_err();
    assert!(refused.text.contains("the disks of vm1 are nowhere"), "{refused}");
    let needed: Vec<_> = files.needed.iter().map(|file| (file.path.as_str(), file.bytes)).collect();
    assert_eq!((needed, files.missing.len()), (vec![("base.qcow2", 1)], 0));
    for (vm, snapshot) in [("vm9", None), ("vm1", Some(name("ring-000001")))] {
        let absent = ask(5, Task::Files { vm: name(vm), snapshot }).await.unwrap_err();
        assert_eq!(absent.kind, RequestErrorKind::NotFound, "{absent}");
    }
    let unknown = ask(5, Task::Unregister(name("debian"))).await.unwrap_err();
    assert_eq!(unknown.kind, RequestErrorKind::NotFound);
    let delete = |vm| Task::Delete { vm: name(vm), force: false, lose_snapshots: false };
    assert_eq!(ask(6, delete("vm2")).await, Ok(Outcome::Deleted));
    assert_eq!(ask(7, delete("vm2")).await, Ok(Outcome::Deleted), "repeated");
    assert_eq!(house.files(), ["vm1.toml"]);
}

//! A machine lives on the host to which it came, until it lives elsewhere.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use unasnap_host::colouring::host::KernelTaps;
use unasnap_host::drivers::Drivers;
use unasnap_host::hypervisor::Hypervisor;
use unasnap_host::hypervisor::virtualbox::{VirtualBox, VirtualBoxConfig};
use unasnap_host::moving::Moving;
use unasnap_host::registry::Registry;
use unasnap_host::store::space::Limits;
use unasnap_host::store::{Placed, Store};
use unasnap_host::together::Together;
use unasnap_host::transfer::fetching::Fetcher;
use unasnap_host::transfer::images::Images;
use unasnap_host::transfer::receiving::Receiver;
use unasnap_protocol::control::{Answer, Envelope, Order};

use crate::authority::Authority;
use crate::elsewhere::There;
use crate::support::name;

/// The agent of the host to which it came.
struct Agent {
    there: There,
    store: Store,
    moving: Arc<Moving>,
    registry: Arc<Registry>,
    answers: mpsc::UnboundedReceiver<(Envelope, Answer)>,
}

impl Agent {
    async fn new() -> Self {
        let there = There::new().await;
        let state = there.state_dir();
        let config = VirtualBoxConfig { state_dir: state.clone(), ..VirtualBoxConfig::default() };
        let driver = VirtualBox::with_calls(config, there.virtualbox.clone()).await.unwrap();
        let driver: Arc<dyn Hypervisor> = Arc::new(driver);
        let drivers = Drivers::with_qemu(driver.clone()).and_virtualbox(driver);
        let store = Store::open(&state, Limits::default()).unwrap();
        let (sender, answers) = mpsc::unbounded_channel();
        let (words, _) = mpsc::unbounded_channel();
        let definitions = state.join("definitions");
        std::fs::create_dir(&definitions).unwrap();
        let (taps, together) = (Arc::new(KernelTaps::new(&state)), Together::new().0);
        let registry =
            Registry::open(&definitions, drivers, store.clone(), taps, sender.clone(), words, together);
        let registry = Arc::new(registry.await.unwrap());
        let receiver = Receiver {
            store: store.clone(),
            images: Images::new(&state),
            trust: Authority::new().trust("h1.host.unasnap"),
            runners: registry.clone(),
            believes: Vec::new(),
        };
        let moving = Moving {
            host: name("h1"),
            registry: registry.clone(),
            store: store.clone(),
            fetcher: Fetcher::new(receiver.into(), sender.clone()),
            answers: sender,
            term: AtomicU64::new(0),
            busy: Mutex::default(),
        };
        Self { there, store, moving: moving.into(), registry, answers }
    }

    /// What FETCH does when everything is there.
    fn accept(&self, placed: &Placed) {
        let (snapshot, vm, saved) = (name("s1"), name("web"), self.there.saved());
        let text = serde_json::to_vec(&self.there.manifest).unwrap();
        let incoming = self.store.receive(&snapshot, &vm, &text).unwrap();
        for file in &self.there.manifest.files {
            std::fs::copy(saved.join(&file.name), incoming.folder().join(&file.name)).unwrap();
        }
        self.store.accept(&incoming, &self.there.manifest, placed).unwrap();
    }

    async fn order(&mut self, order: Order) -> Answer {
        let member = self.registry.members().get(&envelope().vm);
        match member {
            Some(member) => member.order(envelope(), order),
            None => self.moving.order(envelope(), order),
        }
        self.answer().await
    }

    async fn answer(&mut self) -> Answer {
        tokio::time::timeout(Duration::from_secs(20), self.answers.recv()).await.unwrap().unwrap().1
    }
}

fn envelope() -> Envelope {
    let (vm, deployment, snapshot) = (name("web"), name("d"), name("s1"));
    Envelope { vm, deployment, snapshot, epoch: 7, term: 1, incarnation: 3 }
}

#[tokio::test]
async fn a_machine_lives_where_it_is_restored_and_leaves_nothing_where_it_is_evicted() {
    let mut agent = Agent::new().await;
    let vm = agent.there.vm.clone();
    agent.accept(&agent.there.here());
    assert_eq!(agent.order(Order::Poll(())).await, Answer::Ready(()));
    assert_eq!(agent.order(Order::Verify(())).await, Answer::Ready(()));
    assert_eq!(agent.order(Order::Restore(())).await, Answer::Loaded(()));
    let machine = vm.machine.clone().unwrap();
    assert_eq!(*agent.there.virtualbox.registered.lock().unwrap(), Some(machine.clone()));
    let lives_here = agent.registry.members().get(&vm.name).unwrap();
    assert_eq!(lives_here.works().definition().machine, Some(machine.clone()));

    let evicted = agent.order(Order::Evict(name("h2"))).await;
    assert!(agent.moving.sees_off(&envelope(), &evicted), "{evicted:?}");
    assert_eq!(agent.answer().await, Answer::Evicted(()));
    assert_eq!(*agent.there.virtualbox.registered.lock().unwrap(), None);
    assert!(!machine.parent().unwrap().exists() && agent.there.bases[0].exists());
    assert!(agent.registry.members().get(&vm.name).is_none());
}

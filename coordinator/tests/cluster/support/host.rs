//! A host for tests: the real participants behind the real channel; every job succeeds at once, unless
//! a fault says otherwise.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::time::{interval, sleep};
use unasnap_channel::{Identity, Writer, connect, steady_ns};
use unasnap_protocol::control::{
    Answer, ClockReading, Colouring, CoordinatorSession, CutReport, Envelope, Failure, FailureKind, Hello,
    HostSession, Inventory, Moved, Order, Phase, SavedReport, Standing, ToHost, TransferAddress, Undecided,
    VmReport, VmState,
};
use unasnap_protocol::name::Name;
use unasnap_protocol::participant::{Command, Event, Outcome, Participant, Step, phase_of};
use unasnap_protocol::power::{Controlled, Verb};

use super::Cluster;
pub use super::fault::Fault;
use super::guest::Guests;
use super::house::House;

/// How the host stands to time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    /// Its clock minus the coordinator's, nanoseconds.
    pub ahead_ns: i64,
    /// Its cuts begin so much later than they are ordered, nanoseconds.
    pub late_ns: u64,
    /// It does not tell what its clock shows.
    pub silent: bool,
}

/// What the test and the host's thread share.
pub(super) struct Shared {
    pub(super) name: Name,
    colouring: Colouring,
    pub(super) members: BTreeMap<Name, Participant>,
    /// What the hypervisor would say; what is not here runs.
    pub(super) states: BTreeMap<Name, VmState>,
    /// VM and name of every order that came.
    orders: Vec<(String, &'static str)>,
    /// Order, fault, how often still.
    faults: Vec<(&'static str, Fault, usize)>,
    /// Saving does not end while this is set.
    hold_saves: bool,
    held: Vec<(Name, Envelope)>,
    pub(super) away: bool,
    stop: bool,
    timing: Timing,
    /// The port at which it says that it gives files.
    serves: Option<u16>,
    user_here: bool,
    /// Free space that it reports, bytes.
    free_bytes: u64,
    /// The instant of every TAKE, by the host's clock.
    instants: Vec<Option<u64>>,
    /// Snapshots of which it was told that all stand.
    run_ons: Vec<String>,
    pub(super) house: House,
    guests: Guests,
}

/// A host with its agent, in a thread of its own.
pub struct Host {
    pub(super) shared: Arc<Mutex<Shared>>,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    /// Connects a host of the cluster with these VMs.
    pub fn start(cluster: &Cluster, name: &str, vms: &[&str]) -> Self {
        Self::with(cluster, name, vms, Colouring::Guest, Timing::default())
    }

    pub fn with(cluster: &Cluster, name: &str, vms: &[&str], colouring: Colouring, timing: Timing) -> Self {
        let members = vms.iter().map(|vm| (Name::new(vm).unwrap(), Participant::new(0))).collect();
        let shared = Arc::new(Mutex::new(Shared {
            name: Name::new(name).unwrap(),
            colouring,
            members,
            states: BTreeMap::new(),
            orders: Vec::new(),
            faults: Vec::new(),
            hold_saves: false,
            held: Vec::new(),
            away: false,
            stop: false,
            timing,
            serves: Some(7421),
            user_here: false,
            free_bytes: 5 << 30,
            instants: Vec::new(),
            run_ons: Vec::new(),
            house: House::default(),
            guests: Guests::default(),
        }));
        let (identity, address) = (cluster.identity(&format!("host-{name}")), cluster.address());
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(live(&shared, &address, &identity));
            }
        });
        Self { shared, thread: Some(thread) }
    }

    /// The next `order` meets this fault, once.
    pub fn fault(&self, order: &'static str, fault: Fault) {
        self.shared.lock().unwrap().faults.push((order, fault, 1));
    }

    pub fn hold_saves(&self, hold: bool) {
        self.shared.lock().unwrap().hold_saves = hold;
    }

    pub fn set_away(&self, away: bool) {
        self.shared.lock().unwrap().away = away;
    }

    /// Whether it gives files, from its next connection on.
    pub fn serve(&self, port: Option<u16>) {
        self.shared.lock().unwrap().serves = port;
    }

    /// Somebody sits there, or nobody, as it says from now on.
    pub fn set_user_here(&self, here: bool) {
        self.shared.lock().unwrap().user_here = here;
    }

    /// From now on it reports so much free space.
    pub fn set_free(&self, bytes: u64) {
        self.shared.lock().unwrap().free_bytes = bytes;
    }

    /// The VMs that it has, each with its incarnation.
    pub fn vms(&self) -> Vec<(String, u64)> {
        let shared = self.shared.lock().unwrap();
        shared.members.iter().map(|(vm, member)| (vm.to_string(), member.incarnation())).collect()
    }

    /// From now on its clock is so far ahead.
    pub fn set_clock(&self, ahead_ns: i64) {
        self.shared.lock().unwrap().timing.ahead_ns = ahead_ns;
    }

    /// Snapshots of which this host was told that all members stand.
    pub fn run_ons(&self) -> Vec<String> {
        self.shared.lock().unwrap().run_ons.clone()
    }

    /// The instants of all TAKEs, by this host's clock.
    pub fn instants(&self) -> Vec<Option<u64>> {
        self.shared.lock().unwrap().instants.clone()
    }

    /// It is to end; who drops it then waits for that.
    pub fn end(&self) {
        self.shared.lock().unwrap().stop = true;
    }

    /// Names of the orders that this VM got.
    pub fn orders(&self, vm: &str) -> Vec<&'static str> {
        let shared = self.shared.lock().unwrap();
        shared.orders.iter().filter(|(name, _)| name == vm).map(|(_, order)| *order).collect()
    }

    /// What its guests hold.
    pub fn guests<T>(&self, look: impl FnOnce(&mut Guests) -> T) -> T {
        look(&mut self.shared.lock().unwrap().guests)
    }

    /// Has no VM anything open?
    pub fn is_idle(&self) -> bool {
        self.shared.lock().unwrap().members.values().all(|member| member.open().is_none())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.end();
        self.thread.take().unwrap().join().unwrap();
    }
}

async fn live(shared: &Mutex<Shared>, address: &str, identity: &Identity) {
    loop {
        let (stop, away) = {
            let shared = shared.lock().unwrap();
            (shared.stop, shared.away)
        };
        if stop {
            return;
        }
        if !away {
            session(shared, address, identity).await;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// One connection, from hello to its end.
async fn session(shared: &Mutex<Shared>, address: &str, identity: &Identity) {
    let Ok(mut connection) = connect(address, identity).await else { return };
    let hello = HostSession::Hello(shared.lock().unwrap().hello());
    if connection.send(&hello.encode(&())).await.is_err() {
        return;
    }
    let serves = shared.lock().unwrap().serves;
    if let Some(port) = serves {
        let address = HostSession::Serves(TransferAddress { ip: None, port });
        if connection.send(&address.encode(&())).await.is_err() {
            return;
        }
    }
    let (mut reader, mut writer) = connection.split();
    let (mut tick, mut poll) = (interval(Duration::from_secs(1)), interval(Duration::from_millis(20)));
    loop {
        let going = tokio::select! {
            frame = reader.recv() => {
                let Ok(Some(frame)) = frame else { return };
                match ToHost::decode(&frame).unwrap() {
                    ToHost::Session(CoordinatorSession::StillHere(asked_ns)) => {
                        let reading = shared.lock().unwrap().read_clock(asked_ns);
                        match reading {
                            Some(reading) => {
                                let reading = HostSession::ClockReading(reading);
                                writer.send(&reading.encode(&())).await.is_ok()
                            }
                            None => true,
                        }
                    }
                    ToHost::Session(CoordinatorSession::Household(order)) => {
                        let word = shared.lock().unwrap().keep_house(order);
                        match word.map(|word| word.map(|word| HostSession::Household(word).encode(&()))) {
                            Ok(Some(word)) => writer.send(&word).await.is_ok(),
                            Ok(None) => true,
                            Err(()) => false,
                        }
                    }
                    ToHost::Session(CoordinatorSession::RunOn(snapshot)) => {
                        shared.lock().unwrap().run_ons.push(snapshot.to_string());
                        true
                    }
                    ToHost::Session(_) => true,
                    ToHost::Access(envelope, order) => {
                        let answer = shared.lock().unwrap().guests.answer(&envelope, order);
                        match answer {
                            Some(answer) => writer.send(&answer.encode(&envelope)).await.is_ok(),
                            None => true,
                        }
                    }
                    ToHost::Member(envelope, order) => {
                        let answers = shared.lock().unwrap().obey(envelope, order);
                        send_all(&mut writer, answers).await
                    }
                }
            }
            _ = tick.tick() => {
                let (mut words, unasked) = {
                    let mut shared = shared.lock().unwrap();
                    let words = vec![HostSession::Inventory(shared.inventory()), HostSession::UserHere(shared.user_here)];
                    (words, shared.unasked())
                };
                words.extend(unasked.map(HostSession::Household));
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.encode(&())).collect();
                writer.send(&bytes).await.is_ok()
            }
            _ = poll.tick() => {
                let answers = shared.lock().unwrap().release();
                send_all(&mut writer, answers).await
            }
        };
        let shared = shared.lock().unwrap();
        if !going || shared.stop || shared.away {
            return;
        }
    }
}

/// `None` breaks the connection.
async fn send_all(writer: &mut Writer, answers: Option<Vec<(Envelope, Answer)>>) -> bool {
    let Some(answers) = answers else { return false };
    for (envelope, answer) in answers {
        if let Answer::Cut(_) = answer {
            let standing = Standing { vm: envelope.vm.clone(), snapshot: envelope.snapshot.clone() };
            if writer.send(&HostSession::Standing(standing).encode(&())).await.is_err() {
                return false;
            }
        }
        if writer.send(&answer.encode(&envelope)).await.is_err() {
            return false;
        }
    }
    true
}

impl Shared {
    fn hello(&self) -> Hello {
        let undecided = |member: &Participant| {
            let envelope = member.open()?.clone();
            Some(Undecided { envelope, saved: member.is_saved() })
        };
        Hello {
            protocol: (1, 1),
            host: self.name.clone(),
            agent_version: "9.9.9".to_owned(),
            inventory: self.inventory(),
            undecided: self.members.values().filter_map(undecided).collect(),
        }
    }

    pub(super) fn inventory(&self) -> Inventory {
        let report = |(name, member): (&Name, &Participant)| VmReport {
            state: self.states.get(name).copied().unwrap_or(VmState::Running),
            colouring: self.colouring,
            colouring_note: String::new(),
            ram_way: "live".to_owned(),
            accelerator: "tcg".to_owned(),
            guest: !self.house.silent.contains(name),
            incarnation: member.incarnation(),
            ..self.house.shape(name)
        };
        let members = self.members.iter().filter(|(name, _)| !self.house.hidden.contains(*name));
        Inventory {
            vms: members.map(report).collect(),
            free_bytes: self.free_bytes,
            capacity: self.house.capacity,
        }
    }

    fn now_ns(&self) -> u64 {
        steady_ns().saturating_add_signed(self.timing.ahead_ns)
    }

    fn read_clock(&self, asked_ns: u64) -> Option<ClockReading> {
        let now_ns = self.now_ns();
        let reading = ClockReading { asked_ns, received_ns: now_ns, answered_ns: now_ns };
        (!self.timing.silent).then_some(reading)
    }

    fn take_fault(&mut self, order: &str) -> Option<Fault> {
        let found = self.faults.iter_mut().find(|(name, _, left)| *name == order && *left > 0)?;
        found.2 -= 1;
        Some(found.1)
    }

    fn obey(&mut self, envelope: Envelope, order: Order) -> Option<Vec<(Envelope, Answer)>> {
        let vm = envelope.vm.clone();
        self.orders.push((vm.to_string(), order.name()));
        if let Order::Take(at_ns) = order {
            self.instants.push(at_ns);
        }
        match self.take_fault(order.name()) {
            Some(fault @ (Fault::Refuse | Fault::RefuseRudely | Fault::Damage)) => {
                return Some(vec![(envelope, Answer::Refused(fault.failure(phase_of(&order))))]);
            }
            Some(Fault::Ignore) => return Some(Vec::new()),
            Some(Fault::GoAway) => {
                self.away = true;
                return None;
            }
            Some(Fault::Reconnect) => return None,
            Some(Fault::Forget) => {
                self.members.values_mut().for_each(|member| *member = Participant::new(member.incarnation()));
                return None;
            }
            None => {}
        }
        if let Some(answer) = self.as_host(&envelope, &order) {
            return Some(answer.into_iter().map(|answer| (envelope.clone(), answer)).collect());
        }
        let answers = self.event(&vm, Event::Order(envelope, order))?;
        if answers.iter().any(|(_, answer)| matches!(answer, Answer::Evicted(()))) {
            self.members.remove(&vm);
        }
        Some(answers)
    }

    /// What the host does itself: about files, and for members that are not here.
    fn as_host(&mut self, envelope: &Envelope, order: &Order) -> Option<Vec<Answer>> {
        let moved = Moved { sent: 1 << 20, to_send: 1 << 20, total: 3 << 20 };
        let is_here = self.members.contains_key(&envelope.vm);
        Some(match order {
            Order::Fetch(_) => vec![Answer::Fetching(Moved::default()), Answer::Fetched(moved)],
            Order::Poll(()) | Order::Verify(()) if !is_here => vec![Answer::Ready(())],
            Order::Delete(()) if !is_here => vec![Answer::Deleted(())],
            Order::Evict(_) if !is_here => vec![Answer::Evicted(())],
            Order::Restore(()) if !is_here => {
                self.members.insert(envelope.vm.clone(), Participant::new(0));
                return None;
            }
            _ => return None,
        })
    }

    /// Lets savings end that were held.
    fn release(&mut self) -> Option<Vec<(Envelope, Answer)>> {
        if self.hold_saves {
            return Some(Vec::new());
        }
        let mut answers = Vec::new();
        for (vm, _) in std::mem::take(&mut self.held) {
            let saved = saved(self.now_ns());
            answers.extend(self.event(&vm, Event::SaveDone(Ok(saved)))?);
        }
        Some(answers)
    }

    fn event(&mut self, vm: &Name, event: Event) -> Option<Vec<(Envelope, Answer)>> {
        let (colouring, now_ns, late_ns) = (self.colouring, self.now_ns(), self.timing.late_ns);
        let member = self.members.get_mut(vm)?;
        let mut commands = member.handle(event);
        let mut answers = Vec::new();
        while !commands.is_empty() {
            let mut next = Vec::new();
            for command in commands {
                match command {
                    Command::Answer(envelope, answer) => answers.push((envelope, answer)),
                    Command::Do(job) => {
                        let state = self.states.entry(vm.clone()).or_insert(VmState::Running);
                        let done = match &job.step {
                            Step::Control(verb) => Ok(control(*verb, state, member.incarnation())),
                            Step::Prepare(_) if *state != VmState::Running => {
                                let text = format!("the VM is {state:?}, not running");
                                Err(Failure::new(FailureKind::VmNotRunning, Phase::Prepare, text))
                            }
                            step => Ok(outcome(step, colouring, now_ns, late_ns)),
                        };
                        if matches!(done, Ok(Outcome::Started(_))) {
                            *state = VmState::Running;
                        }
                        next.extend(member.handle(Event::JobDone(done)));
                    }
                    Command::Save(envelope) if self.hold_saves => self.held.push((vm.clone(), envelope)),
                    Command::Save(_) => next.extend(member.handle(Event::SaveDone(Ok(saved(now_ns))))),
                    Command::WakeAfter(_) => {}
                }
            }
            commands = next;
        }
        Some(answers)
    }
}

fn control(verb: Verb, state: &mut VmState, incarnation: u64) -> Outcome {
    let wanted = match verb {
        Verb::Start | Verb::Resume | Verb::Reset => VmState::Running,
        Verb::Stop | Verb::Kill => VmState::Stopped,
        Verb::Pause => VmState::Paused,
    };
    let changed = std::mem::replace(state, wanted) != wanted;
    let note = if changed && verb == Verb::Start { "a new boot".to_owned() } else { String::new() };
    Outcome::Controlled(Controlled { state: wanted, incarnation, changed, note })
}

fn outcome(step: &Step, colouring: Colouring, now_ns: u64, late_ns: u64) -> Outcome {
    match step {
        Step::Cut(at_ns) => Outcome::Cut(cut(colouring, at_ns.unwrap_or(now_ns) + late_ns)),
        Step::Start(_) => Outcome::Started(vec!["the wall clock could not be set".to_owned()]),
        _ => Outcome::Done,
    }
}

fn cut(colouring: Colouring, start: u64) -> CutReport {
    CutReport {
        colouring,
        send_flipped_ns: start,
        stopped_ns: start + 1_000_000,
        instant_ns: start + 2_000_000,
        resumed_ns: start + 13_500_000,
        receive_flipped_ns: start + 14_000_000,
        parts: vec![("disk".to_owned(), 900_000), ("ram".to_owned(), 10_600_000)],
        outside_connections: Some(1),
    }
}

/// The fake does not wait for the instant of its cut, so that this must lie well behind it.
fn saved(now_ns: u64) -> SavedReport {
    SavedReport { digest: [0xab; 32], bytes: 3 << 20, saved_ns: now_ns + 200_000_000 }
}

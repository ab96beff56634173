//! One VM on its way, with the time that a test says.

use unasnap_protocol::household::Runner;
use unasnap_protocol::operator::CoordinatorStatus;

use super::*;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

struct World {
    begun: Instant,
    member: Member,
    seen: StatusReport,
}

impl World {
    /// A host that is connected, and nothing on it.
    fn new() -> Self {
        let wanted = NewVm {
            name: name("web"),
            deployment: name("shop"),
            base: name("debian"),
            memory_mb: 1024,
            cpus: 1,
            kernel: None,
            initrd: None,
            append: String::new(),
            colouring: None,
            nics: Vec::new(),
            hypervisor: Runner::Qemu,
        };
        let host = HostStatus {
            name: name("h1"),
            connected: true,
            since: Some("monday".to_owned()),
            agent_version: String::new(),
            free_bytes: None,
            cores: None,
            memory_mb: None,
        };
        let coordinator = CoordinatorStatus { version: String::new(), term: 1, uptime_s: 0 };
        let (vms, courses, last_snapshot) = (Vec::new(), Vec::new(), None);
        let paused = Vec::new();
        let seen = StatusReport {
            coordinator,
            hosts: vec![host],
            vms,
            courses,
            last_snapshot,
            paused,
            giving_way: Vec::new(),
        };
        let begun = Instant::now();
        Self { begun, member: Member::new(wanted, name("h1"), Limits::default(), begun), seen }
    }

    fn has(&mut self, state: Option<VmState>, colouring: Colouring, guest: bool) {
        self.seen.vms = vec![VmStatus {
            name: name("web"),
            deployment: name("shop"),
            host: name("h1"),
            state,
            colouring: Some(colouring),
            colouring_note: None,
            ram_way: None,
            accelerator: None,
            guest_agent: Some(guest),
            incarnation: None,
            memory_mb: None,
            cpus: None,
        }];
    }

    fn at(&self, second: u64) -> Instant {
        self.begun + Duration::from_secs(second)
    }

    fn look(&mut self, second: u64) -> Next {
        let now = self.at(second);
        self.member.look(Some(&self.seen), true, now)
    }

    fn why(&self) -> (Kind, &str) {
        let (kind, why) = self.member.problem.as_ref().unwrap();
        (*kind, why)
    }
}

fn error(text: &str) -> Result<(), CliError> {
    Err(CliError::new(Kind::Refused, text))
}

#[test]
fn what_it_needs_next_follows_from_what_its_host_has() {
    let mut world = World::new();
    let now = world.at(0);
    assert_eq!(world.member.look(Some(&world.seen), false, now), Next::Transmit);
    assert_eq!(world.look(0), Next::Make);
    for state in [VmState::Stopped, VmState::Failed] {
        world.has(Some(state), Colouring::Guest, false);
        assert_eq!(world.look(1), Next::Start, "{state:?}");
    }
    world.member.enter(State::Deploying, world.at(1));
    world.member.tried(Ok(()));
    for state in [VmState::Stopped, VmState::Starting, VmState::Running] {
        world.has(Some(state), Colouring::Guest, false);
        assert_eq!(world.look(2), Next::Wait, "{state:?}: it was started already");
    }
    for (colouring, guest) in [(Colouring::Guest, true), (Colouring::Host, false), (Colouring::None, false)] {
        world.has(Some(VmState::Running), colouring, guest);
        assert_eq!((world.look(3), world.member.state()), (Next::Nothing, State::Deployed));
    }
    let states: Vec<_> = world.member.stages().map(|stage| (stage.state, stage.ms)).collect();
    assert_eq!(states, [(State::Requested, 0.0), (State::Deploying, 1e3), (State::Deployed, 3e3)]);
}

#[test]
fn an_error_counts_unless_the_connection_broke() {
    let mut world = World::new();
    assert_eq!(world.look(0), Next::Make);
    world.member.tried(error("the connection broke"));
    world.seen.hosts[0].since = Some("tuesday".to_owned());
    assert_eq!(world.look(1), Next::Make, "it is on another connection");
    world.member.tried(error("the connection to the coordinator broke"));
    assert_eq!(world.member.look(None, true, world.at(2)), Next::Wait);
    assert_eq!(world.member.state(), State::Reconnecting);
    assert_eq!(world.look(3), Next::Make);
    world.member.tried(error("the disk is full"));
    assert_eq!((world.look(4), world.why()), (Next::Nothing, (Kind::Refused, "the disk is full")));
    assert_eq!(world.look(5), Next::Nothing, "it stays failed");
}

/// A host that was away may have lost what it had begun.
#[test]
fn what_was_started_before_the_connection_broke_is_started_again() {
    let mut world = World::new();
    world.has(Some(VmState::Stopped), Colouring::Guest, false);
    assert_eq!(world.look(0), Next::Start);
    world.member.enter(State::Deploying, world.at(0));
    world.member.tried(Ok(()));
    assert_eq!(world.look(1), Next::Wait);
    world.seen.hosts[0].since = Some("tuesday".to_owned());
    assert_eq!(world.look(2), Next::Start);
}

#[test]
fn each_state_lasts_so_long_at_most_in_all() {
    let mut world = World::new();
    world.seen.hosts[0].connected = false;
    assert_eq!(world.look(0), Next::Wait);
    assert_eq!(world.look(400), Next::Wait);
    world.seen.hosts[0].connected = true;
    world.has(Some(VmState::Running), Colouring::Guest, false);
    assert_eq!((world.look(400), world.look(639)), (Next::Wait, Next::Wait));
    world.seen.hosts[0].connected = false;
    assert_eq!((world.look(639), world.look(838)), (Next::Wait, Next::Wait));
    assert_eq!(world.look(839), Next::Nothing);
    assert_eq!(world.why(), (Kind::TimedOut, "host h1 is not connected (after 600 s of reconnecting)"));

    let mut world = World::new();
    assert_eq!(world.member.look(None, true, world.begun), Next::Wait);
    assert_eq!(world.member.look(None, true, world.begun + Duration::from_secs(600)), Next::Nothing);
    assert!(world.why().1.starts_with("the coordinator does not answer (after 600 s"), "{:?}", world.why());

    let mut world = World::new();
    world.has(Some(VmState::Running), Colouring::Guest, false);
    assert_eq!((world.look(0), world.look(239)), (Next::Wait, Next::Wait));
    assert_eq!(world.look(240), Next::Nothing);
    assert!(
        world.why().1.contains("guest agent does not answer, and host h1 cannot colour"),
        "{:?}",
        world.why()
    );
    assert!(world.why().1.ends_with("(after 240 s of deploying)"), "{:?}", world.why());

    let limits = Limits::default();
    assert_eq!(limits.of(State::Transmitting), Some(Duration::from_secs(1200)));
    assert_eq!(limits.of(State::Configuring), Some(Duration::from_secs(480)));
}

#[test]
fn what_somebody_must_see_to_is_not_waited_for() {
    for (state, words) in
        [(Some(VmState::Paused), "`unasnap vm resume web`"), (None, "host h1 does not report it")]
    {
        let mut world = World::new();
        world.has(state, Colouring::Guest, true);
        assert_eq!(world.look(0), Next::Nothing);
        assert!(world.why().1.contains(words), "{:?}", world.why());
    }
    let mut world = World::new();
    assert_eq!(world.look(0), Next::Make);
    world.member.enter(State::Configuring, world.at(0));
    world.member.tried(Ok(()));
    assert_eq!(world.look(1), Next::Wait, "it is not made again and again");
    assert_eq!(world.look(480), Next::Nothing);
    assert!(world.why().1.contains("the coordinator does not list it"), "{:?}", world.why());
}

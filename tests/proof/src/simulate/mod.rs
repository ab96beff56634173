//! Deterministic simulation: one seed, one run of one system, hours of virtual time in milliseconds. First everything may go wrong, and
//! nothing may be violated. Then everything heals: members must be found running or be restored, the next snapshot must
//! succeed and leave nothing behind, and traffic must flow.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use unasnap_protocol::control::Phase;
use unasnap_protocol::guest::Epoch;
use unasnap_protocol::participant::Step;

use self::fate::Fate;
use self::flow::Flow;
use self::random::Random;
use crate::invariants::{self, Violation, i5};
use crate::setup::{Mistake, Setup};
use crate::step::{Came, Event};
use crate::world::coordinator::Course;
use crate::world::{Context, Todo, World};

pub mod fate;
mod flow;
mod healing;
pub mod random;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
/// Between two attempts of a host agent to connect.
const RETRY: u64 = 500 * MS;
/// After which TCP sends again.
const RESEND: u64 = 200 * MS;
/// Between two looks at a VM that stands still.
const LOOK: u64 = 20 * MS;
/// Systems of so many members are checked after every event, larger ones now and then.
const SMALL: usize = 4;

/// How a run went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Members.
    pub members: usize,
    /// Events.
    pub events: u64,
    /// Snapshots committed.
    pub committed: usize,
    /// Restores.
    pub restored: u64,
    /// Virtual time, seconds.
    pub seconds: f64,
}

/// A run that broke an invariant.
#[derive(Debug, Clone)]
pub struct Broken {
    /// Which, and how.
    pub violation: Violation,
    /// The system.
    pub setup: Setup,
    /// Everything that happened.
    pub events: Vec<Event>,
    /// Virtual time, seconds.
    pub seconds: f64,
}

struct Run {
    setup: Setup,
    fate: Fate,
    random: Random,
    world: World,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    /// Events that wait, by the third number in the queue; freed places are used again.
    events: Vec<Event>,
    free: Vec<usize>,
    order: u64,
    wakes: Vec<u64>,
    deadline: u64,
    resending: Vec<bool>,
    flow: Flow,
    committed: usize,
    past: Vec<Event>,
    keeps_past: bool,
    count: u64,
}

/// The run of a seed.
///
/// # Errors
/// It breaks an invariant.
pub fn run(seed: u64, mistake: Mistake) -> Result<Summary, Box<Broken>> {
    let mut random = Random::new(seed);
    let (setup, fate) = fate::draw(&mut random, mistake);
    let found = Run::new(setup.clone(), fate.clone(), random.clone(), false).complete();
    found.map_err(|_| {
        // Once more, and this time everything is written down: it is the same run.
        let mut again = Run::new(setup, fate, random, true);
        let Err(violation) = again.all() else { unreachable!("a seed has one run") };
        let seconds = again.seconds();
        Box::new(Broken { violation, setup: again.setup, events: again.past, seconds })
    })
}

impl Run {
    fn new(setup: Setup, fate: Fate, random: Random, keeps_past: bool) -> Self {
        Self {
            world: World::new(&setup),
            now: SECOND,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            free: Vec::new(),
            order: 0,
            wakes: vec![0; setup.members()],
            deadline: 0,
            resending: vec![false; setup.channels.len()],
            flow: Flow::new(setup.channels.len()),
            committed: 0,
            past: Vec::new(),
            keeps_past,
            count: 0,
            setup,
            fate,
            random,
        }
    }

    fn complete(mut self) -> Result<Summary, Violation> {
        self.all()?;
        Ok(Summary {
            members: self.setup.members(),
            events: self.count,
            committed: self.committed,
            restored: self.world.coordinator.journal.incarnation,
            seconds: self.seconds(),
        })
    }

    fn seconds(&self) -> f64 {
        self.now as f64 / SECOND as f64
    }

    fn all(&mut self) -> Result<(), Violation> {
        for _ in 0..self.fate.rounds {
            self.disturbed_round()?;
        }
        self.heal()
    }

    /// A snapshot under traffic, with disturbances around it; then a pause of up to twenty minutes.
    fn disturbed_round(&mut self) -> Result<(), Violation> {
        let start = self.now + self.random.below(60 * SECOND);
        self.at(start, Event::Take);
        self.traffic(start, 4);
        for _ in 0..self.fate.disturbances {
            let span = self.random.one(&[300 * MS, SECOND, 20 * SECOND]);
            let when = start + self.random.below(span);
            self.disturb(when);
        }
        if self.random.permille(200) {
            let when = start + self.random.below(10 * SECOND);
            let of = self.some_committed();
            self.at(when, Event::Restore(of));
            self.traffic(when, 2);
        }
        let end = start + self.random.one(&[SECOND, 30 * SECOND, 1200 * SECOND]);
        self.until(end)
    }

    /// A snapshot that could be restored, or one that is not there.
    fn some_committed(&mut self) -> Epoch {
        let usable: Vec<_> = self.committed().collect();
        if usable.is_empty() { 0 } else { self.random.one(&usable) }
    }

    fn committed(&self) -> impl Iterator<Item = Epoch> + '_ {
        let all = self.world.coordinator.journal.snapshots.iter();
        all.filter(|(_, record)| record.committed).map(|(epoch, _)| *epoch)
    }

    /// Messages on all streams, most of them while the cuts are made.
    fn traffic(&mut self, start: u64, each: u64) {
        for channel in 0..self.setup.channels.len() {
            for _ in 0..each {
                let span = self.random.one(&[100 * MS, 300 * MS, 3 * SECOND]);
                let when = start + self.random.below(span);
                self.at(when, Event::Send(channel));
            }
        }
    }

    fn disturb(&mut self, when: u64) {
        let host = self.random.below(self.setup.hosts() as u64) as usize;
        let later = when + self.random.from(MS, 20 * SECOND);
        match self.random.below(8) {
            0..2 => self.at(when, Event::Break(host)),
            2..5 => {
                self.at(when, Event::AgentDies(host));
                self.at(later, Event::AgentStarts(host));
            }
            5..7 => {
                self.at(when, Event::CoordinatorDies);
                self.at(later, Event::CoordinatorStarts);
            }
            // A VM that dies without any snapshot is nobody's to bring back.
            _ if self.committed().next().is_some() => {
                self.at(when, Event::HostDies(host));
                self.at(later, Event::AgentStarts(host));
                let of = self.some_committed();
                self.at(later + 2 * SECOND, Event::Restore(of));
            }
            _ => {}
        }
    }

    fn at(&mut self, when: u64, event: Event) {
        self.order += 1;
        let place = match self.free.pop() {
            Some(place) => {
                self.events[place] = event;
                place
            }
            None => {
                self.events.push(event);
                self.events.len() - 1
            }
        };
        self.queue.push(Reverse((when, self.order, place)));
    }

    /// Lets time go on.
    fn until(&mut self, end: u64) -> Result<(), Violation> {
        while let Some(Reverse((when, _, place))) = self.queue.peek().copied().filter(|next| next.0.0 <= end)
        {
            self.queue.pop();
            self.free.push(place);
            self.now = when;
            self.happen(self.events[place])?;
        }
        self.now = end;
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        let event = match event {
            // Another wish came meanwhile.
            Event::Wake(member) if self.wakes[member] != self.now => return Ok(()),
            Event::Deadline if self.deadline != self.now => return Ok(()),
            Event::Deliver { packet, .. } => Event::Deliver { packet, now_ns: self.now },
            Event::Repeat { packet, .. } => Event::Repeat { packet, now_ns: self.now },
            Event::Judge { member, place, .. } => Event::Judge { member, place, now_ns: self.now },
            event => event,
        };
        let mut todo = Vec::new();
        let starts = self.starting(event);
        let came = self.world.apply(&mut Context { setup: &self.setup, todo: &mut todo }, event);
        if came != Came::Nothing {
            self.count += 1;
            if self.keeps_past {
                self.past.push(event);
            }
        }
        self.follow(event, came);
        if let Some(member) = starts {
            self.streams_go_on(member);
        }
        for one in todo {
            self.plan(one);
        }
        self.check(event, came)
    }

    /// The member that this event resumes after a restore.
    fn starting(&self, event: Event) -> Option<usize> {
        let Event::Act(member) = event else { return None };
        let running = self.world.members[member].job.as_ref()?;
        matches!(running.job.step, Step::Start(_)).then_some(member)
    }

    fn streams_go_on(&mut self, member: usize) {
        for channel in 0..self.setup.channels.len() {
            if self.setup.channels[channel].from == member {
                self.resend_later(channel);
            }
        }
    }

    /// Is it in its pause?
    fn stands(&self, member: usize) -> bool {
        self.world.members[member].vm.as_ref().is_some_and(|vm| !vm.running && !vm.awaits_start)
    }

    fn resend_later(&mut self, channel: usize) {
        if !std::mem::replace(&mut self.resending[channel], true) {
            let when = self.now + RESEND + self.random.below(RESEND / 4);
            self.at(when, Event::SendAgain(channel));
        }
    }

    /// What the world around does next.
    fn follow(&mut self, event: Event, came: Came) {
        match event {
            Event::Send(channel) if came == Came::Done => self.resend_later(channel),
            Event::SendAgain(channel) => {
                self.resending[channel] = false;
                if came == Came::Done || self.stands(self.setup.channels[channel].from) {
                    self.resend_later(channel);
                }
            }
            // The VM stands still: its host's queue holds the frame.
            Event::Deliver { packet, .. }
                if came == Came::Nothing && self.world.packets.contains(&packet) =>
            {
                self.at(self.now + LOOK, event);
            }
            Event::Judge { member, .. } if came == Came::Nothing && self.stands(member) => {
                self.at(self.now + LOOK, event);
            }
            Event::PollAgain if matches!(self.world.coordinator.course, Some(Course::Restoring { .. })) => {
                self.at(self.now + SECOND, Event::PollAgain);
            }
            Event::Break(host) | Event::AgentStarts(host) => self.connect_later(host),
            Event::CoordinatorStarts => {
                for host in 0..self.setup.hosts() {
                    self.connect_later(host);
                }
            }
            Event::Connect(host) if came == Came::Nothing => {
                let state = &self.world.hosts[host];
                // Whatever is missing schedules the next attempt when it is there.
                if state.up && state.link.is_none() && self.world.coordinator.up {
                    self.connect_later(host);
                }
            }
            _ => {}
        }
    }

    fn connect_later(&mut self, host: usize) {
        let when = self.now + RETRY + self.random.below(RETRY);
        self.at(when, Event::Connect(host));
    }

    fn plan(&mut self, todo: Todo) {
        let (random, now) = (&mut self.random, self.now);
        match todo {
            Todo::Down(host) => {
                let when = now + self.fate.message(random);
                self.at(when, Event::Down(host));
            }
            Todo::Up(host) => {
                let when = now + self.fate.message(random);
                self.at(when, Event::Up(host));
            }
            Todo::Act(member) => {
                let when = now + self.fate.work(random);
                let job = self.world.members[member].job.as_ref();
                let undoes = job.is_some_and(|running| running.job.step == Step::Undo);
                let fails = !undoes && random.permille(self.fate.failing);
                let event = match fails {
                    true if random.permille(500) => Event::ActUnheard(member),
                    true => Event::JobFails(member),
                    false => Event::Act(member),
                };
                self.at(when, event);
            }
            Todo::Save(member) => {
                let when = now + self.fate.save(random);
                let fails = random.permille(self.fate.failing);
                self.at(when, if fails { Event::SaveFails(member) } else { Event::SaveEnds(member) });
            }
            Todo::Wake(member, after) => {
                self.wakes[member] = after.map_or(0, |after| now + after.as_nanos() as u64);
                if after.is_some() {
                    self.at(self.wakes[member], Event::Wake(member));
                }
            }
            Todo::Deadline(after) => {
                self.deadline = now + after.as_nanos() as u64;
                self.at(self.deadline, Event::Deadline);
                if matches!(&self.world.coordinator.course, Some(Course::Restoring { machine, .. }) if machine.phase() == Phase::Poll)
                {
                    self.at(now + SECOND, Event::PollAgain);
                }
            }
            Todo::Judge(member) => {
                let when = now + random.below(self.fate.in_card);
                self.at(when, Event::Judge { member, place: 0, now_ns: 0 });
            }
            Todo::Packet(packet) => {
                if random.permille(self.fate.lost) {
                    return self.at(now, Event::Lose(packet));
                }
                if packet.dscp != 0 && random.permille(self.fate.bleached) {
                    return self.at(now, Event::Bleach(packet));
                }
                if random.permille(self.fate.doubled) {
                    let when = now + self.fate.travel(random);
                    self.at(when, Event::Repeat { packet, now_ns: 0 });
                }
                let when = now + self.fate.travel(&mut self.random);
                self.at(when, Event::Deliver { packet, now_ns: 0 });
            }
        }
    }

    fn check(&mut self, event: Event, came: Came) -> Result<(), Violation> {
        self.flow.see(&self.setup, &self.world, event, came, self.now)?;
        let committed = self.committed().count();
        let all =
            committed != self.committed || self.setup.members() <= SMALL || self.count.is_multiple_of(64);
        self.committed = committed;
        if all { invariants::always(&self.setup, &self.world) } else { Ok(()) }
    }

    /// All that must hold when everything has ended well.
    fn at_rest(&self) -> Result<(), Violation> {
        invariants::always(&self.setup, &self.world)?;
        i5::words_at_rest(&self.world)
    }
}

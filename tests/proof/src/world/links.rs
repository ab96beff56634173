//! Connections between host agents and the coordinator: in order until they break, and taken up again by a hello.

use unasnap_protocol::control::{Answer, Envelope, Failure, FailureKind, Order, Phase, Undecided};
use unasnap_protocol::coordinator::Event;
use unasnap_protocol::coordinator::returning::{Return, on_return, verdict};

use super::coordinator::Course;
use super::{Context, Link, Todo, World};
use crate::setup::{snapshot_epoch, snapshot_name};

impl World {
    /// The coordinator sends an order; `false` when the host is not connected.
    pub(super) fn order(
        &mut self,
        cx: &mut Context<'_>,
        host: usize,
        envelope: Envelope,
        order: Order,
    ) -> bool {
        // Words are for people, and would only make states differ.
        let order = if let Order::Abort(_) = order { Order::Abort(String::new()) } else { order };
        let Some(link) = &mut self.hosts[host].link else { return false };
        link.down.push_back((envelope, order));
        cx.todo.push(Todo::Down(host));
        true
    }

    /// A member answers; without a connection the answer waits.
    pub(super) fn say(&mut self, cx: &mut Context<'_>, host: usize, envelope: Envelope, answer: Answer) {
        let host_state = &mut self.hosts[host];
        match &mut host_state.link {
            Some(link) => {
                link.up.push_back((envelope, answer));
                cx.todo.push(Todo::Up(host));
            }
            None => host_state.waiting.push_back((envelope, answer)),
        }
    }

    /// What is on its way is lost; the coordinator notices.
    pub(crate) fn break_link(&mut self, cx: &mut Context<'_>, host: usize) {
        self.hosts[host].link = None;
        for member in cx.setup.on(host) {
            self.course_event(cx, Event::HostLost(cx.setup.names[member].clone()));
        }
    }

    /// The host says hello.
    pub(crate) fn connect(&mut self, cx: &mut Context<'_>, host: usize) {
        let undecided = self.undecided(cx, host);
        self.hosts[host].link = Some(Link::default());
        for one in &undecided {
            let snapshot = snapshot_epoch(&one.envelope.snapshot);
            let open = self.coordinator.taking_phase(snapshot);
            let record = self.coordinator.journal.snapshots.get(&snapshot);
            let order = verdict(open, record.is_some_and(|record| record.committed));
            let envelope = Envelope { term: self.coordinator.term, ..one.envelope.clone() };
            self.order(cx, host, envelope, order);
        }
        self.resume(cx, host, &undecided);
        for (envelope, answer) in std::mem::take(&mut self.hosts[host].waiting) {
            self.say(cx, host, envelope, answer);
        }
    }

    /// Snapshots that members hold open, and those that an earlier run of this agent left in the store.
    fn undecided(&self, cx: &Context<'_>, host: usize) -> Vec<Undecided> {
        let open = |member: usize| self.members[member].participant.undecided();
        let mut found: Vec<Undecided> = cx.setup.on(host).filter_map(open).collect();
        for (index, member) in cx.setup.on(host).map(|member| (member, &self.members[member])) {
            for (&epoch, _) in member.locals.iter().filter(|(_, local)| !local.committed) {
                let envelope = Envelope {
                    vm: cx.setup.names[index].clone(),
                    deployment: cx.setup.deployment.clone(),
                    snapshot: snapshot_name(epoch),
                    epoch,
                    term: 0,
                    incarnation: member.vm.as_ref().map_or(0, |vm| vm.incarnation),
                };
                if !found.iter().any(|known| known.envelope.same_course(&envelope)) {
                    found.push(Undecided { envelope, saved: true });
                }
            }
        }
        found
    }

    /// The course under way goes on with the members of a host that has come back.
    fn resume(&mut self, cx: &mut Context<'_>, host: usize, undecided: &[Undecided]) {
        match &mut self.coordinator.course {
            Some(Course::Taking { epoch, incarnation, machine }) => {
                let (epoch, incarnation, phase) = (*epoch, *incarnation, machine.phase());
                let snapshot = snapshot_name(epoch);
                let here = |vm: &&_| cx.setup.host_of[cx.setup.member(vm)] == host;
                let awaited: Vec<_> = machine.awaited().iter().filter(here).cloned().collect();
                for vm in awaited {
                    let known = |one: &Undecided| one.envelope.vm == vm && one.envelope.snapshot == snapshot;
                    match on_return(phase, undecided.iter().any(known)) {
                        Return::TellAgain => {
                            let order = match phase {
                                Phase::Commit => Order::Commit(()),
                                _ => Order::Abort(String::new()),
                            };
                            let deployment = cx.setup.deployment.clone();
                            let (snapshot, term) = (snapshot.clone(), self.coordinator.term);
                            let envelope = Envelope { vm, deployment, snapshot, epoch, term, incarnation };
                            self.order(cx, host, envelope, order);
                        }
                        Return::Lost => {
                            let text = "its host came back without its local snapshot";
                            self.cancel(cx, Failure::new(FailureKind::Files, Phase::Save, text));
                        }
                        Return::Wait => {}
                    }
                }
            }
            Some(Course::Restoring { machine, again, .. }) if machine.phase() == Phase::Poll => {
                let here = |vm: &&_| cx.setup.host_of[cx.setup.member(vm)] == host;
                again.extend(machine.awaited().iter().filter(here).cloned());
            }
            _ => {}
        }
    }
}

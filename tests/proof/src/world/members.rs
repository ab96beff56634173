//! The host agent around its participants. (As `host-agent/src/member.rs` does it.)

use unasnap_protocol::participant::{Command, Event, Participant, Step};

use super::{Context, Running, Todo, World};

impl World {
    /// Something happened to a member's participant; its commands are carried out.
    pub(crate) fn member_event(&mut self, cx: &mut Context<'_>, index: usize, event: Event) {
        for command in self.members[index].participant.handle(event) {
            let member = &mut self.members[index];
            match command {
                Command::Answer(envelope, answer) => {
                    self.say(cx, cx.setup.host_of[index], envelope, answer);
                }
                Command::Do(job) => {
                    if job.step == Step::Undo {
                        member.saving = None;
                    }
                    member.job = Some(Running { job, next: 0, late: false });
                    cx.todo.push(Todo::Act(index));
                }
                Command::Save(envelope) => {
                    member.saving = Some(envelope);
                    cx.todo.push(Todo::Save(index));
                }
                Command::WakeAfter(after) => {
                    member.wake = after.is_some();
                    cx.todo.push(Todo::Wake(index, after));
                }
            }
        }
    }

    /// Host agent killed: jobs and what participants know are gone, VMs go on, a VM that stands stays so.
    pub(crate) fn agent_dies(&mut self, cx: &mut Context<'_>, host: usize) {
        self.hosts[host].up = false;
        self.hosts[host].waiting.clear();
        for member in cx.setup.on(host).collect::<Vec<_>>() {
            let member = &mut self.members[member];
            member.participant = Participant::new(0);
            (member.job, member.saving, member.wake) = (None, None, false);
        }
        if self.coordinator.up && self.hosts[host].link.is_some() {
            self.break_link(cx, host);
        }
        self.hosts[host].link = None;
    }

    /// The whole host: VMs too, and what has not reached its disk.
    pub(crate) fn host_dies(&mut self, cx: &mut Context<'_>, host: usize) {
        for member in cx.setup.on(host).collect::<Vec<_>>() {
            self.members[member].vm = None;
            self.members[member].locals.retain(|_, local| local.durable);
        }
        if self.hosts[host].up {
            self.agent_dies(cx, host);
        }
    }

    /// What was being written is removed; VMs that live are adopted, and run unless they wait for START.
    pub(crate) fn agent_starts(&mut self, cx: &mut Context<'_>, host: usize) {
        self.hosts[host].up = true;
        for index in cx.setup.on(host).collect::<Vec<_>>() {
            let member = &mut self.members[index];
            (member.draft, member.undo_failed) = (None, false);
            if let Some(vm) = &mut member.vm
                && !vm.awaits_start
            {
                vm.running = true;
            }
            member.participant = Participant::new(member.vm.as_ref().map_or(0, |vm| vm.incarnation));
            self.release(cx, index);
        }
    }
}

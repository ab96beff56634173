//! The end of every run: everything heals, and then everything must go well.

use super::{Run, SECOND};
use crate::invariants::Violation;
use crate::step::Event;
use crate::world::Member;

/// Longer than any lease or limit that a course may still be waiting for.
const SETTLED: u64 = 1500 * SECOND;

fn stuck(invariant: &'static str, what: String) -> Violation {
    Violation { invariant, what }
}

impl Run {
    pub(super) fn heal(&mut self) -> Result<(), Violation> {
        self.fate.heal();
        self.start_everything();
        self.until(self.now + SETTLED)?;
        if self.world.coordinator.course.is_some() {
            return Err(stuck("I4", "a course does not end".to_owned()));
        }
        if let Some(host) = self.world.hosts.iter().position(|host| host.link.is_none()) {
            return Err(stuck("I4", format!("host {host} does not connect")));
        }
        // What an operator sees of a VM that died, and of a restore that failed half way.
        let incarnation = self.world.coordinator.journal.incarnation;
        let amiss = |member: &Member| {
            let vm = member.vm.as_ref().filter(|vm| vm.running && vm.incarnation == incarnation);
            vm.is_none() || (member.participant.open().is_some() && member.participant.undecided().is_none())
        };
        if self.world.members.iter().any(amiss) {
            self.restore_newest()?;
        }
        self.snapshot_succeeds()?;
        self.traffic_flows()?;
        if self.random.permille(300) {
            self.restore_newest()?;
            self.traffic_flows()?;
        }
        Ok(())
    }

    fn start_everything(&mut self) {
        self.at(self.now, Event::CoordinatorStarts);
        for host in 0..self.setup.hosts() {
            self.at(self.now, Event::AgentStarts(host));
            self.connect_later(host);
        }
    }

    fn restore_newest(&mut self) -> Result<(), Violation> {
        let Some(newest) = self.committed().last() else {
            return Err(stuck("I6", "a VM is gone, and no snapshot was ever taken".to_owned()));
        };
        let before = self.world.coordinator.journal.incarnation;
        self.at(self.now, Event::Restore(newest));
        self.until(self.now + 60 * SECOND)?;
        let now = self.world.coordinator.journal.incarnation;
        let runs = |member: &Member| member.vm.as_ref().is_some_and(|vm| vm.running && vm.incarnation == now);
        match self.world.members.iter().position(|member| !runs(member)) {
            Some(member) => {
                Err(stuck("I2", format!("the restore of s{newest} does not bring back m{member}")))
            }
            None if now != before + 1 => Err(stuck("I2", format!("s{newest} is not restored"))),
            None => Ok(()),
        }
    }

    /// And nothing of it is left but itself.
    fn snapshot_succeeds(&mut self) -> Result<(), Violation> {
        let epoch = self.world.coordinator.journal.last_epoch + 1;
        self.at(self.now, Event::Take);
        self.traffic(self.now, 2);
        self.until(self.now + 120 * SECOND)?;
        let record = self.world.coordinator.journal.snapshots.get(&epoch);
        if !record.is_some_and(|record| record.committed && record.closed) {
            return Err(stuck(
                "I4",
                format!("everything has healed, and snapshot s{epoch} does not succeed"),
            ));
        }
        self.at_rest()
    }

    /// On every stream, within the lease.
    fn traffic_flows(&mut self) -> Result<(), Violation> {
        self.setup.messages += 4;
        self.traffic(self.now, 1);
        self.until(self.now + 6 * SECOND)?;
        for channel in &self.setup.channels {
            let Some(vm) = &self.world.members[channel.from].vm else { continue };
            let sent = &vm.image.app.sent[channel.out];
            if (sent.acknowledged as usize) < sent.log.len() {
                let what = format!("the stream from m{} to m{} hangs", channel.from, channel.to);
                return Err(stuck("I4", what));
            }
        }
        Ok(())
    }
}

//! How often each kind of misfortune may happen in one exploration: what keeps it finite, and what a result is worth.

use crate::step::{Event, late_ns};

/// A kind of event that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Snapshots asked for.
    Takes,
    /// Restores asked for.
    Restores,
    /// Orders and answers lost.
    Lost,
    /// Orders and answers repeated.
    Repeated,
    /// Messages that TCP sends again.
    Resends,
    /// Packets delivered twice.
    Duplicates,
    /// Packets whose mark the network clears.
    Bleached,
    /// Members that advance by themselves.
    Advances,
    /// Waits of the coordinator that run out.
    Timeouts,
    /// Leases of members that run out.
    Leases,
    /// Jobs and savings that fail, with or without effect.
    Failures,
    /// Connections that break.
    Breaks,
    /// Crashes of the coordinator.
    Coordinators,
    /// Crashes of host agents.
    Agents,
    /// Crashes of whole hosts.
    Hosts,
}

const KINDS: [(Kind, &str); 15] = [
    (Kind::Takes, "snapshots"),
    (Kind::Restores, "restores"),
    (Kind::Lost, "control lost"),
    (Kind::Repeated, "control repeated"),
    (Kind::Resends, "messages sent again"),
    (Kind::Duplicates, "packets doubled"),
    (Kind::Bleached, "packets bleached"),
    (Kind::Advances, "self-advances"),
    (Kind::Timeouts, "time-outs"),
    (Kind::Leases, "leases"),
    (Kind::Failures, "failed jobs"),
    (Kind::Breaks, "broken links"),
    (Kind::Coordinators, "coordinator crashes"),
    (Kind::Agents, "agent crashes"),
    (Kind::Hosts, "host crashes"),
];

/// What may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Budget([u8; KINDS.len()]);

impl Budget {
    /// So many of each kind, and none of the others.
    #[must_use]
    pub fn of(counts: &[(Kind, u8)]) -> Self {
        let mut budget = Self::default();
        for (kind, count) in counts {
            budget.0[*kind as usize] = *count;
        }
        budget
    }

    /// The budget after this event; `None` if it may not happen.
    #[must_use]
    pub fn after(mut self, event: Event) -> Option<Self> {
        let kind = match event {
            // A packet that stays under way for ever is as good as lost.
            Event::Lose(_) => return None,
            Event::Take => Kind::Takes,
            Event::Restore(_) => Kind::Restores,
            Event::LoseDown(_) | Event::LoseUp(_) => Kind::Lost,
            Event::RepeatDown(_) | Event::RepeatUp(_) => Kind::Repeated,
            Event::Deliver { now_ns, .. } | Event::Judge { now_ns, .. } if now_ns == late_ns() => {
                Kind::Advances
            }
            Event::Repeat { now_ns, .. } if now_ns == late_ns() => return None,
            Event::Repeat { .. } => Kind::Duplicates,
            Event::SendAgain(_) => Kind::Resends,
            Event::Bleach(_) => Kind::Bleached,
            Event::Deadline => Kind::Timeouts,
            Event::Wake(_) => Kind::Leases,
            Event::ActUnheard(_) | Event::JobFails(_) | Event::SaveFails(_) => Kind::Failures,
            Event::Break(_) => Kind::Breaks,
            Event::CoordinatorDies => Kind::Coordinators,
            Event::AgentDies(_) => Kind::Agents,
            Event::HostDies(_) => Kind::Hosts,
            _ => return Some(self),
        };
        let left = &mut self.0[kind as usize];
        *left = left.checked_sub(1)?;
        Some(self)
    }

    /// As `2 snapshots, 1 self-advances`.
    #[must_use]
    pub fn words(&self) -> String {
        let each = KINDS.iter().filter(|(kind, _)| self.0[*kind as usize] > 0);
        each.map(|(kind, words)| format!("{} {words}", self.0[*kind as usize])).collect::<Vec<_>>().join(", ")
    }
}

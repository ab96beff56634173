//! What can go wrong where: every fault point with what reaches it, and blows from outside while a point holds the
//! program up.

use std::fmt;

use unasnap_fault_points::{GROUPS, Moment};

/// Who reaches a point. Hosts and VMs are counted from 1: `h1` has `vm1` and `vm3`, `h2` has `vm2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The coordinator.
    Coordinator,
    /// The agent of this host.
    Host(usize),
    /// The agent in this VM.
    Guest(u32),
}

/// What the operator does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// Takes a snapshot.
    Take,
    /// Takes one that is refused: the disk of `h2` is full.
    Refused,
    /// Takes snapshots until disk layers are merged.
    Merge,
    /// Restores the newest snapshot.
    Restore,
    /// Restores one that was taken while the guest's point was armed.
    RestoreArmed,
    /// Deletes a snapshot.
    Delete,
    /// Verifies the newest snapshot.
    Verify,
    /// Resumes all VMs, which run.
    Control,
    /// Runs a command in `vm3`.
    Exec,
    /// Reads the console of `vm3`.
    Console,
    /// Pauses the deployment.
    Pause,
    /// Starts the victim.
    Begin,
}

/// What happens at the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// The program that reaches it gets SIGKILL.
    Kill,
    /// The step fails.
    Error,
    /// The step is late, by milliseconds.
    Late(u32),
    /// The QEMU of this VM gets SIGKILL.
    KillQemu(u32),
    /// The QEMU of this VM gets SIGSTOP.
    HangQemu(u32),
    /// The agent in this VM gets SIGKILL.
    KillGuestAgent(u32),
    /// A cable is pulled: 0 is the coordinator's, others are the hosts'.
    Unplug(usize),
    /// The disk of `h2` fills up but for so many bytes.
    FillDisk(u64),
    /// A host loses power, and comes back.
    Reboot(usize),
}

/// One experiment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Who is armed.
    pub victim: Victim,
    /// `GROUP.STEP.before` or `GROUP.STEP.after`.
    pub point: String,
    /// What happens there.
    pub blow: Blow,
    /// Meanwhile.
    pub course: Course,
}

/// Steps that no row reaches, and why.
pub const NOT_REACHED: [(&str, &str); 15] = [
    ("journal.host", "written when a host is new; `coordinator/tests` dies there"),
    ("journal.vms", "written when a VM is new; `coordinator/tests` dies there"),
    ("journal.images", "written for the catalogue alone; `coordinator/tests` dies there"),
    ("say.Goodbye", "only a host that is refused hears it"),
    ("say.Household", "no VM comes or goes here; `coordinator/tests` dies there"),
    ("tell.Household", "no VM comes or goes here; `host-agent/tests/qemu` dies there"),
    ("seek.Base", "no image is preloaded here; `host-agent/tests/transfer` cuts one that comes"),
    ("seek.Disks", "no VM is replicated here; `host-agent/tests/transfer` cuts the disks of one that come"),
    ("ask.ReadCounters", "no host asks for counters"),
    ("guest.ReadCounters", "no host asks for counters"),
    ("reply.Failed", "every guest allows what is asked of it here; `host-agent/tests/works` asks others"),
    ("qmp.query-version", "asked of a QEMU that is only probed"),
    ("qmp.query-machines", "asked of a QEMU that is only probed"),
    (
        "qmp.system_powerdown",
        "a VM that lost its RAM pays nobody any more; `host-agent/tests/qemu` presses the button",
    ),
    (
        "qmp.block-job-cancel",
        "needs a merge that is still busy at the next snapshot; the disks here are small",
    ),
];

/// Why no row restores VMs elsewhere: each row finds them where they were at first.
const ELSEWHERE: [&str; 3] = [
    "`coordinator/tests` dies there, in a restore with `--place`",
    "`cargo xtask bank --migrate --snapshots 12` dies there",
    "said to a third transfer, and to whom nothing is given; `host-agent/tests/transfer` has both",
];

/// Why no row makes calls of VBoxManage.
const VIRTUALBOX: &str = "all VMs here are QEMU's; `host-agent/tests/virtualbox` lets every call fail";

/// Why no row reaches a step.
#[must_use]
pub fn reason(group: &str, step: &str) -> Option<&'static str> {
    let (name, [coordinator, host, given]) = (format!("{group}.{step}"), ELSEWHERE);
    match (group, step) {
        ("vbox", _) => Some(VIRTUALBOX),
        ("journal", "copies" | "home") | ("order", "Fetch" | "Evict") => Some(coordinator),
        ("give", "Busy" | "Refused") => Some(given),
        ("seek", "Open" | "Read") | ("give", _) | ("store", "receive" | "accept") => Some(host),
        ("answer", "Fetching" | "Fetched" | "Evicted") => Some(host),
        _ => NOT_REACHED.iter().find(|(known, _)| *known == name).map(|(_, why)| *why),
    }
}

/// Who reaches a step and what has to go on for it. `None`: see [`NOT_REACHED`].
fn place(group: &str, step: &str) -> Option<(Victim, Course)> {
    use Course::{
        Begin, Console, Control, Delete, Exec, Merge, Pause, Refused, Restore, RestoreArmed, Take, Verify,
    };
    use Victim::{Coordinator, Guest, Host};
    if reason(group, step).is_some() {
        return None;
    }
    Some(match (group, step) {
        ("journal", "term") | ("say", "Welcome" | "Incarnations") => (Coordinator, Begin),
        ("order", "Verify") => (Coordinator, Verify),
        ("journal", "paused") => (Coordinator, Pause),
        ("order", "Control") => (Coordinator, Control),
        ("relay", "Console") => (Coordinator, Console),
        ("relay", _) => (Coordinator, Exec),
        ("reply", "Console") => (Host(1), Console),
        ("reply", _) | ("ask", "Access") => (Host(1), Exec),
        ("guest", "Access") => (Guest(3), Exec),
        ("answer", "Controlled") => (Host(1), Control),
        ("journal", "aborted") | ("order", "Abort") => (Coordinator, Refused),
        ("journal", "loading") | ("order", "Poll" | "Restore" | "Start") => (Coordinator, Restore),
        ("journal", "deleting" | "removed") | ("order", "Delete") => (Coordinator, Delete),
        ("journal" | "order" | "say", _) => (Coordinator, Take),
        ("tell", "Hello" | "Serves" | "UserHere") | ("qmp", "qmp_capabilities") | ("store", "collect") => {
            (Host(1), Begin)
        }
        ("answer", "Refused") => (Host(2), Refused),
        ("answer", "Ready" | "Loaded" | "Started") => (Host(1), Restore),
        ("answer", "Deleted") | ("store", "unmark" | "delete") => (Host(1), Delete),
        ("qmp", "blockdev-del") | ("store", "abandon") => (Host(1), Refused),
        ("qmp", "block-stream") => (Host(1), Merge),
        ("qmp", "migrate-incoming") | ("qemu", _) | ("tool", "ip") => (Host(1), Restore),
        ("ask", "StartHooks") => (Host(1), Restore),
        ("ask", "LocateWord") | ("word", "poke") => (Host(2), Take),
        ("guest", "StartHooks") => (Guest(3), RestoreArmed),
        ("guest", "LocateWord") => (Guest(2), Take),
        ("guest", _) => (Guest(3), Take),
        _ => (Host(1), Take),
    })
}

/// The whole table, each program killed at each of its points first.
pub fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    for group in GROUPS {
        for step in group.steps {
            let Some((victim, course)) = place(group.name, step) else { continue };
            for moment in Moment::ALL {
                let point = format!("{}.{step}.{}", group.name, moment.label());
                rows.push(Row { victim, point, blow: Blow::Kill, course });
            }
        }
    }
    rows.extend(from_outside());
    rows
}

/// Blows that no program deals itself.
fn from_outside() -> Vec<Row> {
    use Course::{Delete, Restore, Take};
    use Victim::{Coordinator, Guest, Host};
    let row = |victim, point: &str, blow, course| Row { victim, point: point.to_owned(), blow, course };
    let mut rows = Vec::new();
    // A snapshot's steps, held up by the coordinator.
    let steps = ["Prepare.after", "Arm.before", "Arm.after", "Take.before", "Take.after", "Clear.after"];
    for step in steps {
        let point = format!("order.{step}");
        for blow in [Blow::KillQemu(2), Blow::HangQemu(3), Blow::Unplug(2), Blow::KillGuestAgent(3)] {
            rows.push(row(Coordinator, &point, blow, Take));
        }
    }
    for point in ["order.Arm.after", "order.Take.after", "journal.committed.before", "order.Commit.before"] {
        rows.push(row(Coordinator, point, Blow::Unplug(0), Take));
        rows.push(row(Coordinator, point, Blow::Reboot(1), Take));
    }
    for point in ["order.Poll.after", "order.Restore.after", "order.Start.before"] {
        for blow in [Blow::KillQemu(1), Blow::Unplug(2), Blow::Reboot(2)] {
            rows.push(row(Coordinator, point, blow, Restore));
        }
    }
    rows.push(row(Coordinator, "order.Delete.after", Blow::Unplug(1), Delete));
    // Of the RAM and the disk layers of one VM, so much fits.
    for left in [0, 1, 4096, 65_537, 1 << 20, 9_999_999, 20 << 20, 40 << 20] {
        rows.push(row(Host(2), "qmp.migrate.before", Blow::FillDisk(left), Take));
    }
    rows.push(row(Host(2), "store.begin.after", Blow::FillDisk(1 << 20), Take));
    rows.push(row(Host(2), "answer.Cut.after", Blow::FillDisk(0), Take));
    // A member is slow, or a step of it fails.
    rows.push(row(Host(1), "qmp.stop.before", Blow::Late(2600), Take));
    rows.push(row(Host(2), "answer.Prepared.before", Blow::Late(1500), Take));
    rows.push(row(Host(1), "ask.FlipReceive.before", Blow::Late(1500), Take));
    rows.push(row(Guest(3), "guest.FlipSend.after", Blow::Late(1500), Take));
    for point in ["qmp.transaction.before", "qmp.cont.after", "file.ram.before", "file.sync.before"] {
        rows.push(row(Host(1), point, Blow::Error, Take));
    }
    for point in ["store.name.before", "store.name.after", "file.write.before", "answer.Saved.before"] {
        rows.push(row(Host(2), point, Blow::Error, Take));
    }
    rows.push(row(Coordinator, "journal.committed.before", Blow::Error, Take));
    rows.push(row(Coordinator, "order.Take.before", Blow::Error, Take));
    rows.push(row(Host(1), "qemu.spawn.after", Blow::Error, Restore));
    rows
}

/// A row of every kind.
const SAMPLE: [&str; 25] = [
    "journal.committed.after kill",
    "order.Take.after kill",
    "answer.Cut.before kill",
    "store.name.before kill",
    "qmp.cont.before kill",
    "guest.FlipSend.after kill",
    "order.Take.before kill-qemu-vm2",
    "order.Arm.after unplug-h2",
    "order.Commit.before reboot-h1",
    "order.Restore.after kill",
    "journal.removed.before kill",
    "qmp.migrate.before fill-disk-1048576",
    "qmp.stop.before late-2600",
    "journal.aborted.after kill",
    "order.Verify.after kill",
    "answer.Controlled.before kill",
    "journal.paused.after kill",
    "tell.Hello.after kill",
    "guest.Access.before kill",
    "relay.Console.before kill",
    "guest.StartHooks.before kill",
    "qmp.block-stream.before kill",
    "order.Take.before error",
    "order.Take.after hang-qemu-vm3",
    "order.Prepare.after kill-agent-vm3",
];

/// Rows that touch every program, every course and every kind of blow.
pub fn sample() -> Vec<Row> {
    let all = all();
    SAMPLE.iter().filter_map(|name| all.iter().find(|row| row.to_string() == *name).cloned()).collect()
}

impl fmt::Display for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&format!("{} {}", self.point, self.blow))
    }
}

impl fmt::Display for Blow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill => write!(formatter, "kill"),
            Self::Error => write!(formatter, "error"),
            Self::Late(ms) => write!(formatter, "late-{ms}"),
            Self::KillQemu(vm) => write!(formatter, "kill-qemu-vm{vm}"),
            Self::HangQemu(vm) => write!(formatter, "hang-qemu-vm{vm}"),
            Self::KillGuestAgent(vm) => write!(formatter, "kill-agent-vm{vm}"),
            Self::Unplug(0) => write!(formatter, "unplug-coordinator"),
            Self::Unplug(host) => write!(formatter, "unplug-h{host}"),
            Self::FillDisk(left) => write!(formatter, "fill-disk-{left}"),
            Self::Reboot(host) => write!(formatter, "reboot-h{host}"),
        }
    }
}

impl Blow {
    /// What the armed program does itself; others hold it up until they have been struck from outside.
    pub fn action(self) -> String {
        match self {
            Self::Kill => "kill".to_owned(),
            Self::Error => "error".to_owned(),
            Self::Late(ms) => format!("delay={ms}"),
            _ => "delay=700".to_owned(),
        }
    }

    /// VMs that do not take part in the traffic until the operator has acted, or that cannot be watched.
    pub fn silences(self) -> &'static [u32] {
        match self {
            Self::KillQemu(1) | Self::HangQemu(1) => &[1],
            Self::KillQemu(2) | Self::HangQemu(2) | Self::Unplug(2) | Self::Reboot(2) => &[2],
            Self::KillQemu(_) | Self::HangQemu(_) => &[3],
            Self::Unplug(1) | Self::Reboot(1) => &[1, 3],
            _ => &[],
        }
    }

    /// Does a VM die of it?
    pub fn is_deadly(self) -> bool {
        matches!(self, Self::KillQemu(_) | Self::Reboot(_))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::bank::moving::BLOWS;

    #[test]
    fn every_point_has_a_row_or_a_reason() {
        let rows = all();
        for group in GROUPS {
            for step in group.steps {
                let name = format!("{}.{step}", group.name);
                let has_row = rows.iter().any(|row| row.point == format!("{name}.before"));
                let has_reason = reason(group.name, step).is_some();
                assert!(has_row != has_reason, "{name}");
            }
        }
        let dies = |name: &str| BLOWS.iter().flatten().any(|(_, point)| point.starts_with(name));
        for group in GROUPS {
            for step in group.steps {
                let is_left_to_bank = reason(group.name, step) == Some(ELSEWHERE[1]);
                assert!(!is_left_to_bank || dies(&format!("{}.{step}.", group.name)), "{step}");
            }
        }
        let mut names: Vec<_> = rows.iter().map(ToString::to_string).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), rows.len(), "two rows have the same name");
    }

    #[test]
    fn the_sample_has_every_program_every_course_and_every_kind_of_blow() {
        let kinds = |rows: &[Row]| -> BTreeSet<String> {
            // `Late(2600)` is of the same kind as `Late(1500)`.
            let kind = |value: &dyn fmt::Debug| format!("{value:?}").split('(').next().unwrap().to_owned();
            rows.iter().flat_map(|row| [kind(&row.victim), kind(&row.course), kind(&row.blow)]).collect()
        };
        assert_eq!(kinds(&sample()), kinds(&all()));
        assert_eq!(sample().len(), SAMPLE.len(), "a row of that name is not in the table");
    }
}

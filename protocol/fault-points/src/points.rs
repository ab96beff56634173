//! The table of all fault points.

use unasnap_protocol::access::{AccessAnswer, AccessOrder};
use unasnap_protocol::control::{Answer, CoordinatorSession, HostSession, Order};
use unasnap_protocol::guest::GuestRequest;
use unasnap_protocol::transfer::{Ask, Give};

/// Who reaches a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `unasnap coordinator`.
    Coordinator,
    /// `unasnap-host`.
    Host,
    /// `unasnap-guest`.
    Guest,
}

/// Steps of one kind; each has a point before it and one after it.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// First part of the points' names.
    pub name: &'static str,
    /// Who takes these steps.
    pub program: Program,
    /// What they are.
    pub what: &'static str,
    /// Second part of the points' names.
    pub steps: &'static [&'static str],
}

/// All of them.
pub const GROUPS: &[Group] = &[
    Group {
        name: "journal",
        program: Program::Coordinator,
        what: "a write to the journal, by what it makes durable",
        steps: &[
            "term",
            "host",
            "vms",
            "opened",
            "taken",
            "committed",
            "aborted",
            "closed",
            "loading",
            "deleting",
            "removed",
            "paused",
            "copies",
            "home",
            "images",
        ],
    },
    Group {
        name: "order",
        program: Program::Coordinator,
        what: "an order to one member handed to its host's connection",
        steps: Order::NAMES,
    },
    Group {
        name: "say",
        program: Program::Coordinator,
        what: "a message about the session to a host",
        steps: CoordinatorSession::NAMES,
    },
    Group {
        name: "relay",
        program: Program::Coordinator,
        what: "what an operator wants of a guest, handed to its host's connection",
        steps: AccessOrder::NAMES,
    },
    Group {
        name: "tell",
        program: Program::Host,
        what: "a message about the session to the coordinator",
        steps: HostSession::NAMES,
    },
    Group {
        name: "answer",
        program: Program::Host,
        what: "a member's answer to the coordinator",
        steps: Answer::NAMES,
    },
    Group {
        name: "reply",
        program: Program::Host,
        what: "what an operator hears of a guest",
        steps: AccessAnswer::NAMES,
    },
    Group {
        name: "seek",
        program: Program::Host,
        what: "a question to the host whose files are fetched",
        steps: Ask::NAMES,
    },
    Group {
        name: "give",
        program: Program::Host,
        what: "a message to the host that fetches files",
        steps: Give::NAMES,
    },
    Group {
        name: "ask",
        program: Program::Host,
        what: "a request to a guest agent, with its reply",
        steps: GuestRequest::NAMES,
    },
    Group {
        name: "qmp",
        program: Program::Host,
        what: "a command to QEMU, with its answer",
        steps: &[
            "qmp_capabilities",
            "query-status",
            "query-block",
            "query-block-jobs",
            "query-named-block-nodes",
            "query-migrate",
            "query-version",
            "query-machines",
            "qom-list",
            "migrate-set-capabilities",
            "migrate-set-parameters",
            "migrate",
            "migrate_cancel",
            "migrate-incoming",
            "add-fd",
            "remove-fd",
            "getfd",
            "blockdev-add",
            "blockdev-del",
            "block-stream",
            "block-job-cancel",
            "stop",
            "transaction",
            "xen-save-devices-state",
            "cont",
            "system_powerdown",
        ],
    },
    Group { name: "qemu", program: Program::Host, what: "a QEMU made or ended", steps: &["spawn", "kill"] },
    Group {
        name: "vbox",
        program: Program::Host,
        what: "a call of VBoxManage about machines and disks, with its answer",
        steps: &[
            "showvminfo",
            "list",
            "createvm",
            "registervm",
            "unregistervm",
            "modifyvm",
            "storagectl",
            "storageattach",
            "closemedium",
            "showmediuminfo",
            "startvm",
            "controlvm",
            "discardstate",
            "snapshot",
        ],
    },
    Group {
        name: "tool",
        program: Program::Host,
        what: "a program of the host run to its end",
        steps: &["ip", "qemu-img"],
    },
    Group {
        name: "store",
        program: Program::Host,
        what: "a step of the store of local snapshots",
        steps: &["begin", "name", "mark", "unmark", "delete", "abandon", "collect", "receive", "accept"],
    },
    Group {
        name: "file",
        program: Program::Host,
        what: "a step with one file, of the store or of the driver",
        steps: &["write", "sync", "remove", "link", "digest", "ram"],
    },
    Group {
        name: "word",
        program: Program::Host,
        what: "a change of what a VM's programs go by: on its taps, or (`poke`) in its RAM",
        steps: &["members", "set", "change", "poke"],
    },
    Group {
        name: "guest",
        program: Program::Guest,
        what: "a request carried out by the guest agent; `after` is before its reply",
        steps: GuestRequest::NAMES,
    },
];

/// Is there such a step?
#[must_use]
pub fn is_listed(group: &str, step: &str) -> bool {
    find(group, step).is_some()
}

/// The step of this name, if there is one.
#[must_use]
pub fn find(group: &str, step: &str) -> Option<&'static str> {
    let steps = GROUPS.iter().find(|known| known.name == group)?.steps;
    steps.iter().copied().find(|known| *known == step)
}

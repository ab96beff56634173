//! The whole state of a cluster, as its bytes are pinned.

use unasnap_protocol::control::*;
use unasnap_protocol::operator::*;
use unasnap_protocol::power::PausedDeployment;

use super::name;

pub fn status() -> StatusReport {
    let host = HostStatus {
        name: name("h1"),
        connected: true,
        since: Some("2026-01-01T00:00:00Z".to_owned()),
        agent_version: "0.1.0".to_owned(),
        free_bytes: Some(300),
        cores: Some(4),
        memory_mb: Some(800),
    };
    let vm = VmStatus {
        name: name("vm1"),
        deployment: name("ring"),
        host: name("h1"),
        state: Some(VmState::Paused),
        colouring: Some(Colouring::None),
        colouring_note: Some("why".to_owned()),
        ram_way: Some("stop-and-save".to_owned()),
        accelerator: Some("tcg".to_owned()),
        guest_agent: Some(true),
        incarnation: Some(2),
        memory_mb: Some(128),
        cpus: None,
    };
    let course = CourseStatus {
        deployment: name("ring"),
        snapshot: name("ring-000004"),
        phase: Phase::Save,
        waiting: vec![name("vm1")],
    };
    let last = LastSnapshot {
        id: name("ring-000003"),
        deployment: name("ring"),
        created: "2026-01-01T00:00:00Z".to_owned(),
    };
    StatusReport {
        coordinator: CoordinatorStatus { version: "0.1.0".to_owned(), term: 300, uptime_s: 5 },
        hosts: vec![host],
        vms: vec![vm],
        courses: vec![course],
        last_snapshot: Some(last),
        paused: vec![PausedDeployment {
            deployment: name("bank"),
            snapshot: name("bank-000007"),
            for_user: true,
        }],
        giving_way: vec![name("bank")],
    }
}

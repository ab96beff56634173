//! `unasnap status`, `host list`: views of one answer.

use serde::Serialize;
use unasnap_protocol::control::VmState;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{HostStatus, Reply, Request, StatusReport, VmStatus};
use unasnap_protocol::power::PausedDeployment;

use super::output;
use crate::client::Exchange;
use crate::config::ClientConfig;
use crate::failure::Result;

#[derive(Serialize)]
struct Hosts {
    hosts: Vec<HostStatus>,
}

/// `status`.
pub async fn overview(config: &ClientConfig, json: bool) -> Result<()> {
    let status = fetch(config).await?;
    if json {
        return output::json(&status);
    }
    let daemon = &status.coordinator;
    output::line(&format!(
        "coordinator  version {}, term {}, up {} s",
        daemon.version, daemon.term, daemon.uptime_s
    ))?;
    let last = status.last_snapshot.as_ref();
    let last = last.map_or_else(|| "none".to_owned(), |last| format!("{}, {}", last.id, last.created));
    output::line(&format!("last usable  {last}"))?;
    for course in &status.courses {
        let waiting = course.waiting.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
        output::line(&format!("under way    {} {}, waiting for {waiting}", course.phase, course.snapshot))?;
    }
    for paused in &status.paused {
        let PausedDeployment { deployment, snapshot, for_user } = paused;
        let goes_on = if *for_user {
            "it goes on when nobody sits at its hosts".to_owned()
        } else {
            format!("`unasnap resume {deployment}`")
        };
        output::line(&format!("paused       {deployment} in {snapshot}; {goes_on}"))?;
    }
    output::line("")?;
    host_table(&status.hosts)?;
    output::line("")?;
    vm_table(&status.vms.iter().collect::<Vec<_>>())
}

/// `host list`.
pub async fn hosts(config: &ClientConfig, json: bool) -> Result<()> {
    let hosts = fetch(config).await?.hosts;
    if json { output::json(&Hosts { hosts }) } else { host_table(&hosts) }
}

/// All that the coordinator knows.
pub async fn fetch(config: &ClientConfig) -> Result<StatusReport> {
    let mut exchange = Exchange::begin(config, &Request::Status(())).await?;
    match exchange.next().await? {
        Reply::Status(status) => Ok(*status),
        other => Err(exchange.unexpected(&other)),
    }
}

fn host_table(hosts: &[HostStatus]) -> Result<()> {
    let row = |host: &HostStatus| {
        vec![
            host.name.to_string(),
            if host.connected { "yes" } else { "no" }.to_owned(),
            output::known(host.since.as_ref()),
            host.agent_version.clone(),
            output::known(host.cores),
            output::bytes(host.memory_mb.map(|memory| memory << 20)),
            output::bytes(host.free_bytes),
        ]
    };
    output::table(&["HOST", "CONNECTED", "SINCE", "AGENT", "CORES", "MEMORY", "FREE"], hosts.iter().map(row))
}

/// A row for each VM.
pub fn vm_table(vms: &[&VmStatus]) -> Result<()> {
    let header = [
        "VM",
        "DEPLOYMENT",
        "HOST",
        "STATE",
        "COLOURING",
        "RAM WAY",
        "ACCEL",
        "GUEST",
        "INCARNATION",
        "MEMORY",
        "CPUS",
    ];
    let row = |vm: &&VmStatus| {
        vec![
            vm.name.to_string(),
            vm.deployment.to_string(),
            vm.host.to_string(),
            vm.state.map_or("not reported", state).to_owned(),
            output::known(vm.colouring),
            output::known(vm.ram_way.as_ref().filter(|way| !way.is_empty())),
            output::known(vm.accelerator.as_ref().filter(|name| !name.is_empty())),
            output::known(vm.guest_agent.map(|answers| if answers { "answers" } else { "silent" })),
            output::known(vm.incarnation),
            output::known(vm.memory_mb.map(|memory| format!("{memory} MiB"))),
            output::known(vm.cpus),
        ]
    };
    output::table(&header, vms.iter().map(row))?;
    for (vm, note) in vms.iter().filter_map(|vm| Some((vm, vm.colouring_note.as_ref()?))) {
        output::line(&format!("{}: not coloured as it would rather be: {note}", vm.name))?;
    }
    Ok(())
}

/// In words.
pub fn state(state: VmState) -> &'static str {
    match state {
        VmState::Stopped => "stopped",
        VmState::Starting => "starting",
        VmState::Running => "running",
        VmState::Paused => "paused",
        VmState::Failed => "failed",
    }
}

//! `unasnap vm`: single VMs.

use serde::Serialize;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Reply, Request, VmStatus};
use unasnap_protocol::power::{BadPatterns, ControlReport, ControlRequest, ControlledVm, Pattern, Verb};

use super::status::{fetch, state, vm_table};
use super::{output, progress};
use crate::config::ClientConfig;
use crate::failure::{CliError, Kind, Result};

#[derive(Serialize)]
struct Vms<'a> {
    vms: Vec<&'a VmStatus>,
}

#[derive(Serialize)]
struct One<'a> {
    vm: &'a VmStatus,
}

#[derive(Serialize)]
struct Done {
    control: ControlReport,
}

/// `vm list`.
pub async fn list(config: &ClientConfig, patterns: &[Pattern], json: bool) -> Result<()> {
    let vms = fetch(config).await?.vms;
    for pattern in patterns {
        if !vms.iter().any(|vm| pattern.matches(&vm.name)) {
            return Err(unknown(pattern));
        }
    }
    let meant =
        |vm: &&VmStatus| patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(&vm.name));
    let vms: Vec<_> = vms.iter().filter(meant).collect();
    if json { output::json(&Vms { vms }) } else { vm_table(&vms) }
}

/// `vm show`.
pub async fn show(config: &ClientConfig, name: Name, json: bool) -> Result<()> {
    let vms = fetch(config).await?.vms;
    let found = vms.iter().find(|vm| vm.name == name);
    let vm = found.ok_or_else(|| unknown(&name.into()))?;
    if json {
        return output::json(&One { vm });
    }
    let guest = vm.guest_agent.map(|answers| if answers { "answers" } else { "silent" });
    for (label, value) in [
        ("VM", vm.name.to_string()),
        ("deployment", vm.deployment.to_string()),
        ("host", vm.host.to_string()),
        ("state", vm.state.map_or("not reported", state).to_owned()),
        ("incarnation", output::known(vm.incarnation)),
        ("memory", output::known(vm.memory_mb.map(|memory| format!("{memory} MiB")))),
        ("CPUs", output::known(vm.cpus)),
        ("accelerator", output::known(vm.accelerator.as_ref())),
        ("RAM", output::known(vm.ram_way.as_ref())),
        ("colouring", output::known(vm.colouring)),
        ("guest agent", output::known(guest)),
    ] {
        output::line(&format!("{label:<12} {value}"))?;
    }
    match &vm.colouring_note {
        Some(note) => output::line(&format!("{:<12} not coloured as it would rather be: {note}", "")),
        None => Ok(()),
    }
}

/// `vm start` and the like: a line for each VM, and an error unless all went well.
pub async fn control(config: &ClientConfig, verb: Verb, patterns: Vec<Pattern>, json: bool) -> Result<()> {
    let vms = patterns.try_into().map_err(|error: BadPatterns| CliError::usage(error.to_string()))?;
    let request = Request::Control(ControlRequest { verb, vms });
    let control = match progress::ask(config, &request).await? {
        (_, Reply::Controlled(report)) => report,
        (exchange, other) => return Err(exchange.unexpected(&other)),
    };
    let failed = failure(&control.vms);
    if json {
        output::json(&Done { control })?;
    } else {
        table(&control.vms)?;
    }
    let Some((kind, problems)) = failed else { return Ok(()) };
    Err(CliError::new(kind, format!("`vm {verb}` was not carried out everywhere: {problems}")))
}

/// A line for each VM.
pub fn table(vms: &[ControlledVm]) -> Result<()> {
    let row = |vm: &ControlledVm| {
        let result = match (&vm.problem, vm.state, vm.changed) {
            (Some(_), _, _) => "failed".to_owned(),
            (None, Some(now), true) => state(now).to_owned(),
            (None, Some(now), false) => format!("already {}", state(now)),
            (None, None, _) => "-".to_owned(),
        };
        let words = vm.problem.as_ref().or(vm.note.as_ref()).cloned().unwrap_or_default();
        vec![vm.vm.to_string(), vm.host.to_string(), result, output::ms(Some(vm.ms)), words]
    };
    output::table(&["VM", "HOST", "RESULT", "ms", ""], vms.iter().map(row))
}

/// All that went wrong, and what it counts for; `None` when nothing did.
pub fn failure(vms: &[ControlledVm]) -> Option<(Kind, String)> {
    let failed: Vec<_> = vms.iter().filter(|vm| vm.problem.is_some()).collect();
    let words = |vm: &&ControlledVm| Some(format!("{} on {}: {}", vm.vm, vm.host, vm.problem.as_ref()?));
    let problems: Vec<_> = failed.iter().filter_map(words).collect();
    let kind = if failed.iter().all(|vm| vm.timed_out) { Kind::TimedOut } else { Kind::Refused };
    (!problems.is_empty()).then(|| (kind, problems.join("; ")))
}

fn unknown(pattern: &Pattern) -> CliError {
    let text = format!("no VM is called {pattern}; `unasnap vm list` shows all of them");
    CliError::new(Kind::NotFound, text)
}

//! Where each VM of a deployment goes: what the hosts have left, and what they have already.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::timeout;
use unasnap_protocol::household::Outcome;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{HostStatus, Place, Request, StatusReport, VmStatus};
use unasnap_protocol::placement::{Algorithm, Need, Plan, Room, Want, place};

use super::super::household::report;
use super::super::output;
use super::file::{DeploymentFile, Wanted};
use crate::client::Exchange;
use crate::config::ClientConfig;
use crate::failure::{CliError, Kind, Result};

/// For all hosts to tell of their bases.
const TELLING: Duration = Duration::from_secs(60);

/// Hosts, and the bases that VMs can be made on there.
pub type Bases = BTreeSet<(Name, Name)>;

/// What the hosts say; whoever does not say it is warned of.
pub async fn bases(config: &ClientConfig, warnings: &mut Vec<String>) -> Result<Bases> {
    let mut exchange = Exchange::begin(config, &Request::Bases(None)).await?;
    let Ok(answer) = timeout(TELLING, exchange.answer()).await else {
        let hosts = exchange.waits_for();
        let text = format!(
            "these hosts have not told of their bases in {} s: {hosts}; look at the logs of their agents",
            TELLING.as_secs()
        );
        return Err(CliError::new(Kind::TimedOut, text));
    };
    let told = report(&exchange, answer?)?;
    let mut bases = Bases::new();
    for report in told.hosts {
        match report.outcome {
            Ok(Outcome::Bases(found)) => {
                let usable = found.into_iter().filter(|base| base.problem.is_none());
                bases.extend(usable.map(|base| (report.host.clone(), base.name)));
            }
            Ok(_) => {}
            Err(error) => {
                warnings.push(format!("{} does not tell of its bases: {}", report.host, error.text))
            }
        }
    }
    Ok(bases)
}

/// What each connected host has left. Whoever lacks a base that it can read has it as good as preloaded.
pub fn rooms(status: &StatusReport, bases: &Bases, sources: &BTreeMap<Name, String>) -> Vec<Room> {
    let room = |host: &HostStatus| {
        let here = || status.vms.iter().filter(|vm| vm.host == host.name);
        let cores = here().filter_map(|vm| vm.cpus).fold(0, u32::saturating_add);
        let memory_mb = here().filter_map(|vm| vm.memory_mb).map(u64::from).sum::<u64>();
        let preloaded = bases.iter().filter(|(of, _)| *of == host.name).map(|(_, base)| base);
        Room {
            host: host.name.clone(),
            cores: host.cores.unwrap_or(0).saturating_sub(cores),
            memory_mb: host.memory_mb.unwrap_or(0).saturating_sub(memory_mb),
            disk_bytes: host.free_bytes.unwrap_or(0),
            vms: u32::try_from(here().count()).unwrap_or(u32::MAX),
            bases: preloaded.chain(sources.keys()).cloned().collect(),
        }
    };
    status.hosts.iter().filter(|host| host.connected).map(room).collect()
}

/// Places for those that are not there; the others stay where they are.
pub fn planned(
    file: &DeploymentFile,
    wanted: &[Wanted],
    status: &StatusReport,
    rooms: &[Room],
    seed: u64,
) -> Result<Plan> {
    let known = |one: &Wanted| status.vms.iter().find(|known| known.name == one.vm.name);
    let want = |one: &Wanted| {
        let need = Need { cores: one.vm.cpus, memory_mb: one.vm.memory_mb, disk_bytes: one.disk_bytes };
        Want { vm: one.vm.name.clone(), need, base: one.vm.base.clone() }
    };
    let wants: Vec<_> = wanted.iter().filter(|one| known(one).is_none()).map(want).collect();
    let there: Vec<_> = wanted.iter().filter_map(|one| Some((one, known(one)?))).collect();
    let begun = (file.algorithm == Algorithm::Singleton && !there.is_empty()).then(|| begun(rooms, &there));
    let mut plan = if wants.is_empty() {
        Plan { places: Vec::new(), warnings: Vec::new() }
    } else {
        let plan = place(file.algorithm, begun.as_deref().unwrap_or(rooms), &wants, seed);
        plan.map_err(|error| CliError::new(Kind::Refused, error.to_string()))?
    };
    for (one, known) in there {
        plan.places.push(Place { vm: known.name.clone(), host: known.host.clone() });
        let (cores, memory_mb) = (known.cpus, known.memory_mb.map(u64::from));
        if cores.is_some_and(|cores| cores != one.vm.cpus)
            || memory_mb.is_some_and(|mb| mb != one.vm.memory_mb)
        {
            plan.warnings.push(format!(
                "{} is there already and stays as it is: {} cores and {} MiB, and not {} and {}",
                known.name,
                output::known(cores),
                output::known(memory_mb),
                one.vm.cpus,
                one.vm.memory_mb
            ));
        }
    }
    Ok(plan)
}

/// Where VMs of the file are: `singleton` goes on there, and they are no strangers to it.
fn begun(rooms: &[Room], there: &[(&Wanted, &VmStatus)]) -> Vec<Room> {
    let own = |room: &Room| there.iter().filter(|(_, vm)| vm.host == room.host).map(|_| 1).sum::<u32>();
    let rooms = rooms.iter().filter(|room| own(room) > 0);
    rooms.map(|room| Room { vms: room.vms.saturating_sub(own(room)), ..room.clone() }).collect()
}

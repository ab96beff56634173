//! `unasnap deploy`: all VMs of a deployment, from a file to running guests.
//!
//! Nothing is remembered but what the hosts have: who runs it again after a failure goes on where it ended, since a VM that
//! is there stays where it is and as it is.
//!
//! | module | what is in it |
//! |---|---|
//! | `file` | what is wanted |
//! | `plan` | where it goes, by what the hosts have |
//! | `course` | how far each VM is, and what it needs next |
//! | `work` | lets it have that |

mod course;
mod file;
mod plan;
mod work;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use tokio::time::Instant;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Place, StatusReport, VmStatus};
use unasnap_protocol::placement::Algorithm;

use self::course::{Member, Stage, State};
use self::file::{DeploymentFile, Wanted};
use self::plan::{Bases, bases, planned, rooms};
use self::work::Work;
use super::{output, status};
use crate::config::ClientConfig;
use crate::failure::{CliError, Kind, Result};

/// Shown at the end of `deploy --help`.
pub const EXAMPLE: &str = r#"A file:
  deployment = "shop"
  algorithm = "round-robin"   # or random, first-fit, first-fit-decreasing, best-fit, sorting, singleton
  [[vms]]
  name = "web"
  count = 4                   # web-1 to web-4
  base = "debian-12"          # `unasnap disk list` shows what there is
  profile = "small"           # or medium, large, extralarge; or cores and memory_mb
  [[vms.nic]]
  bridge = "br0"
  addresses = ["10.0.1.11"]   # of web-1; those of the others count up
All keys, and what the states mean: docs/operating.md, "Deployments from a file""#;

/// So many VMs are listed with a reason.
const LISTED_VMS: usize = 8;

/// `deploy`.
#[derive(Debug, Args)]
pub struct Deploy {
    /// What is wanted, as TOML
    file: PathBuf,
    /// Show where each VM would go, and do nothing
    #[arg(long, conflicts_with = "finish")]
    plan: bool,
    /// End all VMs of the file for good, with their disks
    #[arg(long)]
    finish: bool,
    /// For the algorithm `random`: the same number gives the same places
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    seed: u64,
}

#[derive(Serialize)]
struct Report<'a> {
    deployment: &'a Name,
    algorithm: Algorithm,
    vms: Vec<Line>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Line {
    vm: Name,
    host: Name,
    state: State,
    /// Until that state.
    ms: f64,
    problem: Option<String>,
    states: Vec<Stage>,
}

/// Plans, makes, starts and waits; or ends.
pub async fn run(config: &ClientConfig, asked: Deploy, json: bool) -> Result<()> {
    let file = DeploymentFile::load(&asked.file)?;
    let wanted = file.wanted().map_err(|error| in_file(&asked, &error))?;
    let before = status::fetch(config).await?;
    may_begin(&file, &wanted, &before)?;
    let mut warnings = Vec::new();
    let (members, bases) = if asked.finish {
        (standing(&file, wanted, &before), Bases::new())
    } else {
        let bases = bases(config, &mut warnings).await?;
        let rooms = rooms(&before, &bases, &file.sources());
        let plan = planned(&file, &wanted, &before, &rooms, asked.seed)?;
        warnings.extend(plan.warnings);
        (members(&file, wanted, plan.places), bases)
    };
    for warning in &warnings {
        eprintln!("warning: {}", crate::failure::plain(warning));
    }
    let work = Work::new(config, members, bases, file.sources());
    let members = match (asked.plan, asked.finish) {
        (true, _) => work.members,
        (_, true) => work.finish().await,
        _ => work.deploy().await?,
    };
    show(&file, members, warnings, json)
}

fn in_file(asked: &Deploy, error: &CliError) -> CliError {
    CliError::usage(format!("{}: {error}", asked.file.display()))
}

/// Nothing is begun where nothing can come of it: a deployment that is paused, or a name that is taken in another one.
fn may_begin(file: &DeploymentFile, wanted: &[Wanted], status: &StatusReport) -> Result<()> {
    let DeploymentFile { deployment, .. } = file;
    if let Some(paused) = status.paused.iter().find(|paused| paused.deployment == *deployment) {
        let text = format!(
            "deployment {deployment} is paused in {}; `unasnap resume {deployment}` first",
            paused.snapshot
        );
        return Err(CliError::new(Kind::Refused, text));
    }
    let of_another = status
        .vms
        .iter()
        .find(|known| known.deployment != *deployment && wanted.iter().any(|one| one.vm.name == known.name));
    match of_another {
        Some(other) => {
            let text = format!(
                "VM {} belongs to deployment {} already; choose another name. Nothing was done",
                other.name, other.deployment
            );
            Err(CliError::new(Kind::Refused, text))
        }
        None => Ok(()),
    }
}

fn members(file: &DeploymentFile, wanted: Vec<Wanted>, places: Vec<Place>) -> BTreeMap<Name, Member> {
    let (now, mut hosts) = (Instant::now(), BTreeMap::new());
    hosts.extend(places.into_iter().map(|place| (place.vm, place.host)));
    let member = |one: Wanted| {
        let host = hosts.remove(&one.vm.name)?;
        Some((one.vm.name.clone(), Member::new(one.vm, host, file.limits, now)))
    };
    wanted.into_iter().filter_map(member).collect()
}

/// Those that are there.
fn standing(file: &DeploymentFile, wanted: Vec<Wanted>, status: &StatusReport) -> BTreeMap<Name, Member> {
    let place = |vm: &VmStatus| Place { vm: vm.name.clone(), host: vm.host.clone() };
    members(file, wanted, status.vms.iter().map(place).collect())
}

fn show(
    file: &DeploymentFile,
    members: BTreeMap<Name, Member>,
    warnings: Vec<String>,
    json: bool,
) -> Result<()> {
    let failure = failure(&members);
    let line = |member: Member| {
        let states: Vec<_> = member.stages().collect();
        let (state, ms) = (member.state(), states.last().map_or(0.0, |stage| stage.ms));
        let problem = member.problem.map(|(_, why)| why);
        Line { vm: member.wanted.name, host: member.host, state, ms, problem, states }
    };
    let vms: Vec<_> = members.into_values().map(line).collect();
    if json {
        let algorithm = file.algorithm;
        output::json(&Report { deployment: &file.deployment, algorithm, vms, warnings })?;
    } else {
        let row = |line: &Line| {
            let why = line.problem.clone().unwrap_or_default();
            vec![
                line.vm.to_string(),
                line.host.to_string(),
                line.state.to_string(),
                output::ms(Some(line.ms)),
                why,
            ]
        };
        output::table(&["VM", "HOST", "STATE", "ms", ""], vms.iter().map(row))?;
    }
    failure.map_or(Ok(()), Err)
}

/// All that went wrong: each reason once, with those who have it.
fn failure(members: &BTreeMap<Name, Member>) -> Option<CliError> {
    let failed = || members.values().filter_map(|member| Some((member, member.problem.as_ref()?)));
    let (_, (kind, _)) = failed().next()?;
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (member, (_, why)) in failed() {
        reasons.entry(why).or_default().push(format!("{} on {}", member.wanted.name, member.host));
    }
    let reason = |(why, mut vms): (&str, Vec<String>)| {
        let more = vms.len().saturating_sub(LISTED_VMS);
        vms.truncate(LISTED_VMS);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{}{more}: {why}", vms.join(", "))
    };
    let text = format!(
        "{} of {} VMs failed: {}; the same command goes on with them",
        failed().count(),
        members.len(),
        reasons.into_iter().map(reason).collect::<Vec<_>>().join("; ")
    );
    let alike = failed().all(|(_, (other, _))| other == kind);
    Some(CliError::new(if alike { *kind } else { Kind::Refused }, text))
}

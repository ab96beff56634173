//! `unasnap disk`: read-only images of hosts, on which VMs are made.

use clap::Subcommand;
use serde::Serialize;
use unasnap_protocol::household::{Base, Outcome, Task};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::Request;

use super::household::{ask, ask_one, other_answer};
use super::output;
use crate::config::ClientConfig;
use crate::failure::{CliError, Kind, Result};

/// What is done to bases.
#[derive(Subcommand)]
pub enum Disk {
    /// Register an image of a host, so that VMs can be made on it: it becomes read-only
    Preload {
        /// Where the image is, on the host
        path: String,
        /// The host
        #[arg(long)]
        host: Name,
        /// How it is called from now on [default: as its file]
        #[arg(long)]
        name: Option<Name>,
    },
    /// List them, with the VMs that have them below a disk
    List {
        /// Only of this host
        #[arg(long)]
        host: Option<Name>,
    },
    /// Unregister one that no VM uses; its file stays
    Remove {
        /// The base
        base: Name,
        /// The host
        #[arg(long)]
        host: Name,
    },
}

#[derive(Serialize)]
struct Listed {
    disks: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    host: Name,
    #[serde(flatten)]
    base: Base,
}

#[derive(Serialize)]
struct One {
    disk: Line,
}

#[derive(Serialize)]
struct Removed<'a> {
    removed: &'a Name,
    host: &'a Name,
}

/// `disk`.
pub async fn run(config: &ClientConfig, wanted: Disk, json: bool) -> Result<()> {
    match wanted {
        Disk::Preload { path, host, name } => preload(config, path, host, name, json).await,
        Disk::List { host } => list(config, host, json).await,
        Disk::Remove { base, host } => {
            ask_one(config, Some(host.clone()), Task::Unregister(base.clone())).await?.outcome?;
            if json {
                return output::json(&Removed { removed: &base, host: &host });
            }
            output::line(&format!("{base} is no base on {host} any more; its file stays"))
        }
    }
}

async fn preload(
    config: &ClientConfig,
    path: String,
    host: Name,
    name: Option<Name>,
    json: bool,
) -> Result<()> {
    let report = ask_one(config, Some(host), Task::Preload { path, name }).await?;
    let (host, ms) = (report.host, report.ms);
    let Outcome::Preloaded(base) = report.outcome? else {
        return Err(other_answer(&host));
    };
    if json {
        return output::json(&One { disk: Line { host, base } });
    }
    let size = output::bytes(Some(base.virtual_bytes));
    output::line(&format!("{} on {host}: {} disk of {size}, {ms:.0} ms", base.name, base.format))?;
    output::line(&format!("{}  {}", base.blake3, base.path))
}

/// One that cannot be used is named, and ends the script; so does a host that does not answer.
async fn list(config: &ClientConfig, host: Option<Name>, json: bool) -> Result<()> {
    let (mut disks, mut problems) = (Vec::new(), Vec::new());
    for report in ask(config, &Request::Bases(host)).await?.hosts {
        match report.outcome {
            Ok(Outcome::Bases(bases)) => {
                disks.extend(bases.into_iter().map(|base| Line { host: report.host.clone(), base }));
            }
            Ok(_) => problems.push(other_answer(&report.host).to_string()),
            Err(error) => problems.push(error.text),
        }
    }
    let of_base =
        |line: &Line| Some(format!("{} on {}: {}", line.base.name, line.host, line.base.problem.as_ref()?));
    problems.extend(disks.iter().filter_map(of_base));
    if json {
        output::json(&Listed { disks })?
    } else {
        table(&disks)?
    }
    if problems.is_empty() { Ok(()) } else { Err(CliError::new(Kind::Refused, problems.join("; "))) }
}

fn table(disks: &[Line]) -> Result<()> {
    let row = |Line { host, base }: &Line| {
        let users = base.users.iter().map(Name::as_str).collect::<Vec<_>>().join(" ");
        vec![
            base.name.to_string(),
            host.to_string(),
            base.format.clone(),
            output::bytes(Some(base.virtual_bytes)),
            output::bytes(Some(base.bytes)),
            base.blake3.chars().take(12).collect(),
            base.path.clone(),
            users,
        ]
    };
    let header = ["BASE", "HOST", "FORMAT", "DISK", "FILE", "DIGEST", "PATH", "USED BY"];
    output::table(&header, disks.iter().map(row))
}

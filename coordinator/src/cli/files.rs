//! `unasnap files`: the tree of snapshots, and what a restore needs.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use unasnap_protocol::files::{FileReport, FileRole, SnapshotNode, StoreKind, Totals};
use unasnap_protocol::household::{Outcome, Task};
use unasnap_protocol::name::{BadName, Name};

use super::household::{ask_one, other_answer};
use super::output;
use super::status::fetch;
use crate::config::ClientConfig;
use crate::failure::{CliError, Kind, Result};

#[derive(Serialize)]
struct Many<'a> {
    vms: &'a [FileReport],
    totals: Totals,
}

/// Of VMs of the cluster, at a global snapshot or as they are now.
///
/// # Errors
/// There are no such VMs, or files that are needed are missing.
pub async fn of_cluster(
    config: &ClientConfig,
    mut vms: Vec<Name>,
    deployment: Option<Name>,
    snapshot: Option<String>,
    json: bool,
) -> Result<()> {
    let usage = |error: BadName| CliError::usage(error.to_string());
    let snapshot = snapshot.map(|id| Name::new(&id)).transpose().map_err(usage)?;
    if let Some(deployment) = deployment {
        let known = fetch(config).await?.vms;
        vms = known.into_iter().filter(|vm| vm.deployment == deployment).map(|vm| vm.name).collect();
        if vms.is_empty() {
            let text =
                format!("no VM belongs to a deployment {deployment}; `unasnap vm list` shows all of them");
            return Err(CliError::new(Kind::NotFound, text));
        }
    }
    let mut by_host: BTreeMap<Name, Vec<FileReport>> = BTreeMap::new();
    for vm in vms {
        let report = ask_one(config, None, Task::Files { vm, snapshot: snapshot.clone() }).await?;
        let Outcome::Files(files) = report.outcome? else {
            return Err(other_answer(&report.host));
        };
        by_host.entry(report.host).or_default().push(*files);
    }
    // A base that lies on several hosts is several files.
    let sums = by_host.values().map(|reports| unasnap_files::sum(reports));
    let totals = sums.fold(Totals::default(), plus);
    let reports: Vec<_> = by_host.into_values().flatten().collect();
    print(&reports, totals, json)
}

fn plus(one: Totals, other: Totals) -> Totals {
    Totals {
        files: one.files + other.files,
        bytes: one.bytes.saturating_add(other.bytes),
        needed_files: one.needed_files + other.needed_files,
        needed_bytes: one.needed_bytes.saturating_add(other.needed_bytes),
        needed_without_base_bytes: one
            .needed_without_base_bytes
            .saturating_add(other.needed_without_base_bytes),
        missing_files: one.missing_files + other.missing_files,
    }
}

/// Prints reports, with their sum if there are several.
///
/// # Errors
/// Files that are needed are missing.
pub fn print(reports: &[FileReport], totals: Totals, json: bool) -> Result<()> {
    match reports {
        [report] if json => output::json(report)?,
        [report] => show(report)?,
        _ if json => output::json(&Many { vms: reports, totals })?,
        _ => {
            for report in reports {
                show(report)?;
                output::line("")?;
            }
            output::line(&format!("{} VMs; a file that several share counts once", reports.len()))?;
            show_totals(&totals)?;
        }
    }
    match totals.missing_files {
        0 => Ok(()),
        count => {
            let text =
                format!("needed files are missing: {count}; bring them back, or choose another snapshot");
            Err(CliError::new(Kind::NotFound, text))
        }
    }
}

fn show(report: &FileReport) -> Result<()> {
    let kind = match report.kind {
        StoreKind::Virtualbox => "VirtualBox",
        StoreKind::Qcow2 => "qcow2",
    };
    let target = report.snapshots.iter().find(|snapshot| Some(&snapshot.id) == report.target.as_ref());
    let target = target.map_or_else(
        || "the current state".to_owned(),
        |snapshot| format!("snapshot {} ({})", snapshot.name, snapshot.id),
    );
    for text in [
        format!("VM       {} ({kind})", report.vm),
        format!("folder   {}", report.folder),
        format!("target   {target}"),
    ] {
        output::line(&one_line(&text))?;
    }
    output::line("")?;
    for line in tree(report) {
        output::line(&one_line(&line))?;
    }
    output::line("")?;
    output::table(&["", "ROLE", "SIZE", "FILE", "WHY"], rows(report))?;
    output::line("")?;
    show_totals(&report.totals)
}

fn show_totals(totals: &Totals) -> Result<()> {
    let size = |bytes| output::bytes(Some(bytes));
    output::line(&format!("all      {} files, {}", totals.files, size(totals.bytes)))?;
    output::line(&format!(
        "needed   {} files, {}; {} where the base disks are already",
        totals.needed_files,
        size(totals.needed_bytes),
        size(totals.needed_without_base_bytes)
    ))?;
    match totals.missing_files {
        0 => Ok(()),
        count => output::line(&format!("missing  {count} files")),
    }
}

fn rows(report: &FileReport) -> impl Iterator<Item = Vec<String>> {
    let needed = report.needed.iter().map(move |file| {
        let size = output::bytes(Some(file.bytes));
        let why = match (&file.parent, file.role) {
            (None, _) => String::new(),
            (Some(image), FileRole::DiskData) => format!("the data of {image}"),
            (Some(parent), _) => format!("differences from {parent}"),
        };
        vec!["needed".to_owned(), file.role.label().to_owned(), size, file.path.clone(), why]
    });
    let lists = [("MISSING", &report.missing), ("left out", &report.not_needed)];
    let others = lists.into_iter().flat_map(|(state, files)| {
        files.iter().map(move |file| {
            let size = output::bytes(file.bytes);
            vec![state.to_owned(), file.role.label().to_owned(), size, file.path.clone(), file.why.clone()]
        })
    });
    needed.chain(others)
}

/// A line break in a name would look like another line of ours.
fn one_line(text: &str) -> String {
    text.replace('\n', "\\u{a}")
}

/// A line of the tree that waits to be drawn.
enum Branch<'a> {
    Snapshot(&'a SnapshotNode),
    Current,
}

/// The tree of snapshots with the current state in it. Without recursion: it may be as deep as there are snapshots.
fn tree(report: &FileReport) -> Vec<String> {
    let mut children: HashMap<Option<&str>, Vec<Branch<'_>>> = HashMap::new();
    for snapshot in &report.snapshots {
        children.entry(snapshot.parent.as_deref()).or_default().push(Branch::Snapshot(snapshot));
    }
    children.entry(report.current.as_deref()).or_default().push(Branch::Current);

    let mut lines = Vec::new();
    let mut waiting = Vec::new();
    let begin = |waiting: &mut Vec<_>, branches: Vec<_>, indent: &str| {
        let last = branches.len();
        let placed = branches.into_iter().enumerate();
        waiting.extend(placed.map(|(at, branch)| (branch, indent.to_owned(), at + 1 == last)).rev());
    };
    begin(&mut waiting, children.remove(&None).unwrap_or_default(), "");
    while let Some((branch, indent, last)) = waiting.pop() {
        let (twig, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        match branch {
            Branch::Current => {
                let mark = if report.target.is_none() { "  <- target" } else { "" };
                lines.push(format!("{indent}{twig}current state{mark}"));
            }
            Branch::Snapshot(snapshot) => {
                let taken = snapshot.taken.as_deref().unwrap_or("");
                let ram = if snapshot.ram { ", with RAM" } else { "" };
                let mark = if Some(&snapshot.id) == report.target.as_ref() { "  <- target" } else { "" };
                lines.push(format!("{indent}{twig}{}  {taken}{ram}{mark}", snapshot.name));
                let under = children.remove(&Some(snapshot.id.as_str())).unwrap_or_default();
                begin(&mut waiting, under, &format!("{indent}{below}"));
            }
        }
    }
    lines
}

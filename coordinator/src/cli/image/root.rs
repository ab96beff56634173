//! Which file system of a disk is the root of a system.

use super::disk::{Content, Disk, Part};
use super::ext::{Ext, Kind};
use crate::failure::{CliError, Result};

/// Either is enough: the second is the first where `/lib` is a link.
const SYSTEMD: [&str; 2] = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"];

/// The first ext file system, to be looked into.
///
/// # Errors
/// There is none, or it has no `/etc`.
pub async fn first<'a>(disk: &Disk<'a>) -> Result<Ext<'a>> {
    let shown = disk.shown.display();
    let mut seen = Vec::new();
    for part in disk.parts()? {
        let content = disk.content(part)?;
        if content != Content::Ext {
            seen.push(words(part, content));
            continue;
        }
        let system = Ext::new(disk, part);
        if system.list("/").await?.iter().any(|name| name == "etc") {
            return Ok(system);
        }
        return Err(CliError::usage(format!("{shown}: the first ext file system has no /etc")));
    }
    let seen = if seen.is_empty() { "no partition".to_owned() } else { seen.join(", ") };
    Err(CliError::usage(format!(
        "{shown} has no ext2, ext3 or ext4 file system that can be looked into: there is {seen}. Boot it in a VM to see what it is"
    )))
}

/// The only ext file system that has systemd, to be written into. A part that is damaged may be a second one, so it is an error.
///
/// # Errors
/// There is none, or there are several.
pub async fn only<'a>(disk: &Disk<'a>) -> Result<Ext<'a>> {
    let mut found = Vec::new();
    let mut seen = Vec::new();
    for part in disk.parts()? {
        let content = disk.content(part)?;
        let system = Ext::new(disk, part);
        if content == Content::Ext && has_systemd(&system).await? {
            found.push(system);
        } else {
            seen.push(words(part, content));
        }
    }
    match (found.len(), found.pop()) {
        (1, Some(system)) => Ok(system),
        (0, _) => {
            let text = format!(
                "there is no ext4 file system with systemd in it, only: {}. LVM, encrypted disks, btrfs and XFS \
                 cannot be written to from outside: install the package unasnap-guest in a guest that runs",
                if seen.is_empty() { "nothing".to_owned() } else { seen.join(", ") }
            );
            Err(CliError::usage(text))
        }
        (count, _) => Err(CliError::usage(format!("there are {count} systems in it; only one can be meant"))),
    }
}

async fn has_systemd(system: &Ext<'_>) -> Result<bool> {
    for path in SYSTEMD {
        if system.stat(path).await?.is_some_and(|stat| stat.kind == Kind::Regular) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What was passed by, and where.
fn words(Part { number, .. }: Part, content: Content) -> String {
    let holds = match content {
        Content::Ext => "ext4 without systemd",
        Content::Other(name) => name,
        Content::Unknown => "nothing that is known",
    };
    if number == 0 { holds.to_owned() } else { format!("{holds} in partition {number}") }
}

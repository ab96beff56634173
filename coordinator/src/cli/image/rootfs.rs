//! Finds the root file system of a raw image.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::ext4::{Ext4, Kind as FileKind};
use super::tool;
use crate::failure::{CliError, Result};

/// Of partition tables, whatever the disk's.
const SECTOR: u64 = 512;
/// `s_magic` of the superblock, from where the file system begins.
const MAGIC_AT: u64 = 1024 + 56;
const MAGIC: [u8; 2] = [0x53, 0xef];
/// Either is enough: the second is the first where `/lib` is a link.
const SYSTEMD: [&str; 2] = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"];

/// The one ext4 file system of `disk`, a file in `folder`, that has systemd.
///
/// # Errors
/// There is none, or there are several.
pub async fn find<'a>(folder: &'a Path, disk: &'a str) -> Result<Ext4<'a>> {
    let mut found = Vec::new();
    let mut seen = Vec::new();
    for offset in offsets(folder, disk).await? {
        if !is_ext(&folder.join(disk), offset) {
            seen.push(what_is_there(folder, disk, offset).await?);
            continue;
        }
        let system = Ext4::new(folder, disk, offset);
        let mut has_systemd = false;
        for path in SYSTEMD {
            has_systemd |= system.stat(path).await?.is_some_and(|stat| stat.kind == FileKind::Regular);
        }
        if has_systemd {
            found.push(system);
        } else {
            seen.push("ext4 without systemd".to_owned());
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

/// Where file systems may begin, bytes: the partitions, or the whole disk where there are none.
async fn offsets(folder: &Path, disk: &str) -> Result<Vec<u64>> {
    let arguments = ["--raw", "--noheadings", "--output", "START", disk];
    let listed = tool::output(folder, "partx", &arguments, tool::SHORT).await?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let starts = listed.lines().filter_map(|line| line.trim().parse::<u64>().ok()?.checked_mul(SECTOR));
    let starts: Vec<_> = starts.collect();
    Ok(if starts.is_empty() { vec![0] } else { starts })
}

fn is_ext(disk: &Path, offset: u64) -> bool {
    let mut magic = [0; 2];
    let read =
        File::open(disk).and_then(|file| file.read_exact_at(&mut magic, offset.saturating_add(MAGIC_AT)));
    read.is_ok() && magic == MAGIC
}

async fn what_is_there(folder: &Path, disk: &str, offset: u64) -> Result<String> {
    let offset = offset.to_string();
    let arguments = ["-p", "-O", &offset, "-s", "TYPE", "-o", "value", disk];
    let found = tool::output(folder, "blkid", &arguments, tool::SHORT).await?;
    let kind = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    Ok(if kind.is_empty() { "something unknown".to_owned() } else { kind })
}

//! Disk images that `unasnap image` looks into: partition tables, and the beginnings of what lies in the partitions.

use std::fs::{self, File};

use crate::debugfs::{self as talk, Kind};
use crate::disk::{Content, Disk, NAME};
use crate::files;

/// The first two bytes are how many MiB the disk is long, so that a small input may be a large disk; the others are what stands
/// on it, and after them it is empty.
pub fn disk(input: &[u8]) {
    let Some(([low, high], content)) = input.split_first_chunk() else { return };
    let length = u64::from(u16::from_le_bytes([*low, *high])) << 20;
    let length = length.max(content.len() as u64);
    let folder = files::folder();
    let path = folder.path().join(NAME);
    fs::write(&path, content).expect("a file in a new folder");
    File::options().write(true).open(&path).and_then(|file| file.set_len(length)).expect("it grows");
    let disk = Disk::open(folder.path(), &path).expect("it is a file");
    let parts = match disk.parts() {
        Ok(parts) => parts,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    for part in parts {
        let end = part.start.checked_add(part.length);
        assert!(end.is_some_and(|end| end <= length), "{part:?} of {length}");
        match disk.content(part) {
            // Whoever reads that file system begins with its superblock.
            Ok(Content::Ext) => assert!(part.length >= 2048, "{part:?}"),
            Ok(Content::Other(name)) => assert!(!name.is_empty()),
            Ok(Content::Unknown) => {}
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// What an image has `debugfs` say never becomes another command than the one that is meant.
pub fn debugfs(input: &[u8]) {
    let target = match talk::stat(input).kind {
        Kind::Link(target) => vec![target],
        _ => Vec::new(),
    };
    for path in talk::names(input).iter().chain(&target) {
        assert!(!matches!(path.as_str(), "." | "..") || target.contains(path));
        let Some(request) = talk::request("stat", path) else { continue };
        assert_eq!(request.split([' ', '\t', '"', '\n', ';']).collect::<Vec<_>>(), ["stat", path]);
    }
}

//! What is on a disk image: its partitions, and which of them hold an ext2/3/4 file system. Nothing of the image is mounted
//! or run; whatever it claims is checked against its length.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::failure::{CliError, Result};

/// A raw disk in a folder of ours. By an image's own name programs could understand an option or an offset.
pub const NAME: &str = "disk";
/// Of partition tables, bytes. Disks with sectors of 4096 bytes are not understood.
const SECTOR: u64 = 512;
/// Most partitions that are looked at, as many as a GPT usually has room for.
const MAX_PARTITIONS: u32 = 128;

/// A part of the image, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// 0 is the whole disk.
    pub number: u32,
    /// Where it begins.
    pub start: u64,
    /// How long it is.
    pub length: u64,
}

/// What a part holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// ext2, ext3 or ext4.
    Ext,
    /// Something else that is known, by its name.
    Other(&'static str),
    /// Nothing that is known.
    Unknown,
}

/// What is known by bytes at a fixed place.
const MARKS: [(u64, &[u8], &str); 7] = [
    (0, b"LUKS\xba\xbe", "encrypted (LUKS)"),
    (512, b"LABELONE", "LVM"),
    (0, b"XFSB", "XFS"),
    (0x1_0040, b"_BHRfS_M", "btrfs"),
    (4086, b"SWAPSPACE2", "swap space"),
    (54, b"FAT", "FAT"),
    (82, b"FAT32", "FAT"),
];

/// A raw disk that is open.
pub struct Disk<'a> {
    /// Where it lies, as [`NAME`].
    pub folder: &'a Path,
    /// The image that it was made of, for errors.
    pub shown: &'a Path,
    file: File,
    length: u64,
}

impl<'a> Disk<'a> {
    /// Opens the one in `folder`.
    pub fn open(folder: &'a Path, shown: &'a Path) -> Result<Self> {
        let cannot = |error| CliError::usage(format!("{} cannot be read: {error}", shown.display()));
        let path = folder.join(NAME);
        // Opening a pipe would wait for a writer.
        if !path.metadata().map_err(cannot)?.is_file() {
            return Err(CliError::usage(format!("{} is no regular file", shown.display())));
        }
        let file = File::open(path).map_err(cannot)?;
        let length = file.metadata().map_err(cannot)?.len();
        Ok(Self { folder, shown, file, length })
    }

    /// Its partitions; without a table, the disk as a whole.
    pub fn parts(&self) -> Result<Vec<Part>> {
        let whole = Part { number: 0, start: 0, length: self.length };
        if self.content(whole)? != Content::Unknown {
            return Ok(vec![whole]);
        }
        if self.bytes(510, 2)? != [0x55, 0xaa] {
            return Ok(vec![whole]);
        }
        let parts = if self.bytes(SECTOR, 8)? == b"EFI PART" { self.gpt()? } else { self.mbr()? };
        for Part { number, start, length } in &parts {
            let end = start.checked_add(*length);
            if *length == 0 || end.is_none_or(|end| end > self.length) {
                return Err(self.damaged(format!(
                    "partition {number} is {length} bytes at {start}, and the image ends at {}: it is truncated",
                    self.length
                )));
            }
        }
        Ok(parts)
    }

    fn gpt(&self) -> Result<Vec<Part>> {
        let head = self.bytes(SECTOR, 92)?;
        let (at, count, size) = (le64(&head, 72), le32(&head, 80), le32(&head, 84));
        if !(128..=4096).contains(&size) {
            return Err(self.damaged(format!("its GPT has entries of {size} bytes")));
        }
        let mut parts = Vec::new();
        for number in 1..=count.min(MAX_PARTITIONS) {
            let offset = u64::from(number - 1) * u64::from(size);
            let entry = self.bytes(at.saturating_mul(SECTOR).saturating_add(offset), 48)?;
            if entry[..16] == [0; 16] {
                continue;
            }
            let (first, last) = (le64(&entry, 32), le64(&entry, 40));
            let sectors = last.saturating_add(1).saturating_sub(first);
            let bytes = |sectors: u64| sectors.saturating_mul(SECTOR);
            parts.push(Part { number, start: bytes(first), length: bytes(sectors) });
        }
        Ok(parts)
    }

    /// Primary partitions, and logical ones: a chain of tables, each of which lies further back than the last.
    fn mbr(&self) -> Result<Vec<Part>> {
        let (mut parts, mut extended) = (Vec::new(), None);
        for (number, (kind, first, sectors)) in (1..).zip(self.entries(0)?) {
            match kind {
                0 => {}
                0x05 | 0x0f | 0x85 => extended = Some(u64::from(first)),
                _ => parts.push(part(number, first.into(), sectors)),
            }
        }
        let Some(outer) = extended else { return Ok(parts) };
        let mut table = outer;
        for number in 5..MAX_PARTITIONS {
            let [(kind, first, sectors), (next_kind, next, _), ..] = self.entries(table * SECTOR)?;
            if kind != 0 {
                parts.push(part(number, table + u64::from(first), sectors));
            }
            if next_kind == 0 {
                return Ok(parts);
            }
            if outer + u64::from(next) <= table {
                return Err(self.damaged("its logical partitions go in a circle"));
            }
            table = outer + u64::from(next);
        }
        Err(self.damaged("its logical partitions have no end"))
    }

    /// Kind, first sector and sectors of the four entries of the table at `at`.
    fn entries(&self, at: u64) -> Result<[(u8, u32, u32); 4]> {
        let table = self.bytes(at.saturating_add(446), 64)?;
        Ok([0, 16, 32, 48].map(|at| (table[at + 4], le32(&table, at + 8), le32(&table, at + 12))))
    }

    /// What a part holds. A file system that is longer than its part is an error.
    pub fn content(&self, part: Part) -> Result<Content> {
        let has = |at: u64, mark: &[u8]| {
            let inside = at + mark.len() as u64 <= part.length;
            Ok::<_, CliError>(inside && self.bytes(part.start + at, mark.len())? == mark)
        };
        for (at, mark, name) in MARKS {
            if has(at, mark)? {
                return Ok(Content::Other(name));
            }
        }
        if part.length < 2048 || !has(1024 + 56, &[0x53, 0xef])? {
            return Ok(Content::Unknown);
        }
        let superblock = self.bytes(part.start + 1024, 1024)?;
        let (blocks, shift, high) = (le32(&superblock, 4), le32(&superblock, 24), le32(&superblock, 0x150));
        // The upper half of the length counts only with the feature `64bit`.
        let high = if le32(&superblock, 96) & 0x80 == 0 { 0 } else { high };
        let blocks = u64::from(high) << 32 | u64::from(blocks);
        let length = (shift <= 6).then(|| blocks.checked_mul(1024 << shift)).flatten();
        match length {
            Some(length) if length <= part.length => Ok(Content::Ext),
            Some(length) => Err(self.damaged(format!(
                "a file system of {length} bytes begins at {}, where {} are left: it is truncated",
                part.start, part.length
            ))),
            None => Err(self.damaged("its file system has blocks of a size that cannot be")),
        }
    }

    fn bytes(&self, at: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        match self.file.read_exact_at(&mut bytes, at) {
            Ok(()) => Ok(bytes),
            // A position beyond what a file can have is refused as invalid.
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidInput) => {
                Err(self.damaged(format!("it ends before byte {}", at.saturating_add(length as u64))))
            }
            Err(error) => Err(CliError::usage(format!("{} cannot be read: {error}", self.shown.display()))),
        }
    }

    fn damaged(&self, what: impl AsRef<str>) -> CliError {
        CliError::usage(format!("{} is no whole disk image: {}", self.shown.display(), what.as_ref()))
    }
}

fn part(number: u32, first: u64, sectors: u32) -> Part {
    Part { number, start: first * SECTOR, length: u64::from(sectors) * SECTOR }
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at + 4)) << 32 | u64::from(le32(bytes, at))
}

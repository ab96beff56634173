//! Single words of a guest's RAM, through `/proc/PID/mem` of its QEMU: it works for every kind of memory backend, since
//! QEMU maps each of them, also the private one of a restored VM.
//!
//! Only the RAM block is reached. Guest-physical addresses are those of the `pc` machine: RAM lies in one piece up to
//! 3.5 GiB; of more than that, the first 3 GiB stay below the PCI hole and the rest begins at 4 GiB (`pc_init1`).

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::super::process::Process;
use super::super::{GuestRam, HypervisorError};

const GIB: u64 = 1 << 30;
/// From this size on, RAM is split.
const SPLIT_FROM: u64 = 7 * GIB / 2;
/// What then stays below the PCI hole.
const BELOW: u64 = 3 * GIB;
/// Where the rest begins.
const ABOVE: u64 = 4 * GIB;

/// RAM of one QEMU process.
#[derive(Debug)]
pub(super) struct QemuRam {
    memory: File,
    /// Address of the RAM block in the process.
    base: u64,
    size: u64,
}

impl QemuRam {
    /// Finds the RAM block of `size` bytes among the process's mappings.
    pub(super) fn open(process: Process, size: u64) -> Result<Self, HypervisorError> {
        let file = |name: &str| PathBuf::from(format!("/proc/{}/{name}", process.pid));
        let (maps, mem) = (file("maps"), file("mem"));
        let memory = OpenOptions::new().read(true).write(true).open(&mem);
        let memory = memory.map_err(HypervisorError::file("open", &mem))?;
        let text = std::fs::read_to_string(&maps).map_err(HypervisorError::file("read", &maps))?;
        let base = block(&text, size).map_err(HypervisorError::file("find the RAM in", &maps))?;
        // Both files may be another process's if this one has ended.
        if !process.is_alive() {
            return Err(HypervisorError::file("read", &maps)(io::ErrorKind::NotFound.into()));
        }
        Ok(Self { memory, base, size })
    }

    /// Address in the process of a range of guest-physical memory.
    fn translate(&self, at: u64, length: usize) -> io::Result<u64> {
        let offset = offset(at, length, self.size).ok_or_else(|| {
            let what = format!("{length} bytes at {at:#x} are not RAM of a VM that has {} bytes", self.size);
            io::Error::new(io::ErrorKind::InvalidInput, what)
        })?;
        Ok(self.base + offset)
    }
}

impl GuestRam for QemuRam {
    fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.memory.read_exact_at(bytes, self.translate(at, bytes.len())?)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.memory.write_all_at(bytes, self.translate(at, bytes.len())?)
    }
}

/// Offset within the RAM block; `None` unless all of the range is RAM, in one piece.
fn offset(at: u64, length: usize, size: u64) -> Option<u64> {
    let end = at.checked_add(u64::try_from(length).ok()?)?;
    let low = if size >= SPLIT_FROM { BELOW } else { size };
    let high = ABOVE..ABOVE.checked_add(size - low)?;
    if end <= low {
        Some(at)
    } else if at >= high.start && end <= high.end {
        Some(at - ABOVE + low)
    } else {
        None
    }
}

/// One line of `/proc/PID/maps` (proc_pid_maps(5)), as far as it matters.
#[derive(Debug, PartialEq, Eq)]
struct Mapping<'a> {
    addresses: Range<u64>,
    writable: bool,
    offset: u64,
    /// Device, inode and path; memory that is no file's has inode 0.
    file: (&'a str, u64, &'a str),
}

fn mapping(line: &str) -> Option<Mapping<'_>> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
    let writable = fields.next()?.starts_with("rw");
    let offset = hexadecimal(fields.next()?)?;
    let (device, inode) = (fields.next()?, fields.next()?.parse().ok()?);
    let path = fields.next().unwrap_or_default().trim_start();
    Some(Mapping {
        addresses: hexadecimal(start)?..hexadecimal(end)?,
        writable,
        offset,
        file: (device, inode, path),
    })
}

/// Address of the only writable mapping of a whole file of `size` bytes: memfd or file, RAM is nothing else, and nothing
/// else that QEMU maps is as large. The kernel may show it in several pieces.
fn block(maps: &str, size: u64) -> io::Result<u64> {
    let mut blocks = Vec::new();
    let mut begun: Option<Mapping<'_>> = None;
    for found in maps.lines().filter_map(mapping).filter(|found| found.writable && found.file.1 != 0) {
        begun = match begun {
            Some(whole) if continues(&whole, &found) => {
                Some(Mapping { addresses: whole.addresses.start..found.addresses.end, ..whole })
            }
            other => {
                blocks.extend(other);
                Some(found)
            }
        };
    }
    blocks.extend(begun);
    blocks.retain(|block| block.offset == 0 && block.addresses.end - block.addresses.start == size);
    match blocks.as_slice() {
        [only] => Ok(only.addresses.start),
        found => {
            let what = format!("{} mappings of {size} bytes where one was expected", found.len());
            Err(io::Error::new(io::ErrorKind::NotFound, what))
        }
    }
}

fn continues(whole: &Mapping<'_>, next: &Mapping<'_>) -> bool {
    let length = whole.addresses.end - whole.addresses.start;
    whole.file == next.file
        && whole.addresses.end == next.addresses.start
        && whole.offset + length == next.offset
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    const MAPS: &str = "\
55d0c0000000-55d0c0400000 r-xp 00000000 fe:01 1311 /usr/bin/qemu-system-x86_64
7f0000000000-7f0008000000 rw-p 00000000 00:00 0
7f1000000000-7f1004000000 rw-s 00000000 00:01 77 /memfd:memory-backend-memfd (deleted)
7f1004000000-7f1008000000 rw-s 04000000 00:01 77 /memfd:memory-backend-memfd (deleted)
7f1008000000-7f1008001000 ---p 00000000 00:00 0
7f2000000000-7f2004000000 rw-p 00000000 fe:01 42 /a folder/ram
7f3000000000-7f3008000000 r--s 00000000 fe:01 43 /read only
";

    #[test]
    fn ram_is_the_whole_file_of_its_size_even_in_pieces() {
        assert_eq!(block(MAPS, 128 * MIB).unwrap(), 0x7f10_0000_0000);
        assert_eq!(block(MAPS, 64 * MIB).unwrap(), 0x7f20_0000_0000);
        assert!(block(MAPS, 96 * MIB).is_err());
        assert!(block(&format!("{MAPS}{MAPS}"), 128 * MIB).is_err(), "two of them");
        assert_eq!(mapping(MAPS.lines().nth(5).unwrap()).unwrap().file, ("fe:01", 42, "/a folder/ram"));
        assert_eq!(mapping("nonsense"), None);
    }

    #[test]
    fn only_ram_has_an_offset() {
        let small = 128 * MIB;
        assert_eq!(offset(0, 16, small), Some(0));
        assert_eq!(offset(small - 16, 16, small), Some(small - 16));
        for (at, length) in [(small - 15, 16), (small, 1), (ABOVE, 16), (u64::MAX - 3, 16), (u64::MAX, 0)] {
            assert_eq!(offset(at, length, small), None, "{at:#x}");
        }
    }

    #[test]
    fn large_ram_is_split_around_the_hole() {
        let just_below = SPLIT_FROM - MIB;
        assert_eq!(offset(BELOW, 16, just_below), Some(BELOW));
        assert_eq!(offset(ABOVE, 16, just_below), None);
        let large = 6 * GIB;
        assert_eq!(offset(BELOW - 16, 16, large), Some(BELOW - 16));
        assert_eq!(offset(BELOW - 8, 16, large), None, "it would run into the hole");
        assert_eq!(offset(BELOW, 16, large), None, "in the hole");
        assert_eq!(offset(ABOVE - 8, 16, large), None);
        assert_eq!(offset(ABOVE, 16, large), Some(BELOW));
        assert_eq!(offset(ABOVE + 3 * GIB - 16, 16, large), Some(large - 16));
        assert_eq!(offset(ABOVE + 3 * GIB - 8, 16, large), None);
    }

    #[test]
    fn a_process_is_read_and_written() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * MIB).unwrap();
        // SAFETY: a new mapping at an address of the kernel's choice; the test's process ends with it.
        let mapped = unsafe {
            nix::sys::mman::mmap(
                None,
                std::num::NonZeroUsize::new(64 << 20).unwrap(),
                nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_WRITE,
                nix::sys::mman::MapFlags::MAP_PRIVATE,
                &file,
                0,
            )
        };
        let base = mapped.unwrap().as_ptr() as u64;
        let ram = QemuRam::open(Process::of(std::process::id()).unwrap(), 64 * MIB).unwrap();
        assert_eq!(ram.base, base);
        ram.write(4096, b"a word..").unwrap();
        let mut bytes = [0; 8];
        ram.read(4096, &mut bytes).unwrap();
        assert_eq!(&bytes, b"a word..");
        assert!(ram.write(64 * MIB - 4, b"a word..").is_err());
        let mut stored = [0; 8];
        file.read_exact_at(&mut stored, 4096).unwrap();
        assert_eq!(stored, [0; 8], "a private file is not changed");
    }
}

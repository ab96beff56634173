//! A VM's RAM from outside: QEMU keeps it in a memfd, which `/proc/PID/fd` lets its owner open.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::unistd::{Whence, lseek64};

use super::super::HypervisorError;
use super::process::Process;

/// What `readlink` says of the descriptor.
const LINK: &str = "/memfd:memory-backend-memfd (deleted)";
/// Copied at a time: small enough to stay in the processor's cache between the read and the write.
const CHUNK: usize = 256 * 1024;
/// Unit in which holes are kept.
const PAGE: usize = 4096;
/// A page to compare with: comparing slices is one of the fastest things a processor does.
static ZEROS: [u8; PAGE] = [0; PAGE];
/// More threads than this do not make a copy faster: memory is the limit.
const MAX_THREADS: usize = 4;

/// Copies the RAM of a stopped VM into a new file; pages of zeros become holes.
pub(super) async fn save(process: Process, to: &Path) -> Result<(), HypervisorError> {
    // Made before anything is waited for: once this future is dropped, no file appears any more.
    let file = OpenOptions::new().write(true).create_new(true).open(to);
    let file = file.map_err(HypervisorError::file("create", to))?;
    let copy = move || {
        let ram = open(process)?;
        file.set_len(ram.metadata()?.len())?;
        copy_data(&ram, &file)
    };
    blocking(copy).await.map_err(HypervisorError::file("copy the RAM of a VM to", to))
}

/// Fills the untouched RAM of a VM that has not begun to run.
pub(super) async fn load(process: Process, from: &Path) -> Result<(), HypervisorError> {
    let source = from.to_owned();
    let copy = move || {
        let (file, ram) = (File::open(source)?, open(process)?);
        let (saved, present) = (file.metadata()?.len(), ram.metadata()?.len());
        if saved != present {
            return Err(io::Error::other(format!("it holds {saved} bytes and the VM has {present}")));
        }
        copy_data(&file, &ram)
    };
    blocking(copy).await.map_err(HypervisorError::file("fill the RAM of a VM from", from))
}

async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn open(process: Process) -> io::Result<File> {
    let folder = format!("/proc/{}/fd", process.pid);
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        if std::fs::read_link(&path).is_ok_and(|link| link.as_os_str() == LINK) {
            return OpenOptions::new().read(true).write(true).open(path);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("no memfd with RAM in {folder}")))
}

/// Copies everything but holes and zeros; both files have the same length and `to` reads as zeros.
fn copy_data(from: &File, to: &File) -> io::Result<()> {
    let length = from.metadata()?.len();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS) as u64;
    let share = length.div_ceil(threads).next_multiple_of(CHUNK as u64);
    std::thread::scope(|scope| {
        let ranges = (0..threads).map(|n| (n * share).min(length)..((n + 1) * share).min(length));
        let workers: Vec<_> = ranges.map(|range| scope.spawn(move || copy_range(from, to, range))).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| Err(io::Error::other("a copying thread failed")))
        })
    })
}

fn copy_range(from: &File, to: &File, range: std::ops::Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut position = range.start;
    while let Some(start) = next_data(from, position)?.filter(|&start| start < range.end) {
        let length = (range.end - start).min(CHUNK as u64) as usize;
        let chunk = &mut buffer[..length];
        from.read_exact_at(chunk, start)?;
        write_nonzero(to, chunk, start)?;
        position = start + length as u64;
    }
    Ok(())
}

/// Offset of the first data at or behind `position`; `None` when only a hole follows.
fn next_data(file: &File, position: u64) -> io::Result<Option<u64>> {
    let offset = i64::try_from(position).map_err(io::Error::other)?;
    match lseek64(file, offset, Whence::SeekData) {
        Ok(found) => Ok(Some(found.unsigned_abs())),
        Err(nix::errno::Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes the runs of pages that are not all zeros.
fn write_nonzero(to: &File, chunk: &[u8], at: u64) -> io::Result<()> {
    let mut offset = at;
    let is_zero = |page: &[u8]| page == &ZEROS[..page.len()];
    let pages: Vec<&[u8]> = chunk.chunks(PAGE).collect();
    for run in pages.chunk_by(|left, right| is_zero(left) == is_zero(right)) {
        let length = run.iter().map(|page| page.len()).sum::<usize>();
        if !is_zero(run[0]) {
            let start = usize::try_from(offset - at).map_err(io::Error::other)?;
            to.write_all_at(&chunk[start..start + length], offset)?;
        }
        offset += length as u64;
    }
    Ok(())
}

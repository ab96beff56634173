//! Files as chunks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, sleep_until};
use unasnap_protocol::transfer::{Chunk, MAX_CHUNK_BYTES};

/// Chunks that are read ahead of the network.
const AHEAD: usize = 4;

/// Reads a file from an offset on, on a thread of its own; holes are left out. The thread ends when the receiver is dropped.
pub fn chunks(file: File, from: u64) -> mpsc::Receiver<io::Result<Chunk>> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut at = from;
        loop {
            let next = next_chunk(&file, at);
            let ended = !matches!(next, Ok(Some(_)));
            if let Ok(Some(chunk)) = &next {
                at = chunk.offset + chunk.bytes.len() as u64;
            }
            let Some(said) = next.transpose() else { return };
            if sender.blocking_send(said).is_err() || ended {
                return;
            }
        }
    });
    receiver
}

/// The first data at or after an offset; `None` when only holes follow.
fn next_chunk(file: &File, from: u64) -> io::Result<Option<Chunk>> {
    let offset = i64::try_from(from).map_err(io::Error::other)?;
    let begin = match lseek(file, offset, Whence::SeekData) {
        Err(Errno::ENXIO) => return Ok(None),
        found => found?,
    };
    let end = lseek(file, begin, Whence::SeekHole)?;
    let (begin, end) = (begin.unsigned_abs(), end.unsigned_abs());
    let mut bytes = vec![0; usize::try_from(end - begin).unwrap_or(usize::MAX).min(MAX_CHUNK_BYTES)];
    file.read_exact_at(&mut bytes, begin)?;
    Ok(Some(Chunk { offset: begin, bytes }))
}

/// Length of a file, and how much of it is no hole.
///
/// # Errors
/// What the file system says.
pub fn lengths(path: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path)?;
    // As stat(2) counts blocks.
    Ok((meta.len(), (meta.blocks() * 512).min(meta.len())))
}

/// How fast this host may give, all transfers together.
#[derive(Debug)]
pub struct Rate {
    per_second: Option<u64>,
    free_at: Mutex<Instant>,
}

impl Rate {
    /// Bytes per second; `None`: as fast as it goes.
    #[must_use]
    pub fn new(per_second: Option<u64>) -> Self {
        Self { per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes may go.
    pub async fn pace(&self, bytes: usize) {
        let Some(per_second) = self.per_second else { return };
        let mut free_at = self.free_at.lock().await;
        let begin = (*free_at).max(Instant::now());
        *free_at = begin + Duration::from_secs_f64(bytes as f64 / per_second.max(1) as f64);
        drop(free_at);
        sleep_until(begin).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(path: &Path, from: u64) -> Vec<(u64, usize)> {
        let mut chunks = chunks(File::open(path).unwrap(), from);
        let mut found = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            let chunk = chunk.unwrap();
            found.push((chunk.offset, chunk.bytes.len()));
        }
        found
    }

    #[tokio::test]
    async fn holes_are_left_out_and_an_offset_is_where_it_begins() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sparse");
        let file = File::create(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[7; 4096], 16 << 20).unwrap();
        file.write_all_at(&vec![8; 300 << 10], 32 << 20).unwrap();
        let chunk = MAX_CHUNK_BYTES;
        let second = (32 << 20) + chunk as u64;
        let all = [(16 << 20, 4096), (32 << 20, chunk), (second, (300 << 10) - chunk)];
        assert_eq!(read(&path, 0).await, all);
        assert_eq!(read(&path, 33 << 20).await, []);
        assert_eq!(read(&path, (16 << 20) + 4000).await[0], ((16 << 20) + 4000, 96));
        let (length, data) = lengths(&path).unwrap();
        assert_eq!(length, 64 << 20);
        assert!((304 << 10..400 << 10).contains(&data), "{data}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_holds_over_all_transfers() {
        let (rate, began) = (Rate::new(Some(1 << 20)), Instant::now());
        for _ in 0..11 {
            rate.pace(1 << 20).await;
        }
        assert_eq!(began.elapsed().as_secs(), 10, "the first goes at once");
    }
}

//! The first serial port of a machine that unasnap has made: VirtualBox offers a socket, the agent listens, and keeps what the guest writes.
//!
//! VirtualBox could write a file itself, but begins it anew with every start, and lets a guest fill the disk.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::fs::{File, OpenOptions, rename};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Size from which the log begins anew, bytes; what was in it is beside it, as `.old`.
const MAX_BYTES: u64 = 16 << 20;
/// Pause until the socket is tried again: it comes when the machine starts.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// What is read at a time, bytes.
const READ_BYTES: usize = 16 << 10;

/// Listens as long as this value lives.
pub(super) struct Console(JoinHandle<()>);

impl Console {
    /// Of the machine with this socket, into this log.
    pub(super) fn keep(socket: PathBuf, log: PathBuf) -> Self {
        Self(tokio::spawn(async move {
            loop {
                if let Ok(port) = UnixStream::connect(&socket).await
                    && let Err(error) = append(port, &log, MAX_BYTES).await
                {
                    tracing::warn!("what a guest writes to {} is lost: {error}", log.display());
                }
                sleep(AGAIN_AFTER).await;
            }
        }))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Until the machine closes its port.
async fn append(mut port: UnixStream, log: &Path, max: u64) -> io::Result<()> {
    let mut file = open(log).await?;
    let mut bytes = vec![0; READ_BYTES];
    loop {
        let length = match port.read(&mut bytes).await {
            // Its process was killed, perhaps.
            Ok(0) | Err(_) => return Ok(()),
            Ok(length) => length,
        };
        file.write_all(&bytes[..length]).await?;
        file.flush().await?;
        if file.metadata().await?.len() > max {
            rename(log, log.with_extension("log.old")).await?;
            file = open(log).await?;
        }
    }
}

async fn open(log: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(log).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_guest_writes_is_kept_in_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("console.log");
        for line in ["boot\n", "again\n"] {
            let (guest, port) = UnixStream::pair().unwrap();
            let mut guest = guest;
            guest.write_all(line.as_bytes()).await.unwrap();
            drop(guest);
            append(port, &log, 8).await.unwrap();
        }
        assert_eq!(std::fs::read(folder.path().join("console.log.old")).unwrap(), b"boot\nagain\n");
        assert_eq!(std::fs::read(&log).unwrap(), b"");
    }
}

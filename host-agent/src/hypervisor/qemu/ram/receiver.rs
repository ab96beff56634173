//! The thread that takes QEMU's migration stream: as the destination of a migration that never takes over.
//!
//! ```text
//!   Bulk ──▶ Hold ──▶ Near ──▶ Drain ──▶ Finish          Stop: from any
//! ```
//! QEMU writes as long as somebody reads. So how fast this thread reads is how much a precopy costs: in `Bulk` the
//! first copy of everything, at a bounded rate; in `Hold` what the guest has changed since, now and then, while other
//! members are still being prepared, and QEMU sleeps in between; in `Near` the same every few milliseconds; in `Drain` -
//! the pause - as fast as it comes, into memory: a file system may make its writers wait. And since QEMU waits for
//! it, the thread's low priority makes both leave the processors to guests who have something to do, until the cut is near.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::image::Image;
use super::stream::{Parser, StreamError, with_ram};
use crate::hypervisor::qemu::urgency::Behind;

/// Bytes of the first copy per second, so that the guests' disks keep their share of the host's.
const BULK_BYTES_PER_S: u64 = 512 << 20;
/// Time between two looks at what has changed. Each stops the guest's translated code for a moment.
const HOLD_EVERY: Duration = Duration::from_millis(50);
/// The same, when the cut may come at any moment.
const NEAR_EVERY: Duration = Duration::from_millis(10);
/// How long a read waits before the pace is looked at again; in [`Pace::Finish`], how long silence means the end.
const SILENCE: Duration = Duration::from_millis(5);
/// Read at a time.
const CHUNK: usize = 256 << 10;
/// More than this is not kept in memory during a pause.
const MAX_DRAINED: usize = 256 << 20;

/// How the stream is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// At a bounded rate.
    Bulk,
    /// One iteration of QEMU's at a time.
    Hold,
    /// The same, more often.
    Near,
    /// As fast as it comes.
    Drain,
    /// What has already been sent; then the thread ends.
    Finish,
    /// The thread ends.
    Stop,
}

/// What has been received, at rest.
#[derive(Debug)]
pub(super) struct Received {
    image: Image,
    parser: Parser,
}

/// Why nothing was received.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveError {
    /// The stream.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The socket.
    #[error("QEMU's migration stream cannot be read")]
    Socket(#[source] io::Error),
    /// The end came too early.
    #[error("QEMU's migration stream ends in the middle of RAM")]
    CutOff,
    /// [`Pace::Stop`], or the thread failed.
    #[error("the copy of RAM was given up")]
    GivenUp,
}

/// The thread.
#[derive(Debug)]
pub(super) struct Receiver {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<Received, ReceiveError>>>,
}

#[derive(Debug)]
struct Shared {
    pace: Mutex<Pace>,
    changed: Condvar,
    /// While the thread lets others go first.
    behind: Mutex<Behind>,
}

impl Shared {
    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the thread into its place among all others.
    fn queue(&self, behind: Behind) {
        let before =
            std::mem::replace(&mut *self.behind.lock().unwrap_or_else(PoisonError::into_inner), behind);
        before.come_back();
    }

    /// Sleeps, but not longer than the pace stays as it is.
    fn rest(&self, time: Duration) {
        let pace = self.pace();
        let before = *pace;
        // Whether it was the time or the pace does not matter: the caller looks at the pace next.
        drop(self.changed.wait_timeout_while(pace, time, |now| *now == before));
    }
}

impl Receiver {
    /// Begins at [`Pace::Bulk`].
    pub(super) fn start(socket: UnixStream, image: Image) -> io::Result<Self> {
        socket.set_read_timeout(Some(SILENCE))?;
        let shared = Arc::new(Shared {
            pace: Mutex::new(Pace::Bulk),
            changed: Condvar::new(),
            behind: Mutex::default(),
        });
        let worker = Worker {
            socket,
            shared: shared.clone(),
            chunk: vec![0; CHUNK],
            buffer: Vec::new(),
            received: Received { image, parser: Parser::new() },
        };
        let thread = std::thread::Builder::new().name("ram".to_owned()).spawn(move || worker.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Changes how the stream is read, at once. From [`Pace::Near`] on nobody goes first any more.
    pub(super) fn set(&self, pace: Pace) {
        if pace != Pace::Hold {
            self.shared.queue(Behind::default());
        }
        *self.shared.pace() = pace;
        self.shared.changed.notify_all();
    }

    /// Has it ended by itself? Only an error makes it do so before [`Pace::Finish`].
    pub(super) fn has_failed(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Takes what QEMU has sent so far as the whole; blocks for some milliseconds.
    ///
    /// # Errors
    /// What went wrong since the start.
    pub(super) fn finish(mut self) -> Result<Received, ReceiveError> {
        self.set(Pace::Finish);
        let thread = self.thread.take().ok_or(ReceiveError::GivenUp)?;
        thread.join().unwrap_or(Err(ReceiveError::GivenUp))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.set(Pace::Stop);
        if let Some(thread) = self.thread.take() {
            // It ends within one read; whoever deletes its file next must not find it written again.
            let _ = thread.join();
        }
    }
}

impl Received {
    /// Puts everything on the disk and makes of `devices` the stream that a new QEMU is to load.
    ///
    /// # Errors
    /// The disk is full, or QEMU saved something else.
    pub(super) fn complete(&mut self, devices: &[u8]) -> Result<Vec<u8>, ReceiveError> {
        self.image.sync().map_err(StreamError::from)?;
        let layout = self.parser.layout().ok_or(ReceiveError::CutOff)?;
        Ok(with_ram(layout, self.image.others(), devices)?)
    }
}

struct Worker {
    socket: UnixStream,
    shared: Arc<Shared>,
    chunk: Vec<u8>,
    buffer: Vec<u8>,
    received: Received,
}

impl Worker {
    fn run(mut self) -> Result<Received, ReceiveError> {
        self.shared.queue(Behind::this_thread());
        let mut schedule = Schedule { origin: Instant::now(), bytes: 0 };
        loop {
            let pace = *self.shared.pace();
            if pace == Pace::Stop {
                return Err(ReceiveError::GivenUp);
            }
            let count = match (self.read()?, pace) {
                (Read::Silence, Pace::Finish) => break,
                // QEMU closes the socket when the migration is cancelled at the end of the pause, which may have begun while
                // this thread waited for bytes.
                (Read::End, _) if matches!(*self.shared.pace(), Pace::Drain | Pace::Finish) => break,
                (Read::End, _) => return Err(ReceiveError::CutOff),
                (Read::Silence, _) => continue,
                (Read::Bytes(_), Pace::Drain) if self.buffer.len() < MAX_DRAINED => continue,
                (Read::Bytes(count), _) => count,
            };
            let marks = self.received.parser.marks();
            self.parse()?;
            match pace {
                Pace::Bulk => self.shared.rest(schedule.ahead(count)),
                Pace::Hold if self.received.parser.marks() > marks => self.shared.rest(HOLD_EVERY),
                Pace::Near if self.received.parser.marks() > marks => self.shared.rest(NEAR_EVERY),
                _ => {}
            }
        }
        self.parse()?;
        let whole = self.buffer.is_empty() && self.received.parser.is_between_sections();
        if whole { Ok(self.received) } else { Err(ReceiveError::CutOff) }
    }

    fn read(&mut self) -> Result<Read, ReceiveError> {
        match self.socket.read(&mut self.chunk) {
            Ok(0) => Ok(Read::End),
            Ok(count) => {
                self.buffer.extend_from_slice(&self.chunk[..count]);
                Ok(Read::Bytes(count))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(Read::Silence)
            }
            Err(error) => Err(ReceiveError::Socket(error)),
        }
    }

    fn parse(&mut self) -> Result<(), ReceiveError> {
        let Received { image, parser } = &mut self.received;
        let used = parser.read(&self.buffer, image)?;
        self.buffer.drain(..used);
        Ok(())
    }
}

/// What a look at the socket brought.
enum Read {
    /// So many bytes.
    Bytes(usize),
    /// Nothing for [`SILENCE`].
    Silence,
    /// QEMU will send nothing more.
    End,
}

/// What keeps the first copy at its rate.
struct Schedule {
    origin: Instant,
    bytes: u64,
}

impl Schedule {
    /// `more` bytes have come: for how long nothing more is due.
    fn ahead(&mut self, more: usize) -> Duration {
        self.bytes += more as u64;
        let due = Duration::from_secs_f64(self.bytes as f64 / BULK_BYTES_PER_S as f64);
        due.saturating_sub(self.origin.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// The whole pause may pass while the thread waits in one read.
    #[test]
    fn a_pause_that_is_over_before_the_thread_looks_up_is_no_early_end() {
        for _ in 0..20 {
            let (ours, mut qemu_end) = UnixStream::pair().unwrap();
            qemu_end.write_all(b"QEVM\0\0\0\x03").unwrap();
            let image = Image::new(tempfile::tempfile().unwrap(), 1 << 20).unwrap();
            let receiver = Receiver::start(ours, image).unwrap();
            receiver.set(Pace::Near);
            std::thread::sleep(Duration::from_millis(2));
            receiver.set(Pace::Drain);
            drop(qemu_end);
            std::thread::sleep(Duration::from_millis(1));
            receiver.finish().unwrap();
        }
    }

    #[test]
    fn an_end_before_the_pause_is_told() {
        let (ours, qemu_end) = UnixStream::pair().unwrap();
        let image = Image::new(tempfile::tempfile().unwrap(), 1 << 20).unwrap();
        let receiver = Receiver::start(ours, image).unwrap();
        receiver.set(Pace::Near);
        drop(qemu_end);
        while !receiver.has_failed() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(matches!(receiver.finish(), Err(ReceiveError::CutOff)));
    }
}

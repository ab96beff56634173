//! Frames that wait for a host: so many and so many bytes, and a host for which more would wait counts as lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

/// Most frames that wait.
const MAX_FRAMES: usize = 1024;
/// Most bytes that wait: an order to each of a host's VMs with all addresses of a large deployment fits.
const MAX_BYTES: usize = 64 << 20;

/// Where frames to a host go; dropping it closes the connection.
pub struct Outbox {
    frames: mpsc::Sender<Vec<u8>>,
    bytes: Arc<AtomicUsize>,
}

/// An outbox that does not keep the connection open.
pub struct LastWords {
    frames: mpsc::WeakSender<Vec<u8>>,
    bytes: Arc<AtomicUsize>,
}

/// The other end.
pub struct Waiting {
    frames: mpsc::Receiver<Vec<u8>>,
    bytes: Arc<AtomicUsize>,
}

/// Both ends.
pub fn outbox() -> (Outbox, Waiting) {
    let (sender, receiver) = mpsc::channel(MAX_FRAMES);
    let bytes = Arc::new(AtomicUsize::new(0));
    (Outbox { frames: sender, bytes: Arc::clone(&bytes) }, Waiting { frames: receiver, bytes })
}

impl Outbox {
    /// Adds a frame; `false` if the host is gone or does not read.
    pub fn try_send(&self, frame: Vec<u8>) -> bool {
        let length = frame.len();
        if self.bytes.fetch_add(length, Ordering::Relaxed) + length <= MAX_BYTES
            && self.frames.try_send(frame).is_ok()
        {
            return true;
        }
        self.bytes.fetch_sub(length, Ordering::Relaxed);
        false
    }

    /// See [`LastWords`].
    pub fn downgrade(&self) -> LastWords {
        LastWords { frames: self.frames.downgrade(), bytes: Arc::clone(&self.bytes) }
    }
}

impl LastWords {
    /// As of [`Outbox::try_send`].
    pub fn try_send(&self, frame: Vec<u8>) -> bool {
        let frames = self.frames.upgrade();
        frames.is_some_and(|frames| Outbox { frames, bytes: Arc::clone(&self.bytes) }.try_send(frame))
    }
}

impl Waiting {
    /// All that waits, in one piece; `None` when nobody can send any more.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        let mut frames = Vec::new();
        if self.frames.recv_many(&mut frames, MAX_FRAMES).await == 0 {
            return None;
        }
        let bytes = frames.concat();
        self.bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_waits_is_bounded_by_number_and_by_bytes() {
        let (outbox, mut waiting) = outbox();
        assert_eq!((0..2000).filter(|_| outbox.try_send(vec![1])).count(), MAX_FRAMES);
        assert_eq!(waiting.next().await.unwrap().len(), MAX_FRAMES);
        let large = || vec![0; 1 << 20];
        assert_eq!((0..100).filter(|_| outbox.try_send(large())).count(), 64);
        assert!(!outbox.downgrade().try_send(vec![1]));
        assert_eq!(waiting.next().await.unwrap().len(), MAX_BYTES);
        assert!(outbox.downgrade().try_send(vec![1]), "what was written counts no more");
        assert_eq!(waiting.next().await.unwrap(), [1]);
        let last_words = outbox.downgrade();
        drop(outbox);
        assert!(!last_words.try_send(vec![1]));
        assert_eq!(waiting.next().await, None);
    }
}

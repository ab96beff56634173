//! Gaps as the world sees them.
//!
//! While a VM stands still, its clocks do, too: a program inside cannot see its own pause. So a workload sends a datagram
//! for its events, at most one each half millisecond, and an observer outside measures the time between them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Between two datagrams, nanoseconds.
const SPACING_NS: u64 = 500_000;

/// Most sources that an observer keeps; whoever else sends is no workload of ours.
const MAX_SOURCES: usize = 1024;

/// The sender.
#[derive(Debug)]
pub struct Beat {
    socket: UdpSocket,
    last_ns: AtomicU64,
}

impl Beat {
    /// Will send to `observer`.
    ///
    /// # Errors
    /// There is no route to it.
    pub fn to(observer: SocketAddr) -> Result<Self> {
        let any: IpAddr = if observer.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).context("a UDP socket")?;
        socket.connect(observer).with_context(|| format!("the observer {observer}"))?;
        socket.set_nonblocking(true).context("a UDP socket")?;
        Ok(Self { socket, last_ns: AtomicU64::new(0) })
    }

    /// An event at this moment of the workload's own clock.
    pub fn event(&self, now_ns: u64) {
        if now_ns.saturating_sub(self.last_ns.load(Ordering::Relaxed)) >= SPACING_NS {
            self.last_ns.store(now_ns, Ordering::Relaxed);
            // One that is lost makes a gap; that is what gaps are.
            let _ = self.socket.send(&[]);
        }
    }
}

/// The receiver.
#[derive(Debug, Clone)]
pub struct Observer {
    sources: Arc<Mutex<HashMap<IpAddr, Seen>>>,
}

#[derive(Debug)]
struct Seen {
    last: Instant,
    longest: Duration,
}

impl Observer {
    /// Observes on a thread of its own.
    ///
    /// # Errors
    /// The address is taken, or not ours.
    pub fn start(address: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind(address).with_context(|| format!("observing at {address}"))?;
        let observer = Self { sources: Arc::default() };
        let sources = Arc::clone(&observer.sources);
        std::thread::spawn(move || {
            while let Ok((_, from)) = socket.recv_from(&mut [0; 16]) {
                let now = Instant::now();
                let mut sources = sources.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(seen) = sources.get_mut(&from.ip()) {
                    seen.longest = seen.longest.max(now - seen.last);
                    seen.last = now;
                } else if sources.len() < MAX_SOURCES {
                    sources.insert(from.ip(), Seen { last: now, longest: Duration::ZERO });
                }
            }
        });
        Ok(observer)
    }

    /// The longest gap of any source since the last call, milliseconds, the open ones included; `None` when nobody has sent
    /// anything.
    #[must_use]
    pub fn take_gap_ms(&self) -> Option<f64> {
        let sources = std::mem::take(&mut *self.sources.lock().unwrap_or_else(PoisonError::into_inner));
        let gaps = sources.values().map(|seen| seen.longest.max(seen.last.elapsed()));
        gaps.max().map(|gap| gap.as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_seen_and_nobody_is_none() {
        let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let observer = Observer::start(address).unwrap();
        assert_eq!(observer.take_gap_ms(), None);
        let beat = Beat::to(address).unwrap();
        beat.event(SPACING_NS);
        // Too soon after the last one.
        beat.event(SPACING_NS + 1);
        std::thread::sleep(Duration::from_millis(30));
        beat.event(2 * SPACING_NS);
        std::thread::sleep(Duration::from_millis(10));
        assert!(observer.take_gap_ms().unwrap() >= 25.0);
        assert_eq!(observer.take_gap_ms(), None);
    }
}

//! Counting events and measuring the longest time between two of them, and printing both at intervals.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use crate::beat::Beat;

/// Counts events and remembers the longest gaps between them, on the monotonic clock.
///
/// One thread calls [`Meter::event`]; any number read. Before the first event there is no gap.
#[derive(Debug)]
pub struct Meter {
    origin: Instant,
    count: AtomicU64,
    last_ns: AtomicU64,
    longest_ns: AtomicU64,
    recent_ns: AtomicU64,
    running: AtomicBool,
    beat: Option<Beat>,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            count: AtomicU64::new(0),
            last_ns: AtomicU64::new(0),
            longest_ns: AtomicU64::new(0),
            recent_ns: AtomicU64::new(0),
            running: AtomicBool::new(false),
            beat: None,
        }
    }
}

impl Meter {
    /// A meter whose events an observer sees as well, if there is one.
    ///
    /// # Errors
    /// There is no route to the observer.
    pub fn observed(observer: Option<SocketAddr>) -> Result<Self> {
        Ok(Self { beat: observer.map(Beat::to).transpose()?, ..Self::default() })
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Starts the clock of the first gap without counting an event.
    pub fn start(&self) {
        self.last_ns.store(self.now_ns(), Ordering::Relaxed);
        self.running.store(true, Ordering::Release);
    }

    /// One event happened now.
    pub fn event(&self) {
        let now = self.now_ns();
        let last = self.last_ns.swap(now, Ordering::Relaxed);
        if self.running.swap(true, Ordering::AcqRel) {
            let gap = now.saturating_sub(last);
            self.longest_ns.fetch_max(gap, Ordering::Relaxed);
            self.recent_ns.fetch_max(gap, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        if let Some(beat) = &self.beat {
            beat.event(now);
        }
    }

    /// Events so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The longest closed gap so far, in milliseconds.
    pub fn longest_gap_ms(&self) -> f64 {
        ms(self.longest_ns.load(Ordering::Relaxed))
    }

    /// The longest gap since the last call, in milliseconds. A gap that is still open counts as long as it is
    /// now, so that a stream that stands still shows a growing number and not a zero.
    pub fn take_recent_gap_ms(&self) -> f64 {
        let closed = self.recent_ns.swap(0, Ordering::Relaxed);
        let open = if self.running.load(Ordering::Acquire) {
            self.now_ns().saturating_sub(self.last_ns.load(Ordering::Relaxed))
        } else {
            0
        };
        ms(closed.max(open))
    }
}

/// Nanoseconds as milliseconds with three digits, which is what a reader of a log wants.
fn ms(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_micros() as f64 / 1000.0
}

/// Prints `TAG {json}` on stdout as one write, so that lines of two threads never mix on a console.
pub fn announce(tag: &str, value: &Value) {
    print_line(&format!("{tag} {value}"));
}

/// Prints a line as one write.
pub(crate) fn print_line(line: &str) {
    let mut out = std::io::stdout().lock();
    // A closed console is no reason to stop the workload: the ring must go on whoever listens.
    let _ = out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush());
}

/// A thread that prints a line at intervals until it is dropped; the drop prints a last one.
#[derive(Debug)]
pub struct Reporter {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Reporter {
    /// Prints `TAG {line()}` every `interval`.
    pub fn spawn(tag: &'static str, interval: Duration, line: impl Fn() -> Value + Send + 'static) -> Self {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let shared = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (flag, wake) = &*shared;
            let mut stopped = flag.lock().unwrap_or_else(PoisonError::into_inner);
            while !*stopped {
                let waited = wake.wait_timeout(stopped, interval).unwrap_or_else(PoisonError::into_inner);
                stopped = waited.0;
                announce(tag, &line());
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_gap_counts_and_the_first_event_has_none() {
        let meter = Meter::default();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(meter.take_recent_gap_ms(), 0.0);
        meter.event();
        assert_eq!(meter.longest_gap_ms(), 0.0);
        std::thread::sleep(Duration::from_millis(20));
        assert!(meter.take_recent_gap_ms() >= 20.0);
        meter.event();
        assert!(meter.longest_gap_ms() >= 20.0);
        assert_eq!(meter.count(), 2);
    }
}

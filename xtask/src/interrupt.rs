//! Ctrl-C and SIGTERM clean up before they end the program.
//!
//! The signals are blocked in every thread and taken by one that waits for them, so that a cleanup is ordinary code
//! and no signal handler. Children start with an empty signal mask: the standard library sees to that.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

type Cleanup = Box<dyn Fn() + Send>;

static CLEANUPS: Mutex<Vec<(u64, Cleanup)>> = Mutex::new(Vec::new());

/// Starts listening. Must be called before any other thread exists.
///
/// # Errors
/// The kernel refused the signal mask.
pub fn install() -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("blocking signals")?;
    std::thread::spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        eprintln!("interrupted by {signal}: cleaning up");
        // Held until the exit, so that nothing new is started and registered meanwhile.
        let cleanups = CLEANUPS.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, cleanup) in cleanups.iter().rev() {
            cleanup();
        }
        std::process::exit(128 + signal as i32);
    });
    Ok(())
}

/// A cleanup that runs on an interrupt, until this is dropped.
#[derive(Debug)]
pub struct OnInterrupt(u64);

impl OnInterrupt {
    /// Registers `cleanup`; later ones run first.
    pub fn new(cleanup: impl Fn() + Send + 'static) -> Self {
        let mut cleanups = CLEANUPS.lock().unwrap_or_else(PoisonError::into_inner);
        let id = cleanups.last().map_or(0, |(id, _)| id + 1);
        cleanups.push((id, Box::new(cleanup)));
        Self(id)
    }
}

impl Drop for OnInterrupt {
    fn drop(&mut self) {
        CLEANUPS.lock().unwrap_or_else(PoisonError::into_inner).retain(|(id, _)| *id != self.0);
    }
}

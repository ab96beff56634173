//! Ctrl-C and SIGTERM clean up before they end the program.
//!
//! The signals are blocked in every thread and taken by one that waits for them, so that a cleanup is ordinary code
//! and no signal handler. Children start with an empty signal mask: the standard library sees to that.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

type Cleanup = Box<dyn Fn() + Send>;

#[derive(Default)]
struct Registry {
    cleanups: Vec<(u64, Cleanup)>,
    next: u64,
    /// The thread that cleans up; from then on no other may begin anything.
    cleaner: Option<ThreadId>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { cleanups: Vec::new(), next: 0, cleaner: None });

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

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
        clean_up();
        std::process::exit(128 + signal as i32);
    });
    Ok(())
}

/// Runs what is registered, the latest first. The registry is free meanwhile: cleanups run programs, too.
fn clean_up() {
    let cleanups = {
        let mut registry = registry();
        registry.cleaner = Some(std::thread::current().id());
        std::mem::take(&mut registry.cleanups)
    };
    for (_, cleanup) in cleanups.iter().rev() {
        cleanup();
    }
}

/// The moment in which something is begun that an interrupt must end: none can come before its cleanup is registered.
pub struct Beginning(MutexGuard<'static, Registry>);

/// Waits until it is allowed to begin something. After an interrupt that is never: the program is about to end.
pub fn begin() -> Beginning {
    loop {
        let registry = registry();
        if registry.cleaner.is_none_or(|cleaner| cleaner == std::thread::current().id()) {
            return Beginning(registry);
        }
        drop(registry);
        std::thread::sleep(Duration::from_secs(1));
    }
}

impl Beginning {
    /// Registers how to end what was begun.
    pub fn register(mut self, cleanup: impl Fn() + Send + 'static) -> OnInterrupt {
        let id = self.0.next;
        self.0.next += 1;
        self.0.cleanups.push((id, Box::new(cleanup)));
        OnInterrupt(id)
    }
}

/// A cleanup that runs on an interrupt, until this is dropped.
#[derive(Debug)]
pub struct OnInterrupt(u64);

impl Drop for OnInterrupt {
    fn drop(&mut self) {
        registry().cleanups.retain(|(id, _)| *id != self.0);
    }
}

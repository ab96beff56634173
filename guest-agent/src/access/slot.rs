//! What the thread that serves the port and one worker share: a question and its answer.

use std::{
    sync::{
        Condvar, Mutex, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use unasnap_protocol::access::{Ask, Said};

use super::gone;

/// Whoever has not asked for so long does not want it any more: a host asks every 50 ms, and holds its questions for some
/// seconds while a snapshot is taken.
pub const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// The place where both meet. The port's thread never waits here, whatever the worker does.
pub struct Slot {
    turn: Mutex<CurrentTurn>,
    asked: Condvar,
    /// Nobody wants it any more.
    ended: AtomicBool,
    /// The worker has gone; its last answer stands.
    finished: AtomicBool,
    born: Instant,
    /// When it was asked last, milliseconds since it was born.
    heard_ms: AtomicU64,
}

struct CurrentTurn {
    number: u32,
    ask: Option<Ask>,
    said: Option<Said>,
}

/// What a worker finds.
pub enum Next {
    /// This is wanted.
    Ask(Ask),
    /// Nothing yet.
    Nothing,
    /// It is over.
    Over,
}

impl Slot {
    /// The turn of this number is with the worker already.
    pub fn new(number: u32) -> Self {
        Self {
            turn: Mutex::new(CurrentTurn { number, ask: None, said: None }),
            asked: Condvar::new(),
            ended: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            born: Instant::now(),
            heard_ms: AtomicU64::new(0),
        }
    }

    /// The port's thread: the answer to this turn, if there is one yet.
    pub fn turn(&self, number: u32, ask: Ask) -> Said {
        self.heard_ms.store(self.age_ms(), Ordering::Relaxed);
        let mut turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // The worker has it for an instant.
            Err(TryLockError::WouldBlock) => return Said::NotYet,
        };
        if number == turn.number {
            return turn.said.clone().unwrap_or_else(|| self.no_answer());
        }
        let follows = turn.number.checked_add(1) == Some(number) && turn.said.is_some();
        if !follows || self.finished.load(Ordering::Acquire) {
            return gone();
        }
        *turn = CurrentTurn { number, ask: Some(ask), said: None };
        drop(turn);
        self.asked.notify_one();
        Said::NotYet
    }

    fn no_answer(&self) -> Said {
        // A worker that has gone without a word will not say any more.
        if self.finished.load(Ordering::Acquire) { gone() } else { Said::NotYet }
    }

    /// Nobody wants it any more: the worker cleans up within some milliseconds.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.asked.notify_one();
    }

    /// The worker has said its last word.
    pub fn finish(&self) {
        self.finished.store(true, Ordering::Release);
    }

    /// Has the worker gone, or is it about to?
    pub fn is_over(&self) -> bool {
        self.finished.load(Ordering::Acquire) || self.is_unwanted()
    }

    /// Does nobody want it any more?
    pub fn is_unwanted(&self) -> bool {
        let silent_ms = self.age_ms().saturating_sub(self.heard_ms.load(Ordering::Relaxed));
        self.ended.load(Ordering::Relaxed) || u128::from(silent_ms) > IDLE_LIMIT.as_millis()
    }

    /// The worker: waits for a question, for so long.
    pub fn next(&self, patience: Duration) -> Next {
        if self.is_unwanted() {
            return Next::Over;
        }
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.asked.wait_timeout_while(turn, patience, |turn| {
            turn.ask.is_none() && !self.ended.load(Ordering::Relaxed)
        });
        let (mut turn, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match turn.ask.take() {
            _ if self.is_unwanted() => Next::Over,
            Some(ask) => Next::Ask(ask),
            None => Next::Nothing,
        }
    }

    /// The worker's answer to the turn that is open.
    pub fn say(&self, said: Said) {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner).said = Some(said);
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

//! Commands run and files moved for an operator, where this guest allows it.
//!
//! The thread that serves the port never waits for any of it: each conversation has a worker of its own, at ordinary
//! priority, and what is asked is handed over in a [`Slot`]. Until the worker has an answer, the answer is "not yet".
//!
//! Nothing outlives those who want it: a conversation ends when its host has not asked for [`slot::IDLE_LIMIT`], and when
//! the guest was restored, for then its host side belongs to another life.

use std::{collections::BTreeMap, sync::Arc, thread, time::Duration};

use log::info;
use unasnap_protocol::access::{Ask, Refusal, RefusalKind, Right, Said, Turn};

use self::slot::Slot;

mod exec;
mod files;
mod slot;

/// Most conversations at one time.
pub const MAX_SESSIONS: usize = 8;
/// A worker needs little more than its chunk, which is on the heap.
const STACK_BYTES: usize = 256 << 10;

/// All conversations of this guest.
pub struct Access {
    allowed: Vec<Right>,
    sessions: BTreeMap<u64, Session>,
}

struct Session {
    incarnation: u64,
    slot: Arc<Slot>,
}

impl Access {
    /// Of a guest that allows this, and nothing else.
    #[must_use]
    pub fn new(allowed: Vec<Right>) -> Self {
        Self { allowed, sessions: BTreeMap::new() }
    }

    /// This is the guest's incarnation now: whatever belongs to an earlier one is ended.
    pub fn end_before(&mut self, incarnation: u64) {
        self.sessions.retain(|_, session| {
            let stays = session.incarnation >= incarnation;
            if !stays {
                session.slot.end();
            }
            stays
        });
    }

    /// Answers a turn of this incarnation, at once.
    pub fn answer(&mut self, incarnation: u64, turn: Turn) -> Said {
        let Turn { session, number, ask } = turn;
        if ask == Ask::Close {
            if let Some(session) = self.sessions.remove(&session) {
                session.slot.end();
            }
            return Said::Closed;
        }
        match (self.sessions.get(&session), ask.right()) {
            (Some(session), _) => session.slot.turn(number, ask),
            (None, Some(right)) if number == 1 => self.begin(incarnation, session, right, ask),
            _ => gone(),
        }
    }

    fn begin(&mut self, incarnation: u64, id: u64, right: Right, ask: Ask) -> Said {
        if !self.allowed.contains(&right) {
            let rights: Vec<_> = self.allowed.iter().chain([&right]).map(|right| right.label()).collect();
            let text = format!(
                "the guest agent does not allow {right}; start it with `unasnap-guest run --allow {}`",
                rights.join(",")
            );
            return refusal(RefusalKind::NotAllowed, text);
        }
        self.sessions.retain(|_, session| !session.slot.is_unwanted());
        if self.sessions.len() >= MAX_SESSIONS {
            self.sessions.retain(|_, session| !session.slot.is_over());
        }
        if self.sessions.len() >= MAX_SESSIONS {
            let text =
                format!("{MAX_SESSIONS} commands and files are under way in this guest; wait for one to end");
            return refusal(RefusalKind::Busy, text);
        }
        let slot = Arc::new(Slot::new(1));
        let (shared, shown) = (Arc::clone(&slot), format!("{ask:?}"));
        let worker = thread::Builder::new().name("access".to_owned()).stack_size(STACK_BYTES);
        let begun = worker.spawn(move || {
            match ask {
                Ask::Exec(command, seconds) => {
                    exec::run(&shared, &command, Duration::from_secs(u64::from(seconds)));
                }
                Ask::Put(path, file) => files::put(&shared, &path, file),
                Ask::Get(path) => files::get(&shared, &path),
                _ => {}
            }
            shared.finish();
        });
        if let Err(error) = begun {
            return failed(format!("no thread can be started for it: {error}"));
        }
        info!("for an operator: {shown}");
        self.sessions.insert(id, Session { incarnation, slot });
        Said::NotYet
    }
}

fn refusal(kind: RefusalKind, text: String) -> Said {
    Said::Refused(Refusal { kind, text })
}

fn failed(text: String) -> Said {
    refusal(RefusalKind::Failed, text)
}

fn gone() -> Said {
    refusal(RefusalKind::Gone, "the guest agent does not know this conversation (any more)".to_owned())
}

fn misplaced() -> Said {
    failed("this question does not belong here".to_owned())
}

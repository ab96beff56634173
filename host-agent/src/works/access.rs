//! What operators do in a guest: its port is lent to them while no snapshot needs it.
//!
//! | when | a turn |
//! |---|---|
//! | a step of a snapshot or restore talks to the guest | is broken off, and asked again afterwards |
//! | from ARM to CLEAR, COMMIT or ABORT | is held, for [`HOLD_LIMIT`] at most |
//! | the instance has ended, or was replaced | fails: what was begun in it is gone |
//!
//! So a step waits for nothing of an operator's; what it may find before its own answer is one chunk.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use unasnap_protocol::access::{
    AccessAnswer, AccessOrder, Ask, MAX_CONSOLE_BYTES, Opened, Refusal, RefusalKind, Right, SLOW_CHUNK_BYTES,
    Said, Turn,
};
use unasnap_protocol::control::{self, Failure, FailureKind, Phase};
use unasnap_protocol::name::Name;
use unasnap_protocol::participant::Step;
use unasnap_protocol::power::Verb;

use super::{Works, tail};

/// How long a turn is held for a snapshot.
pub const HOLD_LIMIT: Duration = Duration::from_secs(8);
/// For all of a turn, a silent guest included.
const TURN_LIMIT: Duration = Duration::from_secs(11);
/// After which time the operator hears that there is no answer yet.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two questions to the guest: the first, and the longest.
const LOOK_AGAIN: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(50)];
/// Conversations that are remembered; the guest has fewer.
const MAX_SESSIONS: usize = 64;

/// When the guest's port may be used by operators.
#[derive(Default)]
pub(super) struct Gate {
    hold: watch::Sender<Hold>,
    /// Conversations, with the instance in which they began.
    sessions: Mutex<BTreeMap<u64, u64>>,
    /// Whoever has it may ask the guest: there is one unanswered chunk at most.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone, Default)]
struct Hold {
    /// Steps under way that talk to the guest.
    steps: u32,
    /// The snapshot that is between ARM and CLEAR.
    armed: Option<Name>,
    /// Counts up when an instance ends or is replaced.
    life: u64,
}

impl Hold {
    fn is_free(&self) -> bool {
        self.steps == 0 && self.armed.is_none()
    }
}

/// A step talks to the guest until this is dropped.
pub(super) struct Talking<'a> {
    gate: &'a Gate,
    ends_cut: bool,
}

impl Drop for Talking<'_> {
    fn drop(&mut self) {
        self.gate.hold.send_modify(|hold| {
            hold.steps -= 1;
            if self.ends_cut {
                hold.armed = None;
            }
        });
    }
}

impl Gate {
    /// A step begins. `None` for those that leave the guest alone, or say themselves when they talk to it.
    pub(super) fn begin(&self, snapshot: &Name, step: &Step) -> Option<Talking<'_>> {
        let (mut ends_cut, mut ends_life, mut arms) = (false, false, false);
        match step {
            Step::Arm => arms = true,
            Step::Cut(_) | Step::Start(_) => {}
            Step::Clear | Step::Commit | Step::Undo => ends_cut = true,
            Step::Restore | Step::Evict(_) => (ends_cut, ends_life) = (true, true),
            Step::Control(Verb::Kill | Verb::Reset) => ends_life = true,
            // What it held for an earlier snapshot whose end it has not heard, it holds no more.
            Step::Prepare(_) => {
                self.hold.send_modify(|hold| hold.armed = None);
                return None;
            }
            Step::Poll | Step::Delete | Step::Verify | Step::Control(_) => return None,
        }
        self.hold.send_modify(|hold| {
            hold.steps += 1;
            hold.life += u64::from(ends_life);
            if arms {
                hold.armed = Some(snapshot.clone());
            }
        });
        Some(Talking { gate: self, ends_cut })
    }

    /// From now on, until what is returned is dropped.
    pub(super) fn talk(&self) -> Talking<'_> {
        self.hold.send_modify(|hold| hold.steps += 1);
        Talking { gate: self, ends_cut: false }
    }

    fn life(&self) -> u64 {
        self.hold.borrow().life
    }

    /// Waits until nothing needs the guest.
    async fn opens(&self, life: u64, deadline: Instant) -> Result<(), Failure> {
        let mut hold = self.hold.subscribe();
        let free = hold.wait_for(|hold| hold.is_free() || hold.life != life);
        let is_in_time = timeout_at(deadline, free).await.is_ok();
        match is_in_time {
            _ if self.life() != life => Err(replaced()),
            true => Ok(()),
            false => {
                let why = match &self.hold.borrow().armed {
                    Some(snapshot) => format!("{snapshot} is between ARM and CLEAR here"),
                    None => "a snapshot or restore is under way here".to_owned(),
                };
                let seconds = HOLD_LIMIT.as_secs();
                Err(failure(
                    FailureKind::TimedOut,
                    format!(
                        "the guest was left alone for {seconds} s, because {why}; try again when it has ended"
                    ),
                ))
            }
        }
    }

    /// Waits until something needs the guest.
    async fn closes(&self, life: u64) {
        let mut hold = self.hold.subscribe();
        // The sender is ours.
        let _ = hold.wait_for(|hold| !hold.is_free() || hold.life != life).await;
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, u64>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Works {
    /// Does what an operator wants of the guest, or of its console.
    pub async fn access(&self, order: AccessOrder) -> AccessAnswer {
        let answer = match order {
            AccessOrder::Turn(turn) => self.turn(turn).await.map(AccessAnswer::Said),
            AccessOrder::Console(lines) => self.console(lines).await.map(AccessAnswer::Console),
        };
        answer.unwrap_or_else(AccessAnswer::Failed)
    }

    async fn turn(&self, mut turn: Turn) -> Result<Said, Failure> {
        self.fit_to_port(&mut turn.ask)?;
        let life = match (turn.ask.right(), &turn.ask) {
            (Some(right), _) => self.admit(turn.session, right)?,
            (None, Ask::Close) => {
                self.gate.sessions().remove(&turn.session);
                self.gate.life()
            }
            (None, _) => self.gate.sessions().get(&turn.session).copied().ok_or_else(replaced)?,
        };
        let answered = timeout(TURN_LIMIT, self.ask_until_answered(&turn, life)).await;
        let said = answered.unwrap_or_else(|_| {
            let seconds = TURN_LIMIT.as_secs();
            let text = format!(
                "the guest agent has not answered for {seconds} s; is unasnap-guest running in the VM?"
            );
            Err(failure(FailureKind::TimedOut, text))
        })?;
        match said {
            Said::Refused(refusal) => Err(refused(refusal)),
            Said::Opened(opened) => {
                Ok(Said::Opened(Opened { chunk: opened.chunk.min(self.chunk()), ..opened }))
            }
            said => Ok(said),
        }
    }

    /// May it begin? Answers the instance in which it does.
    fn admit(&self, session: u64, right: Right) -> Result<u64, Failure> {
        let vm = &self.definition.name;
        if !self.definition.guest_access.contains(&right) {
            let rights = self.definition.guest_access.iter().chain([&right]);
            let rights: Vec<_> = rights.map(|right| format!("\"{right}\"")).collect();
            let text = format!(
                "the definition of {vm} does not allow {right}; write `guest_access = [{}]` into it and start its host agent anew",
                rights.join(", ")
            );
            return Err(failure(FailureKind::NotAllowed, text));
        }
        match self.last_state() {
            Some(control::VmState::Stopped) => {
                return Err(failure(FailureKind::VmNotRunning, format!("VM {vm} does not run; start it")));
            }
            Some(control::VmState::Paused) => {
                return Err(failure(FailureKind::VmNotRunning, format!("VM {vm} is paused; resume it")));
            }
            _ => {}
        }
        let (life, mut sessions) = (self.gate.life(), self.gate.sessions());
        // One that is known is asked again.
        let begun = *sessions.entry(session).or_insert(life);
        if sessions.len() > MAX_SESSIONS {
            sessions.pop_first();
        }
        Ok(begun)
    }

    async fn ask_until_answered(&self, turn: &Turn, life: u64) -> Result<Said, Failure> {
        let (begun, [mut pause, longest]) = (Instant::now(), LOOK_AGAIN);
        loop {
            self.gate.opens(life, begun + HOLD_LIMIT).await?;
            let said = tokio::select! {
                biased;
                () = self.gate.closes(life) => continue,
                said = self.ask_once(turn) => said?,
            };
            if said != Said::NotYet || begun.elapsed() > PATIENCE {
                return Ok(said);
            }
            sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// May be broken off at any moment.
    async fn ask_once(&self, turn: &Turn) -> Result<Said, Failure> {
        let _turn = self.gate.turn.lock().await;
        // A question that is still repeated when its conversation is closed would begin that anew.
        if turn.ask != Ask::Close && !self.gate.sessions().contains_key(&turn.session) {
            return Err(replaced());
        }
        let said = self.colours.lock().await.access(turn).await;
        said.map_err(|error| error.during(Phase::Access))
    }

    /// Most bytes of one turn: VirtualBox's port is a serial line.
    fn chunk(&self) -> u16 {
        let slow = self.definition.machine.is_some();
        if slow { u16::try_from(SLOW_CHUNK_BYTES).unwrap_or(u16::MAX) } else { u16::MAX }
    }

    fn fit_to_port(&self, ask: &mut Ask) -> Result<(), Failure> {
        match ask {
            Ask::More(room) => *room = (*room).min(self.chunk()),
            Ask::Data(chunk) if chunk.bytes().len() > usize::from(self.chunk()) => {
                let text = format!("a chunk to {} has at most {} bytes", self.definition.name, self.chunk());
                return Err(failure(FailureKind::BadRequest, text));
            }
            _ => {}
        }
        Ok(())
    }

    async fn console(&self, lines: u32) -> Result<Vec<u8>, Failure> {
        let Some(path) = self.hypervisor.console(&self.definition.name) else {
            let text = format!(
                "there is no log of {}'s serial console: its machine was made by hand; `vm create` makes one that has a log",
                self.definition.name
            );
            return Err(failure(FailureKind::BadRequest, text));
        };
        let lines = usize::try_from(lines).unwrap_or(usize::MAX);
        let read = tokio::task::spawn_blocking(move || tail::last_lines(&path, lines, MAX_CONSOLE_BYTES));
        let internal =
            |why: String| failure(FailureKind::Internal, format!("the console's log cannot be read: {why}"));
        read.await.map_err(|error| internal(error.to_string()))?.map_err(|error| internal(error.to_string()))
    }
}

fn failure(kind: FailureKind, text: String) -> Failure {
    Failure::new(kind, Phase::Access, text)
}

fn replaced() -> Failure {
    let text = "the VM was restored, reset or ended since this was begun, or its host agent was started anew; what ran in it then is gone";
    failure(FailureKind::Stale, text.to_owned())
}

fn refused(refusal: Refusal) -> Failure {
    let kind = match refusal.kind {
        RefusalKind::NotAllowed => FailureKind::NotAllowed,
        RefusalKind::NotFound => FailureKind::BadRequest,
        RefusalKind::NoSpace => FailureKind::NoSpace,
        RefusalKind::Gone => return replaced(),
        RefusalKind::Busy | RefusalKind::Failed => FailureKind::GuestAgent,
    };
    failure(kind, refusal.text)
}

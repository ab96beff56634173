//! One VM's half of the protocol: takes orders and results, gives jobs and answers.
//!
//! ```text
//!         PREPARE        ARM          TAKE              save done         COMMIT
//!  Idle ---------> Prepared ----> Armed ----> Saving -------------> Saved --------> Idle
//!   ^                  |            |            |  CLEAR: colouring off, in either   |
//!   |                  v            v            v                                    v
//!   +------- Undo: word := {e+1, e+1, off}, files of this snapshot deleted <------ ABORT
//!
//!         RESTORE                 START
//!  any -----------> Loaded (paused) ----> Idle, one incarnation later
//! ```
//!
//! EVICT is RESTORE without the second half: the VM lives elsewhere from its incarnation on.
//!
//! CONTROL of the VM itself is obeyed in `Idle` only, and never waits: an operator who was told that it failed would not
//! expect it any more.
//!
//! Each arrow is a [`Job`] that the shell carries out; one runs at a time (saving runs beside them),
//! and each is bounded by the shell. An order that comes meanwhile waits in a mailbox of one place; COMMIT or ABORT of what
//! the job belongs to has a place of its own and comes first, so that no order of a later course displaces it. Every order may be repeated; ABORT is legal in every state; a
//! member that waits before its cut for longer than [`PREPARED_LEASE`] or [`ARMED_LEASE`] aborts by itself; after
//! its cut it keeps what it has until it hears COMMIT or ABORT.

use std::time::Duration;

use crate::control::{
    Answer, CutReport, Envelope, Failure, FailureKind, Order, Phase, SavedReport, Undecided, VmState,
};
use crate::guest::Prefix;

mod job;
mod refusal;
#[cfg(test)]
mod tests;

use self::job::step_of;
pub use self::job::{Command, Event, Job, Outcome, Step, phase_of};

/// How long a prepared member waits for ARM: a little longer than the others may take to prepare.
pub const PREPARED_LEASE: Duration = Duration::from_secs(450);
/// How long an armed member, which drops uncoloured packets, waits for TAKE.
pub const ARMED_LEASE: Duration = Duration::from_secs(10);

/// Where a member stands; each variant owns what it needs.
#[derive(Debug, Clone, PartialEq, Hash)]
enum State {
    Idle,
    Prepared(Envelope),
    Armed(Envelope),
    Saving { envelope: Envelope, cut: CutReport },
    Saved { envelope: Envelope, cut: CutReport, saved: SavedReport },
    Loaded(Envelope),
}

/// One VM's participant.
#[derive(Debug, Clone, Hash)]
pub struct Participant {
    state: State,
    running: Option<Job>,
    /// COMMIT or ABORT of the course that the running job belongs to.
    decision: Option<(Envelope, Order)>,
    /// The last other order.
    mailbox: Option<(Envelope, Order)>,
    term: u64,
    incarnation: u64,
    commands: Vec<Command>,
}

impl Participant {
    /// A member outside any snapshot, whose running instance has this incarnation.
    #[must_use]
    pub fn new(incarnation: u64) -> Self {
        Self {
            state: State::Idle,
            running: None,
            decision: None,
            mailbox: None,
            term: 0,
            incarnation,
            commands: Vec::new(),
        }
    }

    /// Envelope of the snapshot or restore that is under way.
    #[must_use]
    pub fn open(&self) -> Option<&Envelope> {
        match &self.state {
            State::Idle => self.running.as_ref().map(|job| &job.envelope),
            State::Prepared(envelope) | State::Armed(envelope) | State::Loaded(envelope) => Some(envelope),
            State::Saving { envelope, .. } | State::Saved { envelope, .. } => Some(envelope),
        }
    }

    /// Is it armed? TAKE comes next, and soon.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        matches!(self.state, State::Armed(_))
    }

    /// Is the local snapshot of [`open`](Self::open) durable?
    #[must_use]
    pub fn is_saved(&self) -> bool {
        matches!(self.state, State::Saved { .. })
    }

    /// The snapshot that a hello asks about: its end was not heard. Also one that waits before its cut, whose ABORT may
    /// have been lost with the connection.
    #[must_use]
    pub fn undecided(&self) -> Option<Undecided> {
        let envelope = match &self.state {
            State::Idle | State::Loaded(_) => return None,
            State::Prepared(envelope) | State::Armed(envelope) => envelope,
            State::Saving { envelope, .. } | State::Saved { envelope, .. } => envelope,
        };
        Some(Undecided { envelope: envelope.clone(), saved: self.is_saved() })
    }

    /// Incarnation of the running instance.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Applies one event; the commands are to be carried out in order.
    pub fn handle(&mut self, event: Event) -> Vec<Command> {
        match event {
            Event::Order(envelope, order) => self.on_order(envelope, order),
            Event::JobDone(result) => self.on_job_done(result),
            Event::SaveDone(result) => self.on_save_done(result),
            Event::Deadline => self.on_deadline(),
        }
        std::mem::take(&mut self.commands)
    }

    fn on_order(&mut self, envelope: Envelope, order: Order) {
        if let Some(failure) = self.staleness(&envelope, &order) {
            self.answer(envelope, Answer::Refused(failure));
            return;
        }
        self.term = envelope.term;
        let Some(job) = &self.running else {
            return self.obey(envelope, order);
        };
        // A repetition may name another instant, or none.
        let same_step = step_of(&order)
            .is_some_and(|step| std::mem::discriminant(&step) == std::mem::discriminant(&job.step));
        let repeated = job.envelope.same_course(&envelope) && same_step;
        let abort = |waiting: &Option<(Envelope, Order)>| matches!(waiting, Some((of, Order::Abort(_))) if of.same_course(&envelope));
        if repeated {
            return;
        }
        if matches!(order, Order::Control(_)) {
            return self.refuse_control(envelope);
        }
        if abort(&self.decision) || abort(&self.mailbox) {
            return;
        }
        let decides = matches!(order, Order::Commit(()) | Order::Abort(_));
        if decides && job.envelope.same_course(&envelope) {
            self.decision = Some((envelope, order));
        } else {
            self.mailbox = Some((envelope, order));
        }
    }

    fn obey(&mut self, envelope: Envelope, order: Order) {
        match order {
            Order::Prepare(members) => self.on_prepare(envelope, members),
            Order::Arm(()) => self.on_arm(envelope),
            Order::Take(at_ns) => self.on_take(envelope, at_ns),
            Order::Clear(()) => self.on_clear(envelope),
            Order::Commit(()) | Order::Abort(_) => self.on_decision(envelope, &order),
            Order::Restore(()) | Order::Evict(_) => self.on_replacement(envelope, order),
            Order::Start(members) => self.on_start(envelope, members),
            Order::Control(_) if self.state != State::Idle => self.refuse_control(envelope),
            other => self.start_order(envelope, &other),
        }
    }

    /// What only the host can do is not a member's affair.
    fn start_order(&mut self, envelope: Envelope, order: &Order) {
        match step_of(order) {
            Some(step) => self.start(Job { envelope, step }),
            None => self.refuse(envelope, phase_of(order)),
        }
    }

    fn on_prepare(&mut self, envelope: Envelope, members: Vec<Prefix>) {
        match &self.state {
            State::Prepared(open) if open.same_course(&envelope) => {
                self.answer(envelope, Answer::Prepared(()));
            }
            State::Idle => self.start(Job { envelope, step: Step::Prepare(members) }),
            // The ABORT of the earlier attempt was lost: undo it first. One whose saving never ended was not committed either.
            State::Prepared(open) | State::Armed(open) | State::Saving { envelope: open, .. }
                if open.epoch < envelope.epoch =>
            {
                let undo = Job { envelope: open.clone(), step: Step::Undo };
                self.mailbox = Some((envelope, Order::Prepare(members)));
                self.start(undo);
            }
            // How the earlier one ended was not heard, and may have been COMMIT: its files stay until the next hello asks.
            State::Saved { envelope: open, .. } if open.epoch < envelope.epoch => {
                self.state = State::Idle;
                self.start(Job { envelope, step: Step::Prepare(members) });
            }
            _ => self.refuse(envelope, Phase::Prepare),
        }
    }

    fn on_arm(&mut self, envelope: Envelope) {
        match &self.state {
            State::Armed(open) if open.same_course(&envelope) => self.answer(envelope, Answer::Armed(())),
            State::Prepared(open) if open.same_course(&envelope) => {
                self.start(Job { envelope, step: Step::Arm })
            }
            _ => self.refuse(envelope, Phase::Arm),
        }
    }

    fn on_take(&mut self, envelope: Envelope, at_ns: Option<u64>) {
        match &self.state {
            State::Armed(open) if open.same_course(&envelope) => {
                self.start(Job { envelope, step: Step::Cut(at_ns) })
            }
            State::Saving { envelope: open, cut } if open.same_course(&envelope) => {
                let answer = Answer::Cut(cut.clone());
                self.answer(envelope, answer);
            }
            State::Saved { envelope: open, cut, saved } if open.same_course(&envelope) => {
                let (cut, saved) = (Answer::Cut(cut.clone()), Answer::Saved(saved.clone()));
                self.answer(envelope.clone(), cut);
                self.answer(envelope, saved);
            }
            _ => self.refuse(envelope, Phase::Take),
        }
    }

    fn on_clear(&mut self, envelope: Envelope) {
        match &self.state {
            State::Saving { envelope: open, .. } | State::Saved { envelope: open, .. }
                if open.same_course(&envelope) =>
            {
                self.start(Job { envelope, step: Step::Clear });
            }
            // COMMIT or ABORT has already cleared: a repeated CLEAR changes nothing.
            State::Idle => {}
            _ => self.refuse(envelope, Phase::Clear),
        }
    }

    /// COMMIT needs a durable local snapshot; ABORT is legal wherever its snapshot is open, and in
    /// `Idle`, where both repeat what was done. A decision about another snapshot than the open one is late.
    fn on_decision(&mut self, envelope: Envelope, order: &Order) {
        let legal = match (&self.state, order) {
            (State::Idle, _) => true,
            (State::Loaded(_), _) => false,
            (State::Saved { envelope: open, .. }, Order::Commit(())) => open.same_course(&envelope),
            (_, Order::Commit(())) => false,
            _ => self.open().is_some_and(|open| open.same_course(&envelope)),
        };
        if legal {
            self.start_order(envelope, order);
        } else {
            self.refuse(envelope, phase_of(order));
        }
    }

    /// RESTORE and EVICT: the instance that is there ends.
    fn on_replacement(&mut self, envelope: Envelope, order: Order) {
        match &self.state {
            State::Loaded(open) if open.same_course(&envelope) && order == Order::Restore(()) => {
                self.answer(envelope, Answer::Loaded(()));
            }
            // Of a durable local snapshot it is not known whether it was committed, so it stays as it is.
            State::Idle | State::Loaded(_) | State::Saved { .. } => self.start_order(envelope, &order),
            State::Prepared(open) | State::Armed(open) | State::Saving { envelope: open, .. } => {
                let undo = Job { envelope: open.clone(), step: Step::Undo };
                self.mailbox = Some((envelope, order));
                self.start(undo);
            }
        }
    }

    fn on_start(&mut self, envelope: Envelope, members: Vec<Prefix>) {
        match &self.state {
            State::Loaded(open) if open.same_course(&envelope) => {
                self.start(Job { envelope, step: Step::Start(members) })
            }
            State::Idle if self.incarnation == envelope.incarnation => {
                self.answer(envelope, Answer::Started(Vec::new()));
            }
            _ => self.refuse(envelope, Phase::Start),
        }
    }

    fn start(&mut self, job: Job) {
        self.commands.push(Command::WakeAfter(None));
        self.commands.push(Command::Do(job.clone()));
        self.running = Some(job);
    }

    fn on_job_done(&mut self, result: Result<Outcome, Failure>) {
        let Some(job) = self.running.take() else { return };
        match result {
            Ok(outcome) => self.on_success(job, outcome),
            Err(failure) => self.on_failure(job, failure),
        }
        while self.running.is_none()
            && let Some((envelope, order)) = self.decision.take().or_else(|| self.mailbox.take())
        {
            self.obey(envelope, order);
        }
    }

    fn on_success(&mut self, Job { envelope, step }: Job, outcome: Outcome) {
        let answer = match (step, outcome) {
            (Step::Prepare(_), _) => {
                self.wait_before_cut(State::Prepared(envelope.clone()), PREPARED_LEASE);
                Answer::Prepared(())
            }
            (Step::Arm, _) => {
                self.wait_before_cut(State::Armed(envelope.clone()), ARMED_LEASE);
                Answer::Armed(())
            }
            (Step::Cut(_), Outcome::Cut(cut)) => {
                self.state = State::Saving { envelope: envelope.clone(), cut: cut.clone() };
                self.commands.push(Command::Save(envelope.clone()));
                Answer::Cut(cut)
            }
            (Step::Cut(_), _) => Answer::Refused(Failure::new(
                FailureKind::Internal,
                Phase::Take,
                "the cut ended without a report of its times",
            )),
            (Step::Clear, _) => return,
            (Step::Commit | Step::Undo, _) => {
                self.state = State::Idle;
                Answer::Settled(())
            }
            (Step::Poll | Step::Verify, _) => {
                self.wait_on();
                Answer::Ready(())
            }
            (Step::Restore, _) => {
                self.incarnation = envelope.incarnation;
                self.state = State::Loaded(envelope.clone());
                Answer::Loaded(())
            }
            (Step::Evict(_), _) => {
                self.incarnation = envelope.incarnation;
                self.state = State::Idle;
                Answer::Evicted(())
            }
            (Step::Start(_), outcome) => {
                self.state = State::Idle;
                Answer::Started(match outcome {
                    Outcome::Started(problems) => problems,
                    _ => Vec::new(),
                })
            }
            (Step::Delete, _) => {
                self.wait_on();
                Answer::Deleted(())
            }
            (Step::Control(_), Outcome::Controlled(done)) => {
                // What was booted may be of another incarnation than what ran last; what has ended stays what it was.
                if done.state != VmState::Stopped {
                    self.incarnation = done.incarnation;
                }
                Answer::Controlled(done)
            }
            (Step::Control(_), _) => Answer::Refused(Failure::new(
                FailureKind::Internal,
                Phase::Control,
                "it ended without a report",
            )),
        };
        self.answer(envelope, answer);
    }

    fn on_failure(&mut self, Job { envelope, step }: Job, failure: Failure) {
        self.answer(envelope.clone(), Answer::Refused(failure));
        match step {
            // Whatever was half done is undone at once, without waiting for the coordinator's ABORT.
            Step::Prepare(_) | Step::Arm | Step::Cut(_) => self.start(Job { envelope, step: Step::Undo }),
            Step::Undo => self.state = State::Idle,
            // What is durable without its mark is reported as undecided at the next hello, and COMMIT is
            // legal in `Idle`; a member that stayed would refuse every later snapshot.
            Step::Restore | Step::Commit | Step::Evict(_) => self.state = State::Idle,
            Step::Poll | Step::Delete | Step::Verify => self.wait_on(),
            Step::Clear | Step::Start(_) | Step::Control(_) => {}
        }
    }

    fn on_save_done(&mut self, result: Result<SavedReport, Failure>) {
        let State::Saving { envelope, cut } = &self.state else {
            return;
        };
        let (envelope, cut) = (envelope.clone(), cut.clone());
        match result {
            Ok(saved) => {
                self.answer(envelope.clone(), Answer::Saved(saved.clone()));
                self.state = State::Saved { envelope, cut, saved };
            }
            Err(failure) => {
                self.answer(envelope.clone(), Answer::Refused(failure));
                if self.running.is_none() {
                    self.start(Job { envelope, step: Step::Undo });
                } else {
                    self.decision = Some((envelope, Order::Abort("saving failed".to_owned())));
                }
            }
        }
    }

    fn on_deadline(&mut self) {
        let (envelope, waited) = match &self.state {
            State::Prepared(envelope) => (envelope, PREPARED_LEASE),
            State::Armed(envelope) => (envelope, ARMED_LEASE),
            _ => return,
        };
        if self.running.is_some() {
            return;
        }
        let envelope = envelope.clone();
        let text = format!("no order came from the coordinator for {} s", waited.as_secs());
        self.answer(
            envelope.clone(),
            Answer::Refused(Failure::new(FailureKind::TimedOut, Phase::Abort, text)),
        );
        self.start(Job { envelope, step: Step::Undo });
    }

    fn wait_before_cut(&mut self, state: State, lease: Duration) {
        self.state = state;
        self.commands.push(Command::WakeAfter(Some(lease)));
    }

    /// After a job that changes nothing: a member that waits for its cut goes on with a whole lease.
    fn wait_on(&mut self) {
        let lease = match self.state {
            State::Prepared(_) => PREPARED_LEASE,
            State::Armed(_) => ARMED_LEASE,
            _ => return,
        };
        self.commands.push(Command::WakeAfter(Some(lease)));
    }

    fn answer(&mut self, envelope: Envelope, answer: Answer) {
        self.commands.push(Command::Answer(envelope, answer));
    }
}

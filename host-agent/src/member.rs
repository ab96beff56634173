//! The shell around one VM's [`Participant`]: one task that owns it, one `select!`, no shared state.
//!
//! Jobs are futures of [`Works`]; each is bounded by [`limit`]. Saving runs beside them and ends when
//! it is dropped, which is how an abort stops it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use unasnap_protocol::control::{
    Answer, Envelope, Failure, FailureKind, Order, Phase, SavedReport, Undecided, VmReport, VmState,
};
use unasnap_protocol::participant::{Command, Event, Job, Outcome, Participant, Step};

use crate::works::Works;

/// How often a member looks at its VM.
const LOOK_EVERY: Duration = Duration::from_secs(1);

type Pending<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

/// What the rest of the host agent sees of a member.
#[derive(Clone)]
pub struct Handle {
    orders: mpsc::Sender<(Envelope, Order)>,
    leave: mpsc::Sender<Leave>,
    standing: watch::Receiver<Standing>,
    works: Arc<Works>,
}

/// The wish that a member's task ends; the answer is what is under way there, if it is not idle.
type Leave = oneshot::Sender<Result<(), String>>;

/// A member at one moment.
#[derive(Debug, Clone)]
pub struct Standing {
    /// For the inventory.
    pub report: VmReport,
    /// The snapshot that is under way.
    pub undecided: Option<Undecided>,
}

impl Handle {
    /// Hands an order over; a member whose mailbox is full (a flood) loses it, as a network might.
    pub fn order(&self, envelope: Envelope, order: Order) {
        if let Err(error) = self.orders.try_send((envelope, order)) {
            tracing::warn!(%error, "a member cannot take more orders; this one is dropped");
        }
    }

    /// Its VM.
    #[must_use]
    pub fn works(&self) -> &Arc<Works> {
        &self.works
    }

    /// Ends the task, so that nobody but the caller has to do with the VM. Success when it has ended already.
    ///
    /// # Errors
    /// What is under way there: the task goes on.
    pub async fn end(&self) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        if self.leave.send(answer).await.is_err() {
            return Ok(());
        }
        // A task that ended meanwhile answers nobody.
        answered.await.unwrap_or(Ok(()))
    }

    /// The same, for a task of its own.
    #[must_use]
    pub fn share_works(&self) -> Arc<Works> {
        Arc::clone(&self.works)
    }

    /// The member as it stood a second ago at most.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }
}

/// Starts the task of one member; it ends when the handle and its copies are dropped, or by [`Handle::end`].
pub async fn start(works: Arc<Works>, answers: mpsc::UnboundedSender<(Envelope, Answer)>) -> Handle {
    let (order_sender, orders) = mpsc::channel(64);
    let (leave, leaving) = mpsc::channel(1);
    let standing = Standing { report: works.report().await, undecided: None };
    let (standing_sender, standing) = watch::channel(standing);
    let participant = Participant::new(works.incarnation().await);
    let member = Member {
        participant,
        works: works.clone(),
        answers,
        job: None,
        saving: None,
        looking: None,
        wake: None,
        standing: standing_sender,
    };
    tokio::spawn(member.run(orders, leaving));
    Handle { orders: order_sender, leave, standing, works }
}

struct Member {
    participant: Participant,
    works: Arc<Works>,
    answers: mpsc::UnboundedSender<(Envelope, Answer)>,
    job: Pending<Result<Outcome, Failure>>,
    saving: Pending<Result<SavedReport, Failure>>,
    looking: Pending<VmReport>,
    wake: Option<Instant>,
    standing: watch::Sender<Standing>,
}

impl Member {
    async fn run(
        mut self,
        mut orders: mpsc::Receiver<(Envelope, Order)>,
        mut leaving: mpsc::Receiver<Leave>,
    ) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some((envelope, order)) => Event::Order(envelope, order),
                    None => return,
                },
                Some(answer) = leaving.recv() => {
                    let open = self.participant.open().map(|open| open.snapshot.to_string());
                    let leaves = open.map_or(Ok(()), Err);
                    let ends = leaves.is_ok();
                    // Whoever asked and went away has no use for the answer.
                    let heard = answer.send(leaves).is_ok();
                    if ends && heard {
                        return;
                    }
                    continue;
                }
                result = ended(&mut self.job) => Event::JobDone(result),
                result = ended(&mut self.saving) => Event::SaveDone(result),
                () = until(self.wake) => Event::Deadline,
                report = ended(&mut self.looking) => {
                    self.show(report);
                    continue;
                }
                _ = look.tick(), if self.may_look() => {
                    let works = self.works.clone();
                    self.looking = Some(Box::pin(async move { works.report().await }));
                    continue;
                }
            };
            match &event {
                Event::Deadline => self.wake = None,
                Event::JobDone(Ok(outcome)) => self.show_outcome(outcome),
                _ => {}
            }
            for command in self.participant.handle(event) {
                self.carry_out(command);
            }
            self.show_undecided();
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Answer(envelope, answer) => {
                tracing::info!(vm = %envelope.vm, snapshot = %envelope.snapshot, answer = answer.name());
                // The receiver lives as long as the process.
                let _ = self.answers.send((envelope, answer));
            }
            Command::Do(job) => {
                if job.step == Step::Undo {
                    self.saving = None;
                }
                // The question how the VM is must not stand in the way of the cut.
                self.looking = None;
                self.job = Some(Box::pin(bounded(self.works.clone(), job)));
            }
            Command::Save(envelope) => {
                let works = self.works.clone();
                self.saving = Some(Box::pin(async move { works.save(&envelope).await }));
            }
            Command::WakeAfter(after) => self.wake = after.map(|after| Instant::now() + after),
        }
    }

    /// A VM in the middle of a job is not asked how it is, nor one that is armed: its guest would still be busy with the
    /// answer when TAKE comes.
    fn may_look(&self) -> bool {
        self.job.is_none() && self.looking.is_none() && !self.participant.is_armed()
    }

    fn show(&self, report: VmReport) {
        self.standing.send_modify(|standing| standing.report = report);
    }

    /// At once, and not at the next look: whoever is told that a VM was stopped does not see it running afterwards.
    fn show_outcome(&self, outcome: &Outcome) {
        let (state, incarnation) = match outcome {
            Outcome::Started(_) => (VmState::Running, None),
            Outcome::Controlled(done) => (done.state, Some(done.incarnation)),
            Outcome::Done | Outcome::Cut(_) => return,
        };
        self.standing.send_modify(|Standing { report, .. }| {
            report.state = state;
            report.incarnation = incarnation.unwrap_or(report.incarnation);
        });
    }

    /// At once, and not at the next look: a hello that did not know of a cut would leave it undecided.
    fn show_undecided(&self) {
        let undecided = self.participant.undecided();
        self.standing.send_if_modified(|standing| {
            let changed = standing.undecided != undecided;
            standing.undecided = undecided;
            changed
        });
    }
}

/// The result of a pending future, taken out; waits for ever when there is none.
async fn ended<T>(pending: &mut Pending<T>) -> T {
    match pending {
        Some(future) => {
            let result = future.await;
            *pending = None;
            result
        }
        None => std::future::pending().await,
    }
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(wake) => sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

async fn bounded(works: Arc<Works>, job: Job) -> Result<Outcome, Failure> {
    let (limit, phase) = limit(&job.step);
    let vm = job.envelope.vm.clone();
    match timeout(limit, works.carry_out(job)).await {
        Ok(result) => result,
        Err(_) => {
            let text = format!("the host agent gave {vm} up after {} s", limit.as_secs());
            Err(Failure::new(FailureKind::TimedOut, phase, text))
        }
    }
}

/// How long each step may take, and the phase it belongs to.
fn limit(step: &Step) -> (Duration, Phase) {
    let (seconds, phase) = match step {
        Step::Prepare(_) => (430, Phase::Prepare),
        Step::Arm => (3, Phase::Arm),
        Step::Cut(_) => (4, Phase::Take),
        Step::Clear => (3, Phase::Clear),
        Step::Commit => (8, Phase::Commit),
        Step::Undo => (8, Phase::Abort),
        Step::Poll => (120, Phase::Poll),
        Step::Restore => (280, Phase::Restore),
        Step::Start(_) => (25, Phase::Start),
        Step::Delete => (60, Phase::Delete),
        Step::Verify => (3600, Phase::Verify),
        Step::Evict(_) => (50, Phase::Evict),
        Step::Control(_) => (150, Phase::Control),
    };
    (Duration::from_secs(seconds), phase)
}

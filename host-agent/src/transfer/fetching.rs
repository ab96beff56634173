//! Orders to fetch: each is a task of its own, which outlives the connection to the coordinator and is not begun twice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval};
use unasnap_protocol::control::{Answer, Envelope, Moved, Source};
use unasnap_protocol::name::Name;

use super::receiving::Receiver;
use super::telling::TELL_EVERY;

/// Snapshot and VM.
type Part = (Name, Name);

/// All that are under way.
#[derive(Clone)]
pub struct Fetcher {
    receiver: Arc<Receiver>,
    answers: mpsc::UnboundedSender<(Envelope, Answer)>,
    running: Arc<Mutex<BTreeMap<Part, Running>>>,
}

struct Running {
    /// Under which whoever ordered it last hears of it.
    envelope: Envelope,
    task: Option<AbortHandle>,
}

impl Fetcher {
    /// Nothing is under way.
    #[must_use]
    pub fn new(receiver: Arc<Receiver>, answers: mpsc::UnboundedSender<(Envelope, Answer)>) -> Self {
        Self { receiver, answers, running: Arc::default() }
    }

    /// Begins, or goes on under this envelope.
    pub fn fetch(&self, envelope: Envelope, source: Source) {
        let part = (envelope.snapshot.clone(), envelope.vm.clone());
        let mut running = self.running();
        if let Some(known) = running.get_mut(&part) {
            known.envelope = envelope;
            return;
        }
        running.insert(part.clone(), Running { envelope: envelope.clone(), task: None });
        let this = self.clone();
        let task = tokio::spawn(async move { this.run(envelope, &source).await });
        if let Some(known) = running.get_mut(&part) {
            known.task = Some(task.abort_handle());
        }
    }

    /// Ends what is under way for this part, because its files are to be deleted.
    pub fn cancel(&self, snapshot: &Name, vm: &Name) {
        let ended = self.running().remove(&(snapshot.clone(), vm.clone()));
        if let Some(task) = ended.and_then(|running| running.task) {
            task.abort();
        }
    }

    async fn run(&self, envelope: Envelope, source: &Source) {
        let (progress, mut moved) = watch::channel(Moved::default());
        let part = (envelope.snapshot.clone(), envelope.vm.clone());
        let fetch = self.receiver.fetch(&envelope, source, &progress);
        tokio::pin!(fetch);
        let mut tell = interval(TELL_EVERY);
        tell.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let result = loop {
            tokio::select! {
                result = &mut fetch => break result,
                _ = tell.tick() => {
                    let far = *moved.borrow_and_update();
                    let under = self.running().get(&part).map(|known| known.envelope.clone());
                    self.answer(under, Answer::Fetching(far));
                }
            }
        };
        let under = self.running().remove(&part).map(|known| known.envelope);
        if result.is_err() {
            // What it has come to counts, too.
            self.answer(under.clone(), Answer::Fetching(*moved.borrow_and_update()));
        }
        self.answer(
            under,
            match result {
                Ok(moved) => Answer::Fetched(moved),
                Err(failure) => Answer::Refused(failure),
            },
        );
    }

    /// One that was cancelled says nothing more.
    fn answer(&self, under: Option<Envelope>, answer: Answer) {
        if let Some(envelope) = under {
            // The receiver lives as long as the process.
            let _ = self.answers.send((envelope, answer));
        }
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<Part, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! What operators do in guests, on its way: each turn is a task of its own, so that no member's orders wait for it.

use std::sync::Arc;

use tokio::sync::mpsc;
use unasnap_protocol::access::{AccessAnswer, AccessOrder};
use unasnap_protocol::control::Envelope;

use crate::works::Works;

/// Answers that may wait for the connection to the coordinator.
const ANSWERS: usize = 64;

/// Where turns are begun.
pub struct Desk {
    answers: mpsc::Sender<(Envelope, AccessAnswer)>,
}

/// A desk, and where its answers come out.
#[must_use]
pub fn desk() -> (Desk, mpsc::Receiver<(Envelope, AccessAnswer)>) {
    let (answers, given) = mpsc::channel(ANSWERS);
    (Desk { answers }, given)
}

impl Desk {
    /// Carries out what is wanted of the guest of `works`. Bounded in time; the coordinator has one turn of a conversation
    /// under way at most, and that bounds their number.
    pub fn begin(&self, works: Arc<Works>, envelope: Envelope, order: AccessOrder) {
        let answers = self.answers.clone();
        tokio::spawn(async move {
            let answer = works.access(order).await;
            // The receiver lives as long as the process.
            let _ = answers.send((envelope, answer)).await;
        });
    }
}

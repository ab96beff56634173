//! What a participant does not obey, and why.

use super::{Participant, State, phase_of};
use crate::control::{Answer, Envelope, Failure, FailureKind, Order, Phase};

impl Participant {
    /// Terms and incarnations fence orders of a dead coordinator and of before a restore.
    pub(super) fn staleness(&self, envelope: &Envelope, order: &Order) -> Option<Failure> {
        let harmless = matches!(order, Order::Delete(()) | Order::Verify(()) | Order::Control(_));
        let restoring = harmless
            || matches!(order, Order::Poll(()) | Order::Restore(()) | Order::Start(_) | Order::Evict(_));
        // How a snapshot ended concerns its files, also where the instance has died since: then this is incarnation 0.
        let decides = self.incarnation == 0 && matches!(order, Order::Commit(()) | Order::Abort(_));
        let text = if envelope.term < self.term {
            format!("coordinator term {} has ended; term {} leads now", envelope.term, self.term)
        } else if envelope.incarnation < self.incarnation && !harmless {
            format!("incarnation {} has ended; {} runs now", envelope.incarnation, self.incarnation)
        } else if envelope.incarnation > self.incarnation && !restoring && !decides {
            format!("incarnation {} was never restored here; {} runs", envelope.incarnation, self.incarnation)
        } else {
            return None;
        };
        Some(Failure::new(FailureKind::Stale, phase_of(order), text))
    }

    pub(super) fn refuse_control(&mut self, envelope: Envelope) {
        let what = match self.open() {
            Some(open) if matches!(self.state, State::Loaded(_)) => {
                format!(
                    "the restore of {} has not ended here; `unasnap restore {}` ends it",
                    open.snapshot, open.snapshot
                )
            }
            Some(open) => format!("{} is under way here; try again when it has ended", open.snapshot),
            None => "something is under way here; try again when it has ended".to_owned(),
        };
        self.answer(envelope, Answer::Refused(Failure::new(FailureKind::Stale, Phase::Control, what)));
    }

    pub(super) fn refuse(&mut self, envelope: Envelope, phase: Phase) {
        let standing = match self.open() {
            Some(open) => format!("it is busy with snapshot {}", open.snapshot),
            None => "it is idle".to_owned(),
        };
        let failure = Failure::new(
            FailureKind::Stale,
            phase,
            format!("the order does not fit the member's state: {standing}"),
        );
        self.answer(envelope, Answer::Refused(failure));
    }
}

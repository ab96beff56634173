//! The cut of one VM, with its flip: in one piece in the pause, or as a straddle around it.

use tokio::time::sleep;
use unasnap_channel::steady_ns;
use unasnap_protocol::control::{Failure, FailureKind, Phase};
use unasnap_protocol::fault::Fault;
use unasnap_protocol::guest::Epoch;

use super::memory::MemoryError;
use super::{Colours, Way, late_failure};
use crate::guest_channel::GuestError;
use crate::hypervisor::{CutTimes, InPause, Vm};
use crate::works::hypervisor_failure;

/// A cut, and when the colour changed: clock of [`steady_ns`].
pub struct Cut {
    /// The driver's times.
    pub times: CutTimes,
    /// The send half.
    pub send_flipped_ns: u64,
    /// The receive half.
    pub receive_flipped_ns: u64,
}

impl Colours {
    /// The cut, with the flip where the way has it.
    ///
    /// # Errors
    /// The driver's, or the flip's: then the cut may have been made and is to be discarded.
    pub async fn cut(&mut self, vm: &mut dyn Vm, epoch: Epoch) -> Result<Cut, Failure> {
        match &mut self.way {
            Way::None => atomic(vm, Moment::Stopped, || Ok(())).await,
            Way::Guest => self.straddle(vm, epoch).await,
            Way::Host(Some(programs)) => {
                // Not later: what other members send after their cuts may come at any moment, and would be dropped.
                let mut flip = || programs.change(&|word| word.flip(epoch, epoch + 1));
                let flip = || flip().map(drop).map_err(|late| late_failure(late.found, Phase::Take));
                atomic(vm, Moment::Stopped, flip).await
            }
            // Not earlier: the snapshot would hold the new word. What others send meanwhile waits in the taps' queues.
            Way::Memory(Some(word)) => {
                atomic(vm, Moment::Fixed, || word.flip(epoch).map_err(memory_failure)).await
            }
            Way::Host(None) | Way::Memory(None) => {
                let text = "this member was not prepared by this host agent";
                Err(Failure::new(FailureKind::Stale, Phase::Take, text))
            }
        }
    }

    /// The straddling cut: between the two flips this member neither sends as PRESNAPSHOT nor receives POSTSNAPSHOT,
    /// so the instant between them is consistent wherever it falls.
    async fn straddle(&mut self, vm: &mut dyn Vm, epoch: Epoch) -> Result<Cut, Failure> {
        let guest_failure = |error: GuestError| error.during(Phase::Take);
        if self.fault != Fault::SendFlippedLate {
            self.guest.flip_send(epoch).await.map_err(guest_failure)?;
        }
        let send_flipped_ns = steady_ns();
        if self.fault == Fault::ReceiveFlippedEarly {
            self.guest.flip_receive(epoch).await.map_err(guest_failure)?;
            sleep(Fault::LATENESS).await;
        }
        let times = vm.cut(InPause::nothing()).await;
        let times = times.map_err(|error| hypervisor_failure(&error, Phase::Take))?;
        if self.fault == Fault::SendFlippedLate {
            sleep(Fault::LATENESS).await;
            self.guest.flip_send(epoch).await.map_err(guest_failure)?;
        }
        if self.fault != Fault::ReceiveFlippedEarly {
            self.guest.flip_receive(epoch).await.map_err(guest_failure)?;
        }
        Ok(Cut { times, send_flipped_ns, receive_flipped_ns: steady_ns() })
    }
}

/// When in the pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Stopped,
    Fixed,
}

/// A cut with `flip` in its pause.
async fn atomic(
    vm: &mut dyn Vm,
    moment: Moment,
    flip: impl FnOnce() -> Result<(), Failure> + Send,
) -> Result<Cut, Failure> {
    let mut outcome = None;
    let flip = Box::new(|| outcome = Some((flip(), steady_ns())));
    let in_pause = match moment {
        Moment::Stopped => InPause { stopped: flip, ..InPause::nothing() },
        Moment::Fixed => InPause { fixed: flip, ..InPause::nothing() },
    };
    let times = vm.cut(in_pause).await.map_err(|error| hypervisor_failure(&error, Phase::Take))?;
    let text = "the driver made a cut without a pause";
    let (flipped, at) = outcome.ok_or_else(|| Failure::new(FailureKind::Internal, Phase::Take, text))?;
    flipped?;
    Ok(Cut { times, send_flipped_ns: at, receive_flipped_ns: at })
}

/// A word that is not what it has to be means a member that is late; anything else, a guest that cannot be trusted.
fn memory_failure(error: MemoryError) -> Failure {
    let kind = match error {
        MemoryError::Word(_) => FailureKind::LateCut,
        _ => FailureKind::Colouring,
    };
    Failure::new(kind, Phase::Take, error.to_string())
}

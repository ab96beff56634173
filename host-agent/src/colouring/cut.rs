//! The cut of one VM, with its flip: in one piece in the pause, or as a straddle around it.

use tokio::time::sleep;
use unasnap_channel::steady_ns;
use unasnap_protocol::control::{self, Failure, FailureKind, Phase};
use unasnap_protocol::cut::{Half, Moment, flips};
use unasnap_protocol::fault::Fault;
use unasnap_protocol::guest::Epoch;

use super::memory::MemoryError;
use super::{Colours, Way, late_failure};
use crate::guest_channel::GuestError;
use crate::hypervisor::{CutTimes, InPause, Vm};
use crate::together::Pause;
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
    pub async fn cut(&mut self, vm: &mut dyn Vm, epoch: Epoch, pause: Pause) -> Result<Cut, Failure> {
        match &mut self.way {
            // For control experiments: these cuts are as far apart as they happen to be.
            Way::None => atomic(vm, in_pause(control::Colouring::None), Pause::alone(), || Ok(())).await,
            Way::Guest => self.straddle(vm, epoch, pause).await,
            Way::Host(Some(programs)) => {
                // Not later: what other members send after their cuts may come at any moment, and would be dropped.
                let mut flip = || programs.change(&|word| word.flip(epoch, epoch + 1));
                let flip = || flip().map(drop).map_err(|late| late_failure(late.found, Phase::Take));
                atomic(vm, in_pause(control::Colouring::Host), pause, flip).await
            }
            // Not earlier: the snapshot would hold the new word. What others send meanwhile waits in the taps' queues.
            Way::Memory(Some(word)) => {
                let flip = || word.flip(epoch).map_err(memory_failure);
                atomic(vm, in_pause(control::Colouring::Memory), pause, flip).await
            }
            Way::Host(None) | Way::Memory(None) => {
                let text = "this member was not prepared by this host agent";
                Err(Failure::new(FailureKind::Stale, Phase::Take, text))
            }
        }
    }

    /// The straddling cut: between the two flips this member neither sends as PRESNAPSHOT nor receives POSTSNAPSHOT,
    /// so the instant between them is consistent wherever it falls.
    async fn straddle(&mut self, vm: &mut dyn Vm, epoch: Epoch, pause: Pause) -> Result<Cut, Failure> {
        let mut flipped_ns = FlippedNs::default();
        self.flip_halves(Moment::Before, epoch, &mut flipped_ns).await?;
        if self.fault == Fault::ReceiveFlippedEarly {
            sleep(Fault::LATENESS).await;
        }
        let times = vm.cut(together(pause, || {}, || {})).await;
        let times = times.map_err(|error| hypervisor_failure(&error, Phase::Take))?;
        if self.fault == Fault::SendFlippedLate {
            sleep(Fault::LATENESS).await;
        }
        self.flip_halves(Moment::Resumed, epoch, &mut flipped_ns).await?;
        Ok(Cut { times, send_flipped_ns: flipped_ns.send, receive_flipped_ns: flipped_ns.receive })
    }

    async fn flip_halves(
        &mut self,
        now: Moment,
        epoch: Epoch,
        flipped_ns: &mut FlippedNs,
    ) -> Result<(), Failure> {
        let order = flips(control::Colouring::Guest, self.fault);
        for (_, half) in order.iter().filter(|(moment, _)| *moment == now) {
            let guest_failure = |error: GuestError| error.during(Phase::Take);
            if matches!(half, Half::Send | Half::Both) {
                self.guest.flip_send(epoch).await.map_err(guest_failure)?;
                flipped_ns.send = steady_ns();
            }
            if matches!(half, Half::Receive | Half::Both) {
                self.guest.flip_receive(epoch).await.map_err(guest_failure)?;
                flipped_ns.receive = steady_ns();
            }
        }
        Ok(())
    }
}

/// When the halves of a straddle were flipped.
#[derive(Default)]
struct FlippedNs {
    send: u64,
    receive: u64,
}

/// Where in the pause the flip of a way without a straddle is.
fn in_pause(way: control::Colouring) -> Moment {
    flips(way, Fault::None).first().map_or(Moment::Stopped, |(moment, _)| *moment)
}

/// A cut with `flip` in its pause.
async fn atomic(
    vm: &mut dyn Vm,
    moment: Moment,
    pause: Pause,
    flip: impl FnOnce() -> Result<(), Failure> + Send,
) -> Result<Cut, Failure> {
    let mut outcome = None;
    let flip = || outcome = Some((flip(), steady_ns()));
    let in_pause = match moment {
        Moment::Before | Moment::Stopped => together(pause, flip, || {}),
        Moment::Fixed | Moment::Resumed => together(pause, || {}, flip),
    };
    let times = vm.cut(in_pause).await.map_err(|error| hypervisor_failure(&error, Phase::Take))?;
    let text = "the driver made a cut without a pause";
    let (flipped, at) = outcome.ok_or_else(|| Failure::new(FailureKind::Internal, Phase::Take, text))?;
    flipped?;
    Ok(Cut { times, send_flipped_ns: at, receive_flipped_ns: at })
}

/// The VM stands still, and with the flips of its way nothing POSTSNAPSHOT is dropped any more: that is announced as soon as
/// it is so, and the wait for the others falls into the rest of the pause.
fn together<'a>(
    pause: Pause,
    stopped: impl FnOnce() + Send + 'a,
    fixed: impl FnOnce() + Send + 'a,
) -> InPause<'a> {
    let standing = pause.clone();
    let stopped = move || {
        stopped();
        standing.announce();
    };
    InPause { stopped: Box::new(stopped), fixed: Box::new(fixed), run_on: Box::pin(pause.end()) }
}

/// A word that is not what it has to be means a member that is late; anything else, a guest that cannot be trusted.
fn memory_failure(error: MemoryError) -> Failure {
    let kind = match error {
        MemoryError::Word(_) => FailureKind::LateCut,
        _ => FailureKind::Colouring,
    };
    Failure::new(kind, Phase::Take, error.to_string())
}

//! Deployments that give way to the users of their hosts: put aside while somebody sits at one of them, brought back when
//! nobody does. What an operator has paused stays paused.
//!
//! ```text
//!            somebody sits at a host, a VM runs: pause
//!   runs  ────────────────────────────────────────────▶  paused for a user
//!         ◀────────────────────────────────────────────
//!            nobody sits at any, all hosts are here: resume
//! ```

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::Reply;
use unasnap_protocol::power::GivingWay;

use super::journal::{Result, Yielding};
use super::owner::{Owner, tell};
use super::pausing::runs;

/// From one attempt to pause or resume a deployment to the next.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// Replies to an attempt that wait to be logged.
const QUEUE: usize = 64;

/// What has to be done for a deployment now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Put it aside.
    Pause,
    /// Bring it back.
    Resume,
    /// It runs again, by whomever: what was remembered is over.
    Forget,
    /// Nothing.
    Stay,
}

/// What is known of a deployment that gives way.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Does somebody sit at one of its hosts?
    user_here: bool,
    /// Are all its hosts connected?
    complete: bool,
    /// Does any of its VMs run?
    any_runs: bool,
    /// Do all?
    all_run: bool,
    /// Was it put aside for a user?
    for_user: bool,
}

impl Seen {
    fn turn(self) -> Turn {
        match self {
            Self { user_here: true, any_runs: true, .. } => Turn::Pause,
            Self { user_here: true, .. } | Self { for_user: false, .. } => Turn::Stay,
            Self { all_run: true, .. } => Turn::Forget,
            // Where it was not even saved, some of it may be off for another reason.
            Self { complete: true, .. } => Turn::Resume,
            Self { complete: false, .. } => Turn::Stay,
        }
    }
}

impl Owner {
    /// `pause --for-user`.
    pub(super) fn set_giving_way(&mut self, wanted: GivingWay, replies: mpsc::Sender<Reply>) -> Result<()> {
        let reply = match self.choose_deployment(Some(wanted.deployment)) {
            Ok(deployment) => {
                let known = self.journal.yielding(&deployment);
                self.journal.set_yielding(&deployment, wanted.on.then(|| known.unwrap_or_default()))?;
                Reply::GivesWay(GivingWay { deployment, on: wanted.on })
            }
            Err(error) => Reply::Failed(error),
        };
        tell(&vec![replies], &reply);
        Ok(())
    }

    /// Once a second: whatever has to be done for the users of the hosts is begun.
    pub(super) fn give_way(&mut self) -> Result<()> {
        let now = Instant::now();
        let is_due = |name: &&Name| self.yield_after.get(*name).is_none_or(|after| *after <= now);
        let due: Vec<_> = self.journal.all_yielding().filter(is_due).cloned().collect();
        for deployment in due {
            if self.open_course(&deployment).is_some() {
                continue;
            }
            match self.seen(&deployment).turn() {
                Turn::Stay => continue,
                Turn::Forget => self.journal.set_yielding(&deployment, Some(Yielding { paused: false }))?,
                Turn::Pause => {
                    tracing::info!("{deployment} gives way to the user of a host");
                    self.journal.set_yielding(&deployment, Some(Yielding { paused: true }))?;
                    self.pause(deployment.clone(), log(&deployment))?;
                }
                Turn::Resume => {
                    tracing::info!("{deployment} goes on: nobody sits at its hosts");
                    self.resume(deployment.clone(), log(&deployment))?;
                }
            }
            self.yield_after.insert(deployment, now + AGAIN_AFTER);
        }
        Ok(())
    }

    fn seen(&self, deployment: &Name) -> Seen {
        let members = || self.journal.vms().iter().filter(|(_, vm)| vm.deployment == *deployment);
        Seen {
            user_here: members().any(|(_, vm)| self.registry.user_here(&vm.host)),
            complete: members().all(|(_, vm)| self.registry.host(&vm.host).is_some()),
            any_runs: self.reports(deployment).flatten().any(runs),
            all_run: self.all_run(deployment),
            for_user: self.journal.yielding(deployment).is_some_and(|yielding| yielding.paused),
        }
    }
}

/// Nobody waits for the answer, so a failure is told to the log.
fn log(deployment: &Name) -> mpsc::Sender<Reply> {
    let (sender, mut replies) = mpsc::channel(QUEUE);
    let deployment = deployment.clone();
    tokio::spawn(async move {
        while let Some(reply) = replies.recv().await {
            if let Reply::Failed(error) = reply {
                tracing::warn!("{deployment} gives way to users: {error}");
            }
        }
    });
    sender
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_paused_for_users_and_goes_on_only_if_that_was_why() {
        let off = Seen { user_here: false, complete: true, any_runs: false, all_run: false, for_user: true };
        let half = Seen { any_runs: true, ..off };
        let on = Seen { all_run: true, ..half };
        let here = |seen| Seen { user_here: true, ..seen };
        for (seen, turn) in [
            (here(on), Turn::Pause),
            (here(half), Turn::Pause),
            (here(off), Turn::Stay),
            (off, Turn::Resume),
            (half, Turn::Resume),
            (on, Turn::Forget),
            (Seen { complete: false, ..off }, Turn::Stay),
            (Seen { for_user: false, ..off }, Turn::Stay),
            (Seen { for_user: false, ..on }, Turn::Stay),
        ] {
            assert_eq!(seen.turn(), turn, "{seen:?}");
        }
    }
}

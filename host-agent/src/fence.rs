//! `self_fence_s`: a host that has lost its coordinator stops its VMs, so that none of them runs on beside one that was
//! restored elsewhere meanwhile. They go on when the coordinator is back and says that they are still the right ones.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use unasnap_protocol::name::Name;

use crate::members::Members;

/// Stops all VMs whenever nothing was heard for so long; what it returns is to be told of every word of the coordinator's.
#[must_use]
pub fn start(after: Duration, members: Members) -> watch::Sender<Instant> {
    let (heard, mut words) = watch::channel(Instant::now());
    tokio::spawn(async move {
        loop {
            let deadline = *words.borrow_and_update() + after;
            tokio::select! {
                word = words.changed() => if word.is_err() { return },
                () = sleep_until(deadline) => {
                    tracing::error!("no word from the coordinator for {} s: all VMs are stopped until it is back", after.as_secs());
                    for member in members.list() {
                        member.works().fence().await;
                    }
                    if words.changed().await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    heard
}

/// Lets VMs go on that are of the incarnation that runs now of their deployment.
pub async fn lift(members: Members, current: Vec<(Name, u64)>) {
    for member in members.list() {
        let deployment = member.standing().report.deployment;
        if let Some((_, incarnation)) = current.iter().find(|(name, _)| *name == deployment) {
            member.works().lift_fence(*incarnation).await;
        }
    }
}

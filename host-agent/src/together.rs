//! Members end their pauses together: what one sends after its cut then reaches nobody who has not cut, and nothing is dropped.
//!
//! A drop costs the applications a retransmission time-out of 200 ms (RFC 6298 with Linux' minimum), the wait at most the skew.
//! It is for their sake only: consistency needs nobody to wait, and whoever hears nothing runs on after [`PATIENCE`].
//!
//! ```text
//!   host agent                                  coordinator
//!     vCPUs stopped:  Standing {vm, snapshot} ---->
//!     disks, devices, RAM, flip
//!                         <---- RunOn {snapshot}, when all members stand (or have cut already)
//!     vCPUs resumed
//! ```

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use unasnap_protocol::control::Standing;
use unasnap_protocol::name::Name;

/// How long a member stands still for the sake of others: half of what a drop costs.
const PATIENCE: Duration = Duration::from_millis(100);

/// The host's part: what its members announce, and which snapshot's may run on.
#[derive(Debug, Clone)]
pub struct Together {
    announced: mpsc::UnboundedSender<Standing>,
    run_on: watch::Sender<Option<Name>>,
}

impl Together {
    /// With what is to be told to the coordinator.
    #[must_use]
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Standing>) {
        let (announced, announcements) = mpsc::unbounded_channel();
        (Self { announced, run_on: watch::Sender::new(None) }, announcements)
    }

    /// The members of this snapshot may run on.
    pub fn run_on(&self, snapshot: Name) {
        self.run_on.send_replace(Some(snapshot));
    }

    /// For one pause.
    #[must_use]
    pub fn pause_of(&self, vm: Name, snapshot: Name) -> Pause {
        Pause(Some((self.announced.clone(), self.run_on.subscribe(), Standing { vm, snapshot })))
    }
}

/// One member's pause.
#[derive(Debug, Clone)]
pub struct Pause(Option<(mpsc::UnboundedSender<Standing>, watch::Receiver<Option<Name>>, Standing)>);

impl Pause {
    /// A pause that waits for nobody.
    #[must_use]
    pub fn alone() -> Self {
        Self(None)
    }

    /// The VM stands still.
    pub fn announce(&self) {
        if let Some((announced, _, standing)) = &self.0 {
            // Where nobody listens, the pause ends with the patience.
            let _ = announced.send(standing.clone());
        }
    }

    /// Completes when the VM is to run on.
    pub async fn end(self) {
        let Some((_announced, mut run_on, standing)) = self.0 else { return };
        let told = run_on.wait_for(|snapshot| snapshot.as_ref() == Some(&standing.snapshot));
        if timeout(PATIENCE, told).await.is_err() {
            tracing::info!(vm = %standing.vm, snapshot = %standing.snapshot, "others have not cut yet: it runs on without them");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_ends_with_the_word_of_its_snapshot_and_of_no_other() {
        let (together, mut announcements) = Together::new();
        together.run_on(name("ring-000001"));
        let pause = together.pause_of(name("vm1"), name("ring-000002"));
        pause.announce();
        let standing = Standing { vm: name("vm1"), snapshot: name("ring-000002") };
        assert_eq!(announcements.recv().await, Some(standing));
        let ended = tokio::spawn(pause.end());
        tokio::time::sleep(PATIENCE / 2).await;
        assert!(!ended.is_finished());
        together.run_on(name("ring-000002"));
        let begun = tokio::time::Instant::now();
        ended.await.unwrap();
        assert!(begun.elapsed() < PATIENCE / 4, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_that_nobody_ends_is_bounded() {
        let (together, announcements) = Together::new();
        drop(announcements);
        let pause = together.pause_of(name("vm1"), name("ring-000001"));
        pause.announce();
        timeout(PATIENCE * 2, pause.end()).await.unwrap();
        timeout(PATIENCE / 2, Pause::alone().end()).await.unwrap();
    }
}

//! What stops a machine or lets it run, outside any cut.

use std::time::Duration;

use super::super::{HypervisorError, VmState};
use super::info::State;
use super::vm::{RUN_ON_LIMIT, VirtualBoxVm};

/// How long a machine that is to be stopped may go on because its disks are being merged.
const MERGE_LIMIT: Duration = Duration::from_secs(30);

impl VirtualBoxVm {
    /// A machine that stands still is then as it should be.
    pub(super) fn stays_stopped(&self) -> bool {
        self.record.awaits_resume || self.record.fenced || self.record.paused
    }

    pub(super) async fn do_fence(&mut self) -> Result<(), HypervisorError> {
        self.record.fenced = true;
        self.folder.write(&self.record)?;
        self.stand_still().await
    }

    pub(super) async fn do_pause(&mut self) -> Result<(), HypervisorError> {
        self.record.paused = true;
        self.folder.write(&self.record)?;
        self.stand_still().await
    }

    /// VirtualBox pauses no machine whose disks it merges, and what tidies up may be about to resume it.
    async fn stand_still(&mut self) -> Result<(), HypervisorError> {
        if let Ok(Err(error)) = tokio::time::timeout(MERGE_LIMIT, self.tidied()).await {
            tracing::warn!(%error, "what a cut has left stays in VirtualBox");
        }
        if self.ask_state().await? == VmState::Running { self.manage.pause().await } else { Ok(()) }
    }

    pub(super) async fn do_lift_fence(&mut self) -> Result<(), HypervisorError> {
        if !self.record.awaits_resume && !self.record.paused {
            self.manage.resume().await?;
        }
        self.record.fenced = false;
        self.folder.write(&self.record)?;
        drop(self.tidy());
        Ok(())
    }

    pub(super) async fn do_resume(&mut self) -> Result<(), HypervisorError> {
        match self.manage.info().await?.state {
            State::Saved => {
                self.manage.unlocked(RUN_ON_LIMIT).await?;
                self.manage.start().await?;
            }
            _ => self.manage.resume().await?,
        }
        self.record.awaits_resume = false;
        self.record.fenced = false;
        self.record.paused = false;
        self.folder.write(&self.record)?;
        drop(self.tidy());
        Ok(())
    }

    pub(super) async fn do_press_power(&mut self) -> Result<(), HypervisorError> {
        self.manage.press_power().await
    }
}

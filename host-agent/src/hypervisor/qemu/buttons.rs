//! What stops a VM or lets it run, outside any cut.
//!
//! There is no reset here: the firmware answers QEMU's `system_reset` with a second reset of its own, and a guest that resets
//! itself ends its process (`-no-reboot`). A new process is as hard a reset.

use serde_json::json;

use super::super::HypervisorError;
use super::tap;
use super::vm::QemuVm;

impl QemuVm {
    /// A paused VM is then as it should be.
    pub(super) fn stays_stopped(&self) -> bool {
        self.instance.awaits_resume || self.instance.fenced || self.instance.paused
    }

    pub(super) async fn do_fence(&mut self) -> Result<(), HypervisorError> {
        self.instance.fenced = true;
        self.instance.write(&self.folder)?;
        self.qmp.execute("stop", json!({})).await.map(drop)
    }

    pub(super) async fn do_lift_fence(&mut self) -> Result<(), HypervisorError> {
        if !self.instance.awaits_resume && !self.instance.paused {
            self.run_on().await?;
        }
        self.instance.fenced = false;
        self.instance.write(&self.folder)
    }

    pub(super) async fn do_resume(&mut self) -> Result<(), HypervisorError> {
        tap::raise(&self.instance.taps).await?;
        self.run_on().await?;
        self.instance.awaits_resume = false;
        self.instance.fenced = false;
        self.instance.paused = false;
        self.instance.write(&self.folder)
    }

    pub(super) async fn do_pause(&mut self) -> Result<(), HypervisorError> {
        self.instance.paused = true;
        self.instance.write(&self.folder)?;
        self.qmp.execute("stop", json!({})).await.map(drop)
    }

    pub(super) async fn do_press_power(&mut self) -> Result<(), HypervisorError> {
        self.qmp.execute("system_powerdown", json!({})).await.map(drop)
    }
}

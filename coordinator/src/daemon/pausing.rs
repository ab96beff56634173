//! A whole deployment put aside: a snapshot, and when that is committed all its VMs are powered off; and brought back.
//!
//! The journal remembers the snapshot between the two, and until the deployment runs again. What breaks off in between
//! leaves either a deployment that runs, or a committed snapshot of it.

use tokio::sync::mpsc;
use unasnap_protocol::control::{VmReport, VmState};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Reply, RequestError, RequestErrorKind};
use unasnap_protocol::power::{PausedDeployment, Verb};

use super::journal::Result;
use super::owner::{Owner, Watchers, tell};

impl Owner {
    /// `pause`. One that was broken off when VMs were powered off goes on with that: the deployment cannot be snapshotted
    /// any more.
    pub(super) fn pause(&mut self, deployment: Name, replies: mpsc::Sender<Reply>) -> Result<()> {
        let stopped = self.reports(&deployment).flatten().any(|report| report.state == VmState::Stopped);
        match self.paused_in(&deployment).filter(|_| stopped && self.open_course(&deployment).is_none()) {
            Some(id) => {
                self.power_off(deployment, id, vec![replies]);
                Ok(())
            }
            None => self.take(Some(deployment), replies, true),
        }
    }

    /// The second half of a pause: the snapshot `id` is committed.
    pub(super) fn power_off(&mut self, deployment: Name, id: Name, watchers: Watchers) {
        let members = self.journal.snapshots().get(&id).map(|stored| stored.places()).unwrap_or_default();
        let vms = members.into_keys().collect();
        self.open_controlling(Verb::Kill, vms, watchers, Some((deployment, id)));
    }

    /// `resume`.
    pub(super) fn resume(&mut self, deployment: Name, replies: mpsc::Sender<Reply>) -> Result<()> {
        let deployment = match self.choose_deployment(Some(deployment)) {
            Ok(deployment) => deployment,
            Err(error) => {
                tell(&vec![replies], &Reply::Failed(error));
                return Ok(());
            }
        };
        if self.all_run(&deployment) && self.open_course(&deployment).is_none() {
            self.forget_stale_pause(&deployment)?;
            tell(&vec![replies], &Reply::Runs(deployment));
            return Ok(());
        }
        if let Some(id) = self.paused_in(&deployment) {
            return self.restore(Some(id), Vec::new(), replies);
        }
        let text = format!(
            "deployment {deployment} was not paused by `unasnap pause`, and not all of its VMs run; `unasnap restore ID` brings it back to a snapshot"
        );
        tell(&vec![replies], &Reply::Failed(RequestError::new(RequestErrorKind::Refused, text)));
        Ok(())
    }

    /// The snapshot that a paused deployment will be brought back to; `None` while all of it runs.
    pub(super) fn paused_in(&self, deployment: &Name) -> Option<Name> {
        let id = self.journal.paused(deployment)?;
        let usable = self.journal.snapshots().get(id).is_some_and(|stored| stored.is_committed());
        (usable && !self.all_run(deployment)).then(|| id.clone())
    }

    /// All deployments that wait for `resume`.
    pub(super) fn paused_deployments(&self) -> Vec<PausedDeployment> {
        let paused = |deployment: &Name| {
            let snapshot = self.paused_in(deployment)?;
            let for_user = self.journal.yielding(deployment).is_some_and(|yielding| yielding.paused);
            Some(PausedDeployment { deployment: deployment.clone(), snapshot, for_user })
        };
        self.journal.pauses().keys().filter_map(paused).collect()
    }

    /// A deployment all of which runs was not powered off: whatever stops it later has nothing to do with that pause.
    pub(super) fn forget_stale_pause(&mut self, deployment: &Name) -> Result<()> {
        if self.journal.paused(deployment).is_some() && self.all_run(deployment) {
            return self.journal.set_paused(deployment, None);
        }
        Ok(())
    }

    pub(super) fn all_run(&self, deployment: &Name) -> bool {
        self.reports(deployment).all(|report| report.is_some_and(runs))
    }

    /// Of each of its VMs; `None` where the host is away.
    pub(super) fn reports(&self, deployment: &Name) -> impl Iterator<Item = Option<&VmReport>> {
        let members = self.journal.vms().iter().filter(move |(_, vm)| vm.deployment == *deployment);
        members.map(|(name, vm)| self.registry.report(&vm.host, name))
    }
}

/// Does it run, or will it by itself?
pub(super) fn runs(report: &VmReport) -> bool {
    matches!(report.state, VmState::Running | VmState::Starting)
}

//! CONTROL of the VM itself: start, stop, pause, resume, reset. The participant sees to it that nothing else is under way.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use unasnap_protocol::control::{self, Envelope, Failure, FailureKind, Phase};
use unasnap_protocol::power::{Controlled, Verb};

use super::{Works, hypervisor_failure};
use crate::hypervisor::{HypervisorError, VmState};

/// How long a guest may take to shut down after its power button was pressed.
const SHUT_DOWN_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Works {
    /// Carries out one verb; a VM that stands as it would afterwards is left alone.
    pub(super) async fn control(&self, envelope: &Envelope, verb: Verb) -> Result<Controlled, Failure> {
        match verb {
            Verb::Start => self.boot(envelope.incarnation).await,
            Verb::Stop => self.shut_down().await,
            Verb::Kill => self.kill().await,
            Verb::Pause => self.pause().await,
            Verb::Resume => self.run_on().await,
            Verb::Reset => self.reset(envelope.incarnation).await,
        }
    }

    /// The deployment is at incarnation `current`.
    async fn boot(&self, current: u64) -> Result<Controlled, Failure> {
        let mut instance = self.instance.lock().await;
        if let Some(vm) = instance.as_mut() {
            match vm.state().await.map_err(failure)? {
                VmState::Dead => {}
                VmState::Running => return Ok(already(control::VmState::Running, vm.incarnation())),
                VmState::Paused => return Err(self.refuse("is paused; resume it")),
                VmState::IoError => return Err(self.refuse(NO_DISK)),
            }
        }
        let mut colours = self.colours.lock().await;
        let dead = instance.take().map(|vm| vm.host_interfaces().to_vec());
        if let Some(taps) = dead {
            colours.end(&taps).await;
            self.hypervisor.destroy(&self.definition.name).await.map_err(failure)?;
        }
        let started = self.hypervisor.start(&self.definition, 0).await;
        let mut vm = started.map_err(|error| match error {
            HypervisorError::WrongState { why, .. } => {
                self.refuse(&format!("is not under this agent's control: {why} (`unasnap vm stop --force`)"))
            }
            error => failure(error),
        })?;
        colours.begin(vm.as_mut(), false).await;
        self.forget_report();
        let incarnation = vm.incarnation();
        *instance = Some(vm);
        let note = if incarnation == current {
            "a new boot from the disks as they were left".to_owned()
        } else {
            format!(
                "a new boot of incarnation {incarnation}, and its deployment is at {current}: snapshots refuse it until the deployment is restored"
            )
        };
        Ok(Controlled { state: control::VmState::Starting, incarnation, changed: true, note })
    }

    /// Not one lock for the whole wait: a host that is cut off must be able to stop its VMs meanwhile.
    async fn shut_down(&self) -> Result<Controlled, Failure> {
        match self.instance.lock().await.as_mut() {
            None => return Ok(already(control::VmState::Stopped, 0)),
            Some(vm) => match vm.state().await.map_err(failure)? {
                VmState::Dead => {}
                VmState::Running => vm.press_power().await.map_err(failure)?,
                VmState::Paused => {
                    return Err(self
                        .refuse("is paused, so that its guest cannot shut down; resume it, or use --force"));
                }
                VmState::IoError => return Err(self.refuse(NO_DISK)),
            },
        }
        let limit = self.switches.shut_down_limit.unwrap_or(SHUT_DOWN_LIMIT);
        let deadline = Instant::now() + limit;
        while self.is_alive().await? {
            if Instant::now() >= deadline {
                let text = format!(
                    "the guest of {} has not shut down {} s after its power button was pressed, and runs on; does anything in it listen to ACPI? `--force` ends it at once",
                    self.definition.name,
                    limit.as_secs()
                );
                return Err(Failure::new(FailureKind::TimedOut, Phase::Control, text));
            }
            sleep(LOOK_AGAIN).await;
        }
        self.kill().await.map(|stopped| Controlled { changed: true, ..stopped })
    }

    pub(super) async fn is_alive(&self) -> Result<bool, Failure> {
        match self.instance.lock().await.as_mut() {
            None => Ok(false),
            Some(vm) => match vm.state().await {
                // It went while it was asked: the next look finds no process.
                Err(HypervisorError::Gone { .. }) => Ok(true),
                state => Ok(state.map_err(failure)? != VmState::Dead),
            },
        }
    }

    /// Also where this agent has no instance: one that it could not adopt may live.
    pub(super) async fn kill(&self) -> Result<Controlled, Failure> {
        let mut instance = self.instance.lock().await;
        let mut colours = self.colours.lock().await;
        let ended = instance.take().map(|vm| vm.host_interfaces().to_vec());
        let changed = ended.is_some();
        colours.end(&ended.unwrap_or_default()).await;
        self.hypervisor.destroy(&self.definition.name).await.map_err(failure)?;
        Ok(Controlled { changed, ..already(control::VmState::Stopped, 0) })
    }

    async fn pause(&self) -> Result<Controlled, Failure> {
        let mut vm = self.living(Phase::Control).await?;
        let ran = match vm.state().await.map_err(failure)? {
            VmState::Dead => return Err(self.refuse("does not run; start it")),
            VmState::IoError => return Err(self.refuse(NO_DISK)),
            VmState::Paused if vm.awaits_resume() => return Err(self.refuse(LOADED)),
            state => state == VmState::Running,
        };
        // Also of one that is fenced: when that is over, it stays as the operator wants it.
        vm.pause().await.map_err(failure)?;
        Ok(Controlled { changed: ran, ..already(control::VmState::Paused, vm.incarnation()) })
    }

    async fn run_on(&self) -> Result<Controlled, Failure> {
        let mut vm = self.living(Phase::Control).await?;
        let state = vm.state().await.map_err(failure)?;
        match state {
            VmState::Dead => return Err(self.refuse("does not run; start it")),
            _ if vm.is_fenced() => return Err(self.refuse(FENCED)),
            VmState::Paused if vm.awaits_resume() => return Err(self.refuse(LOADED)),
            VmState::Running => {}
            VmState::Paused | VmState::IoError => vm.resume().await.map_err(failure)?,
        }
        let changed = state != VmState::Running;
        Ok(Controlled { changed, ..already(control::VmState::Running, vm.incarnation()) })
    }

    /// A new instance: what was in the old one's RAM is lost, as with a reset button.
    async fn reset(&self, current: u64) -> Result<Controlled, Failure> {
        match self.living(Phase::Control).await?.state().await.map_err(failure)? {
            VmState::Running => {}
            VmState::Dead => return Err(self.refuse("does not run; start it")),
            VmState::Paused => {
                return Err(self.refuse("is paused; resume it, or stop it with --force and start it"));
            }
            VmState::IoError => return Err(self.refuse(NO_DISK)),
        }
        self.kill().await?;
        self.boot(current).await.map_err(|failure| {
            let text = format!("it was ended, and could not be booted again: {}", failure.text);
            Failure { text, ..failure }
        })
    }

    fn refuse(&self, why: &str) -> Failure {
        let text = format!("VM {} {why}", self.definition.name);
        Failure::new(FailureKind::VmNotRunning, Phase::Control, text)
    }
}

const NO_DISK: &str = "was stopped because a disk of the host could not be written; make room and resume it, or use `stop --force`";
const FENCED: &str = "was stopped because its host was cut off, and goes on by itself if it is still the right one; else restore its deployment";
const LOADED: &str = "is loaded by a restore that has not ended; restore its deployment again";

/// Nothing had to be done.
fn already(state: control::VmState, incarnation: u64) -> Controlled {
    Controlled { state, incarnation, changed: false, note: String::new() }
}

fn failure(error: HypervisorError) -> Failure {
    hypervisor_failure(&error, Phase::Control)
}

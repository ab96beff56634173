//! One machine that runs, or stands still: its cuts.
//!
//! The cut is `pause`, `snapshot take`, `resume`. VirtualBox saves RAM and switches the disks while the machine stands still, so
//! every moment between the answer to `pause` and `resume` is the instant, and the straddle's two flips surround exactly that. A
//! `take --live` would copy RAM while the guest runs, and end in a pause at a moment that nobody tells: the flips would have to
//! surround all of it, and a member that drops for seconds advances by itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use unasnap_channel::steady_ns;

use super::super::{CutTimes, GuestRam, HypervisorError, InPause, Pending, Vm, VmState, base_image};
use super::console::Console;
use super::guestcontrol::Relay;
use super::info::State;
use super::machine::{CUT, Machine, SETTINGS_FILE};
use super::manage::Manage;
use super::record::{Record, VmFolder};
use crate::guest_channel::Pace;
use crate::store::manifest::{BaseImage, Facts, Saved, SavedFile};

/// How long VirtualBox may take to end what was begun before.
const SETTLE_LIMIT: Duration = Duration::from_secs(600);
/// How long a discard waits until the machine runs on; what is left to do then goes on behind it.
pub(super) const RUN_ON_LIMIT: Duration = Duration::from_secs(6);
/// Allowance for device state and VirtualBox's settings, bytes.
const SLACK_BYTES: u64 = 16 << 20;

/// A machine with everything that its cuts need.
pub struct VirtualBoxVm {
    /// Of a machine that unasnap has made.
    pub(super) _console: Option<Console>,
    pub(super) manage: Manage,
    pub(super) machine: Machine,
    pub(super) folder: VmFolder,
    pub(super) record: Record,
    pub(super) facts: Facts,
    pub(super) memory_bytes: u64,
    pub(super) guest_channel: PathBuf,
    /// Carries what goes through that channel, where no port does.
    pub(super) relay: Option<Relay>,
    pub(super) stage: Stage,
    /// Deletes what cuts have left in VirtualBox, behind the running machine.
    pub(super) tidying: Option<JoinHandle<Result<(), HypervisorError>>>,
}

/// How far the cut under way has come.
pub enum Stage {
    /// None is.
    Idle,
    /// Its files go into this folder.
    Prepared(PathBuf),
    /// From just before the machine is paused on.
    Cutting(PathBuf),
    /// The machine runs on; VirtualBox's snapshot is this one.
    Cut(PathBuf, String),
    /// Its files are being copied.
    Saving(PathBuf, Collecting),
}

type Collected = Result<(Vec<SavedFile>, Vec<String>), HypervisorError>;

/// The thread that copies, and how it is told to stop.
pub struct Collecting {
    thread: JoinHandle<Collected>,
    given_up: Arc<AtomicBool>,
}

impl VirtualBoxVm {
    fn wrong_state(&self, wanted: &'static str, why: &str) -> HypervisorError {
        self.manage.wrong_state(wanted, why.to_owned())
    }

    pub(super) async fn ask_state(&self) -> Result<VmState, HypervisorError> {
        let Some(info) = self.manage.find().await? else { return Ok(VmState::Dead) };
        Ok(match info.state {
            State::Running => VmState::Running,
            State::Paused | State::Between => VmState::Paused,
            State::Saved if self.record.awaits_resume => VmState::Paused,
            State::Saved | State::Off | State::Stuck | State::Inaccessible => VmState::Dead,
        })
    }

    /// Begins to let the machine run on, if it should, and then to delete what cuts have left. Answers when the first is done.
    pub(super) fn tidy(&mut self) -> oneshot::Receiver<()> {
        let (sender, runs_on) = oneshot::channel();
        let (manage, machine, stays_stopped) =
            (self.manage.clone(), self.machine.clone(), self.stays_stopped());
        let earlier = self.tidying.take();
        self.tidying = Some(tokio::spawn(async move {
            if let Some(earlier) = earlier {
                drop(earlier.await);
            }
            let what = "the end of what VirtualBox does with its machine";
            let info = manage.wait(what, SETTLE_LIMIT, |info| info.state != State::Between).await?;
            if info.state == State::Paused && !stays_stopped {
                manage.resume().await?;
            }
            // Nobody need have waited for it.
            let _ = sender.send(());
            if info.state.is_alive() {
                for cut in machine.cuts()? {
                    manage.delete(&cut).await?;
                }
            }
            Ok(())
        }));
        runs_on
    }

    pub(super) async fn tidied(&mut self) -> Result<(), HypervisorError> {
        let Some(tidying) = &mut self.tidying else { return Ok(()) };
        let result = tidying.await;
        self.tidying = None;
        result.map_err(|error| HypervisorError::Unsupported { what: format!("tidying up ended: {error}") })?
    }

    async fn do_prepare(&mut self, target: &Path) -> Result<(), HypervisorError> {
        if !matches!(self.stage, Stage::Idle) {
            return Err(self.wrong_state("prepare a cut", "another one is under way: discard it first"));
        }
        if let Err(error) = self.tidied().await {
            tracing::warn!(%error, "what an earlier cut has left is deleted now");
        }
        if self.ask_state().await? != VmState::Running {
            return Err(self.wrong_state("prepare a cut", "it does not run: resume or restart it"));
        }
        if !self.machine.cuts()?.is_empty() {
            drop(self.tidy());
            self.tidied().await?;
        }
        self.machine.check()?;
        if self.record.made {
            self.machine.check_own()?;
        }
        self.stage = Stage::Prepared(target.to_owned());
        Ok(())
    }

    async fn do_arm(&mut self) -> Result<(), HypervisorError> {
        match self.stage {
            Stage::Prepared(_) => Ok(()),
            _ => Err(self.wrong_state("arm a cut", "prepare it first")),
        }
    }

    async fn do_cut(&mut self, in_pause: InPause<'_>) -> Result<CutTimes, HypervisorError> {
        let Stage::Prepared(target) = std::mem::replace(&mut self.stage, Stage::Idle) else {
            return Err(self.wrong_state("cut", "prepare it first"));
        };
        self.stage = Stage::Cutting(target.clone());
        let cut = self.pause_and_take(&target, in_pause).await;
        // Whatever failed: nothing may leave the machine standing.
        let begun = steady_ns();
        let resumed = self.manage.resume().await;
        let (mut times, taken) = cut?;
        resumed?;
        times.resumed_at = steady_ns();
        times.parts.push(("resume", times.resumed_at.saturating_sub(begun)));
        self.stage = Stage::Cut(target, taken);
        Ok(times)
    }

    /// The times without those of the resume, and the UUID of the snapshot.
    async fn pause_and_take(
        &self,
        target: &Path,
        in_pause: InPause<'_>,
    ) -> Result<(CutTimes, String), HypervisorError> {
        let stopped_at = steady_ns();
        self.manage.pause().await?;
        let instant = steady_ns();
        (in_pause.stopped)();
        self.manage.take(CUT).await?;
        // Only while the machine stands still does nobody write its settings.
        let to = target.join(SETTINGS_FILE);
        std::fs::copy(&self.machine.vbox, &to).map_err(HypervisorError::file("write", &to))?;
        let taken = self.machine.taken()?;
        (in_pause.fixed)();
        let fixed_at = steady_ns();
        in_pause.run_on.await;
        let parts = vec![
            ("pause", instant - stopped_at),
            ("take", fixed_at - instant),
            ("others", steady_ns() - fixed_at),
        ];
        Ok((CutTimes { stopped_at, instant, resumed_at: 0, parts }, taken))
    }

    async fn do_save(&mut self) -> Result<Saved, HypervisorError> {
        if let Stage::Cut(target, taken) = &self.stage {
            let given_up = Arc::new(AtomicBool::new(false));
            let (machine, taken, folder, stop) =
                (self.machine.clone(), taken.clone(), target.clone(), given_up.clone());
            let thread = tokio::task::spawn_blocking(move || machine.collect(&taken, &folder, &stop));
            self.stage = Stage::Saving(target.clone(), Collecting { thread, given_up });
        }
        let Stage::Saving(target, collecting) = &mut self.stage else {
            return Err(self.wrong_state("save", "there is no cut whose bytes are to be saved"));
        };
        let target = target.clone();
        let ended = (&mut collecting.thread).await;
        // The thread has ended: asking it again is not possible.
        self.stage = Stage::Cutting(target.clone());
        let lost = |error| HypervisorError::file("save", &target)(std::io::Error::other(error));
        let (files, bases) = ended.map_err(lost)??;
        let bases = self.digest_bases(&bases).await?;
        self.stage = Stage::Idle;
        drop(self.tidy());
        Ok(Saved { hypervisor: self.facts.clone(), files, bases })
    }

    /// Each base is hashed once, as long as it stays as it is.
    async fn digest_bases(&mut self, places: &[String]) -> Result<Vec<BaseImage>, HypervisorError> {
        let mut bases = Vec::new();
        for place in places {
            let mut base = base_image::describe(&self.machine.folder().join(place))?;
            base.blake3 = match self.record.bases.iter().find(|known| known.path == base.path) {
                None => base_image::digest(&base.path).await?,
                Some(known) => base_image::unchanged(&base, known)?,
            };
            bases.push(base);
        }
        self.record.bases.clone_from(&bases);
        self.folder.write(&self.record)?;
        Ok(bases)
    }

    async fn do_discard(&mut self) -> Result<(), HypervisorError> {
        let stage = std::mem::replace(&mut self.stage, Stage::Idle);
        let target = match stage {
            Stage::Idle => None,
            Stage::Prepared(target) | Stage::Cutting(target) | Stage::Cut(target, _) => Some(target),
            Stage::Saving(target, collecting) => {
                collecting.given_up.store(true, Ordering::Relaxed);
                drop(collecting.thread.await);
                Some(target)
            }
        };
        let emptied = target.map_or(Ok(()), |target| empty(&target));
        if self.manage.find().await?.is_some_and(|info| info.state.is_alive()) {
            let runs_on = self.tidy();
            let what = "the end of a snapshot that was given up".to_owned();
            match tokio::time::timeout(RUN_ON_LIMIT, runs_on).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => self.tidied().await?,
                Err(_) => {
                    let vm = self.manage.vm().to_owned();
                    return Err(HypervisorError::TimedOut { vm, what, after: RUN_ON_LIMIT });
                }
            }
        }
        emptied
    }
}

impl Drop for VirtualBoxVm {
    fn drop(&mut self) {
        if let Some(tidying) = &self.tidying {
            tidying.abort();
        }
    }
}

/// Deletes what a cut has put into its folder.
fn empty(folder: &Path) -> Result<(), HypervisorError> {
    let failed = |error| HypervisorError::file("empty", folder)(error);
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    for entry in entries {
        std::fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
    }
    Ok(())
}

impl Vm for VirtualBoxVm {
    fn incarnation(&self) -> u64 {
        self.record.incarnation
    }

    fn guest_channel_path(&self) -> &Path {
        &self.guest_channel
    }

    fn guest_channel_pace(&self) -> Pace {
        if self.relay.is_some() { Pace::CALLS } else { Pace::PORT }
    }

    fn host_interfaces(&self) -> &[String] {
        &[]
    }

    fn ram(&self) -> Result<Box<dyn GuestRam>, HypervisorError> {
        let what =
            "VirtualBox does not let the host write a guest's RAM: use colouring = \"guest\"".to_owned();
        Err(HypervisorError::Unsupported { what })
    }

    fn state(&mut self) -> Pending<'_, VmState> {
        Box::pin(self.ask_state())
    }

    fn space_needed(&self) -> u64 {
        // What cannot be asked now is refused with its reason when the cut is prepared.
        self.memory_bytes + self.machine.difference_bytes().unwrap_or(0) + SLACK_BYTES
    }

    fn prepare_cut<'a>(&'a mut self, folder: &'a Path) -> Pending<'a, ()> {
        Box::pin(self.do_prepare(folder))
    }

    fn arm_cut(&mut self) -> Pending<'_, ()> {
        Box::pin(self.do_arm())
    }

    fn cut<'a>(&'a mut self, in_pause: InPause<'a>) -> Pending<'a, CutTimes> {
        Box::pin(self.do_cut(in_pause))
    }

    fn save(&mut self) -> Pending<'_, Saved> {
        Box::pin(self.do_save())
    }

    fn discard_cut(&mut self) -> Pending<'_, ()> {
        Box::pin(self.do_discard())
    }

    fn fence(&mut self) -> Pending<'_, ()> {
        Box::pin(self.do_fence())
    }

    fn is_fenced(&self) -> bool {
        self.record.fenced
    }

    fn lift_fence(&mut self) -> Pending<'_, ()> {
        Box::pin(self.do_lift_fence())
    }

    fn resume(&mut self) -> Pending<'_, ()> {
        Box::pin(self.do_resume())
    }

    fn pause(&mut self) -> Pending<'_, ()> {
        Box::pin(self.do_pause())
    }

    fn awaits_resume(&self) -> bool {
        self.record.awaits_resume
    }

    fn press_power(&mut self) -> Pending<'_, ()> {
        Box::pin(self.do_press_power())
    }
}

//! What is asked of VirtualBox about one machine, which is always named by its UUID: names are not unique.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::HypervisorError;
use super::calls::{Answer, Calls, shown};
use super::info::{Info, State};

/// How long a question may take; the first one of a host starts VirtualBox's service.
const ASK_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to stop, resume or change a machine.
const CONTROL_LIMIT: Duration = Duration::from_secs(20);
/// How long a snapshot or a start may take: bytes of all RAM are written or read.
const RAM_LIMIT: Duration = Duration::from_secs(600);
/// How long merging disks may take.
const MERGE_LIMIT: Duration = Duration::from_secs(3600);
/// Pause between two questions.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// The code of the error that there is no such machine.
const NOT_FOUND: &str = "VBOX_E_OBJECT_NOT_FOUND";
/// Of a machine whose settings or disks VirtualBox misses.
const INACCESSIBLE: &str = "The object functionality is limited";

/// One machine of this host's VirtualBox.
#[derive(Clone)]
pub struct Manage {
    calls: Arc<dyn Calls>,
    vm: String,
    uuid: String,
}

impl Manage {
    /// The machine with this UUID, which is the VM `vm`.
    #[must_use]
    pub fn new(calls: Arc<dyn Calls>, vm: String, uuid: String) -> Self {
        Self { calls, vm, uuid }
    }

    /// Its UUID, without braces.
    #[must_use]
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// The VM, for errors.
    #[must_use]
    pub fn vm(&self) -> &str {
        &self.vm
    }

    /// A call of which also a failure is an answer.
    pub(super) async fn ask(&self, arguments: &[&str], limit: Duration) -> Result<Answer, HypervisorError> {
        self.calls.call(&self.vm, arguments, limit).await
    }

    async fn order(&self, arguments: &[&str], limit: Duration) -> Result<Answer, HypervisorError> {
        self.ask(arguments, limit).await?.success(&self.vm, arguments)
    }

    /// A question that has an answer.
    pub(super) async fn question(&self, arguments: &[&str]) -> Result<Answer, HypervisorError> {
        self.order(arguments, ASK_LIMIT).await
    }

    /// Changes something that needs no time.
    pub(super) async fn change(&self, arguments: &[&str]) -> Result<(), HypervisorError> {
        self.order(arguments, CONTROL_LIMIT).await.map(drop)
    }

    /// What it is and does; `None` when VirtualBox does not know it.
    ///
    /// # Errors
    /// VirtualBox does not say.
    pub async fn find(&self) -> Result<Option<Info>, HypervisorError> {
        let arguments = ["showvminfo", &self.uuid, "--machinereadable"];
        let answer = self.ask(&arguments, ASK_LIMIT).await?;
        if answer.has_code(NOT_FOUND) {
            return Ok(None);
        }
        if answer.error().is_some_and(|words| words.contains(INACCESSIBLE)) {
            return Ok(Some(Info::INACCESSIBLE));
        }
        let refused = |reason| {
            let (vm, command) = (self.vm.clone(), shown(&arguments));
            HypervisorError::Refused { vm, command, reason }
        };
        Info::parse(&answer.success(&self.vm, &arguments)?.stdout).map(Some).map_err(refused)
    }

    /// As [`find`](Self::find), of a machine that has to be there.
    ///
    /// # Errors
    /// As there, and it is not.
    pub async fn info(&self) -> Result<Info, HypervisorError> {
        let why = || format!("VirtualBox knows no machine {}: restore its deployment", self.uuid);
        self.find().await?.ok_or_else(|| self.wrong_state("ask its machine", why()))
    }

    /// Waits until `done`, asking again and again.
    ///
    /// # Errors
    /// `TimedOut` for `what`.
    pub async fn wait(
        &self,
        what: &str,
        limit: Duration,
        done: impl Fn(&Info) -> bool,
    ) -> Result<Info, HypervisorError> {
        let deadline = Instant::now() + limit;
        loop {
            let info = self.info().await?;
            if done(&info) {
                return Ok(info);
            }
            if Instant::now() > deadline {
                let what = format!("{what} (it is {:?}, {})", info.state, locked(&info));
                return Err(HypervisorError::TimedOut { vm: self.vm.clone(), what, after: limit });
            }
            sleep(ASK_EVERY).await;
        }
    }

    /// Waits until nobody has locked the machine any more.
    ///
    /// # Errors
    /// `TimedOut`.
    pub async fn unlocked(&self, limit: Duration) -> Result<Info, HypervisorError> {
        let free = |info: &Info| !info.locked && info.state != State::Between;
        self.wait("the end of the session that has locked its machine", limit, free).await
    }

    /// Makes VirtualBox know the machine of this `.vbox`. The bases of disks that several machines share are registered with
    /// another one, which need not be here: where VirtualBox misses some, it is shown `disks`, bases first, and asked again.
    ///
    /// # Errors
    /// VirtualBox refuses.
    pub async fn register(&self, vbox: &Path, disks: &[PathBuf]) -> Result<(), HypervisorError> {
        let vbox = vbox.to_string_lossy();
        let arguments = ["registervm", &*vbox];
        let first = self.ask(&arguments, CONTROL_LIMIT).await?;
        let lacks = first.error().is_some_and(|words| words.contains("Could not find an open hard disk"));
        if !lacks || disks.is_empty() {
            return first.success(&self.vm, &arguments).map(drop);
        }
        for disk in disks {
            self.show(&disk.to_string_lossy()).await?;
        }
        self.order(&arguments, CONTROL_LIMIT).await.map(drop)
    }

    /// Makes VirtualBox know a disk, whose parent it has to know already.
    ///
    /// # Errors
    /// VirtualBox refuses.
    pub async fn show(&self, disk: &str) -> Result<(), HypervisorError> {
        self.order(&["showmediuminfo", "disk", disk], ASK_LIMIT).await.map(drop)
    }

    /// Makes VirtualBox forget the machine; its files stay.
    ///
    /// # Errors
    /// It refuses, and still knows it.
    pub async fn unregister(&self) -> Result<(), HypervisorError> {
        match self.order(&["unregistervm", &self.uuid], CONTROL_LIMIT).await {
            Ok(_) => Ok(()),
            // It may fail after it has forgotten the machine.
            Err(error) => self.find().await?.map_or(Ok(()), |_| Err(error)),
        }
    }

    /// Changes settings of a machine that is off.
    ///
    /// # Errors
    /// VirtualBox refuses.
    pub async fn modify(&self, settings: &[&str]) -> Result<(), HypervisorError> {
        self.order(&[&["modifyvm", &self.uuid], settings].concat(), CONTROL_LIMIT).await.map(drop)
    }

    /// Lets it run, from its saved state if it has one.
    ///
    /// # Errors
    /// VirtualBox refuses, also when a file of the machine is missing.
    pub async fn start(&self) -> Result<(), HypervisorError> {
        self.order(&["startvm", &self.uuid, "--type", "headless"], RAM_LIMIT).await.map(drop)
    }

    /// Stops its vCPUs; success when they stand still already.
    ///
    /// # Errors
    /// VirtualBox refuses.
    pub async fn pause(&self) -> Result<(), HypervisorError> {
        self.control("pause", State::Paused).await
    }

    /// Lets its vCPUs run; success when they do already.
    ///
    /// # Errors
    /// VirtualBox refuses.
    pub async fn resume(&self) -> Result<(), HypervisorError> {
        self.control("resume", State::Running).await
    }

    async fn control(&self, order: &str, wanted: State) -> Result<(), HypervisorError> {
        match self.order(&["controlvm", &self.uuid, order], CONTROL_LIMIT).await {
            Ok(_) => Ok(()),
            Err(error) => match self.find().await? {
                Some(info) if info.state == wanted => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Ends its process.
    ///
    /// # Errors
    /// VirtualBox refuses, also when there is none.
    pub async fn power_off(&self) -> Result<(), HypervisorError> {
        self.order(&["controlvm", &self.uuid, "poweroff"], CONTROL_LIMIT).await.map(drop)
    }

    /// Presses its power button.
    ///
    /// # Errors
    /// VirtualBox refuses.
    pub async fn press_power(&self) -> Result<(), HypervisorError> {
        self.order(&["controlvm", &self.uuid, "acpipowerbutton"], CONTROL_LIMIT).await.map(drop)
    }

    /// Forgets the RAM of a saved machine.
    ///
    /// # Errors
    /// VirtualBox refuses.
    pub async fn discard_saved(&self) -> Result<(), HypervisorError> {
        self.order(&["discardstate", &self.uuid], CONTROL_LIMIT).await.map(drop)
    }

    /// Takes a snapshot. A paused machine stays paused.
    ///
    /// # Errors
    /// VirtualBox refuses.
    pub async fn take(&self, name: &str) -> Result<(), HypervisorError> {
        self.order(&["snapshot", &self.uuid, "take", name], RAM_LIMIT).await.map(drop)
    }

    /// Goes back to a snapshot; the machine is off.
    ///
    /// # Errors
    /// VirtualBox refuses, also when a disk is missing.
    pub async fn go_back(&self, snapshot: &str) -> Result<(), HypervisorError> {
        self.order(&["snapshot", &self.uuid, "restore", snapshot], CONTROL_LIMIT).await.map(drop)
    }

    /// Deletes a snapshot, merging its disks.
    ///
    /// # Errors
    /// VirtualBox refuses, also when it has two children.
    pub async fn delete(&self, snapshot: &str) -> Result<(), HypervisorError> {
        self.order(&["snapshot", &self.uuid, "delete", snapshot], MERGE_LIMIT).await.map(drop)
    }

    /// For errors.
    #[must_use]
    pub fn wrong_state(&self, wanted: &'static str, why: String) -> HypervisorError {
        HypervisorError::WrongState { vm: self.vm.clone(), wanted, why }
    }
}

fn locked(info: &Info) -> &'static str {
    if info.locked { "locked" } else { "not locked" }
}

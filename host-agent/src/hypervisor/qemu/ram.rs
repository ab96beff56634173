//! The two ways of giving RAM its instant, and loading it again.
//!
//! | way | before the pause | in the pause | files | a new VM |
//! |---|---|---|---|---|
//! | `live` | everything is copied, and copied again where it changed | the last changes, and the devices | `ram` (page N at page N), `devices` (migration stream) | maps `ram` privately and begins at once |
//! | `stop-and-save` | | everything is written | `ram` (migration stream) | reads everything |
//!
//! `live` is [`live`]; `stop-and-save` is for a QEMU that is too old for it, and what `live` is measured against.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

pub(super) use self::live::Precopy;
use super::super::HypervisorError;
use super::super::process::Process;
use super::qmp::Qmp;
use crate::store::manifest::{FileRole, RamWay};

mod image;
mod live;
mod receiver;
mod stream;

/// Bytes of RAM, or a migration stream.
pub(super) const RAM_FILE: &str = "ram";
/// Device state, as a migration stream.
pub(super) const DEVICES_FILE: &str = "devices";
/// How long the bytes of one VM may take to be written or read.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(3600);
/// How long a cancelled migration may take to end.
const CANCEL_PATIENCE: Duration = Duration::from_secs(20);
/// Pause between two questions while bytes are transferred.
const ASK_EVERY: Duration = Duration::from_millis(5);

/// RAM's part of a cut under way.
#[derive(Debug)]
pub(super) enum Taking {
    /// By [`RamWay::Live`].
    Live(Box<Precopy>),
    /// By [`RamWay::StopAndSave`].
    StopAndSave,
}

/// The thread that makes RAM durable.
pub(super) type Saving = JoinHandle<Result<(), HypervisorError>>;

/// Files that a way produces, in the order in which they are listed in the manifest.
pub(super) fn files(way: RamWay) -> &'static [(&'static str, FileRole)] {
    match way {
        RamWay::Live => &[(RAM_FILE, FileRole::Ram), (DEVICES_FILE, FileRole::DeviceState)],
        RamWay::StopAndSave => &[(RAM_FILE, FileRole::MigrationStream)],
    }
}

/// Can this QEMU do it at all?
pub(super) async fn probe(qmp: &Qmp, way: RamWay) -> Result<(), HypervisorError> {
    match way {
        RamWay::Live => live::configure(qmp).await,
        RamWay::StopAndSave => Ok(()),
    }
}

impl Taking {
    /// Begins; `folder` receives the files.
    pub(super) async fn begin(
        qmp: &Qmp,
        way: RamWay,
        folder: &Path,
        memory_bytes: u64,
    ) -> Result<Self, HypervisorError> {
        match way {
            RamWay::Live => Ok(Self::Live(Box::new(Precopy::begin(qmp, folder, memory_bytes).await?))),
            RamWay::StopAndSave => {
                // The default of 128 MiB/s is meant for networks.
                qmp.execute("migrate-set-parameters", json!({"max-bandwidth": 1_u64 << 50})).await?;
                Ok(Self::StopAndSave)
            }
        }
    }

    /// Completes what can be done before the pause.
    pub(super) async fn catch_up(
        &mut self,
        qmp: &Qmp,
        process: &Process,
        vm: &str,
    ) -> Result<(), HypervisorError> {
        match self {
            Self::Live(precopy) => precopy.catch_up(qmp, process, vm).await,
            Self::StopAndSave => Ok(()),
        }
    }

    /// Fails if what was begun has ended.
    pub(super) async fn check(&self, qmp: &Qmp, vm: &str) -> Result<(), HypervisorError> {
        match self {
            Self::Live(precopy) => precopy.check(qmp, vm).await.map(drop),
            Self::StopAndSave => Ok(()),
        }
    }

    /// The cut may come at any moment.
    pub(super) fn draw_near(&self) {
        if let Self::Live(precopy) = self {
            precopy.draw_near();
        }
    }

    /// The VM stands still.
    pub(super) fn stopped(&self) {
        if let Self::Live(precopy) = self {
            precopy.open_wide();
        }
    }

    /// A command of QEMU's to be carried out in the pause, if there is one.
    pub(super) fn enter_pause(&self) -> Option<(&'static str, Value)> {
        match self {
            Self::Live(_) => Some(Precopy::save_devices()),
            Self::StopAndSave => None,
        }
    }

    /// Fixes the instant of the stopped VM's RAM; it is the one at which this returns.
    pub(super) async fn fix(&self, qmp: &Qmp, vm: &str, folder: &Path) -> Result<(), HypervisorError> {
        match self {
            Self::Live(precopy) => precopy.all_sent(qmp, vm).await,
            Self::StopAndSave => {
                qmp.execute("migrate", json!({"uri": file_uri(&folder.join(RAM_FILE))})).await?;
                wait_transferred(qmp, vm, "saving its RAM").await
            }
        }
    }

    /// What is to come before `cont`.
    pub(super) fn leave_pause(&self) -> Option<(&'static str, Value)> {
        match self {
            Self::Live(_) => Some(("migrate_cancel", json!({}))),
            Self::StopAndSave => None,
        }
    }

    /// Begins to make what was taken durable, behind the running VM, on a thread that nothing stops. QEMU is not
    /// needed for it any more.
    pub(super) async fn save(self, qmp: &Qmp) -> Option<Saving> {
        let Self::Live(precopy) = self else { return None };
        if let Err(error) = Precopy::forget_file(qmp).await {
            tracing::warn!(%error, "QEMU keeps a descriptor that it does not need");
        }
        Some(tokio::task::spawn_blocking(move || precopy.save()))
    }

    /// Why it ended by itself, if it did: the cause of the error that was seen first.
    pub(super) fn failure(self) -> Option<HypervisorError> {
        match self {
            Self::Live(precopy) => precopy.failure(),
            Self::StopAndSave => None,
        }
    }
}

/// Ends a migration that is under way, if there is one.
pub(super) async fn cancel(qmp: &Qmp, vm: &str) -> Result<(), HypervisorError> {
    if MigrationInfo::ask(qmp).await?.has_ended() {
        return Ok(());
    }
    qmp.execute("migrate_cancel", json!({})).await?;
    let deadline = Instant::now() + CANCEL_PATIENCE;
    while !MigrationInfo::ask(qmp).await?.has_ended() {
        if Instant::now() > deadline {
            let what = "cancelling the save of its RAM".to_owned();
            return Err(HypervisorError::TimedOut { vm: vm.to_owned(), what, after: CANCEL_PATIENCE });
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    Ok(())
}

/// Loads a snapshot taken by `way` into a new QEMU that waits for it. Where RAM is mapped from its file, only the
/// devices are read here.
pub(super) async fn load(qmp: &Qmp, vm: &str, way: RamWay, folder: &Path) -> Result<(), HypervisorError> {
    let stream = match way {
        RamWay::Live => DEVICES_FILE,
        RamWay::StopAndSave => RAM_FILE,
    };
    let uri = file_uri(&folder.join(stream));
    qmp.execute("migrate-incoming", json!({"uri": uri, "exit-on-error": false})).await?;
    wait_transferred(qmp, vm, "loading its RAM").await
}

fn file_uri(path: &Path) -> String {
    format!("file:{}", path.display())
}

/// The parts of `query-migrate` that matter here.
#[derive(Debug)]
struct MigrationInfo {
    status: String,
    error: String,
}

impl MigrationInfo {
    async fn ask(qmp: &Qmp) -> Result<Self, HypervisorError> {
        let info = qmp.execute("query-migrate", json!({})).await?;
        let text = |name: &str| info[name].as_str().unwrap_or_default().to_owned();
        Ok(Self { status: text("status"), error: text("error-desc") })
    }

    fn has_ended(&self) -> bool {
        matches!(self.status.as_str(), "" | "none" | "completed" | "failed" | "cancelled")
    }
}

async fn wait_transferred(qmp: &Qmp, vm: &str, what: &'static str) -> Result<(), HypervisorError> {
    let deadline = Instant::now() + TRANSFER_PATIENCE;
    loop {
        let info = MigrationInfo::ask(qmp).await?;
        match info.status.as_str() {
            "completed" => return Ok(()),
            "failed" | "cancelled" | "cancelling" => {
                let reason = if info.error.is_empty() { info.status } else { info.error };
                return Err(HypervisorError::Refused { vm: vm.to_owned(), command: what.to_owned(), reason });
            }
            _ if Instant::now() > deadline => {
                return Err(HypervisorError::TimedOut {
                    vm: vm.to_owned(),
                    what: what.to_owned(),
                    after: TRANSFER_PATIENCE,
                });
            }
            _ => tokio::time::sleep(ASK_EVERY).await,
        }
    }
}

//! The three ways of giving RAM its instant, and loading it again.
//!
//! | way | in the pause | behind the running VM | files |
//! |---|---|---|---|
//! | `background-snapshot` | device state is taken, every page write-protected | pages are written, those that the guest wants to change first | `ram` (migration stream) |
//! | `ram-copy` | device state is taken, the data of the shared RAM copied | | `ram` (bytes), `devices` |
//! | `stop-and-save` | everything is written | | `ram` (migration stream) |

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::super::HypervisorError;
use super::memfd;
use super::process::Process;
use super::qmp::Qmp;
use crate::store::manifest::{FileRole, RamWay};

/// Migration stream, or bytes of RAM.
pub(super) const RAM_FILE: &str = "ram";
/// Device state without RAM.
pub(super) const DEVICES_FILE: &str = "devices";
/// How long write protection may take to be in force.
const PROTECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long the bytes of one VM may take to be written or read.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(3600);
/// How long a cancelled migration may take to end.
const CANCEL_PATIENCE: Duration = Duration::from_secs(20);
/// Pause between two questions while bytes are transferred.
const ASK_EVERY: Duration = Duration::from_millis(5);

/// Files that a way produces, in the order in which they are listed in the manifest.
pub(super) fn files(way: RamWay) -> &'static [(&'static str, FileRole)] {
    match way {
        RamWay::RamCopy => &[(RAM_FILE, FileRole::Ram), (DEVICES_FILE, FileRole::DeviceState)],
        RamWay::BackgroundSnapshot | RamWay::StopAndSave => &[(RAM_FILE, FileRole::MigrationStream)],
    }
}

/// Sets QEMU up for `way`; part of preparing a cut.
pub(super) async fn prepare(qmp: &Qmp, way: RamWay) -> Result<(), HypervisorError> {
    let background = way == RamWay::BackgroundSnapshot;
    let capability = json!([{"capability": "background-snapshot", "state": background}]);
    qmp.execute("migrate-set-capabilities", json!({"capabilities": capability})).await?;
    // The default of 128 MiB/s is meant for networks.
    qmp.execute("migrate-set-parameters", json!({"max-bandwidth": 1_u64 << 50})).await?;
    Ok(())
}

/// Fixes the instant of the stopped VM's RAM. When it returns, the VM may be resumed.
pub(super) async fn fix(
    qmp: &Qmp,
    vm: &str,
    way: RamWay,
    process: Process,
    folder: &Path,
) -> Result<(), HypervisorError> {
    let uri = file_uri(&folder.join(RAM_FILE));
    match way {
        RamWay::BackgroundSnapshot => {
            qmp.execute("migrate", json!({"uri": uri})).await?;
            // QEMU writes pages only once the protection of all of them is in force.
            let protected = |info: &MigrationInfo| info.pages > 0 || info.status == "completed";
            wait(qmp, vm, "write-protecting its RAM", protected, PROTECT_PATIENCE, Duration::ZERO).await
        }
        RamWay::RamCopy => {
            let devices = folder.join(DEVICES_FILE);
            qmp.execute("xen-save-devices-state", json!({"filename": devices, "live": false})).await?;
            memfd::save(process, &folder.join(RAM_FILE)).await
        }
        RamWay::StopAndSave => {
            qmp.execute("migrate", json!({"uri": uri})).await?;
            wait_transferred(qmp, vm, "saving its RAM").await
        }
    }
}

/// Waits until the bytes that [`fix`] left to be written are written.
pub(super) async fn finish(qmp: &Qmp, vm: &str, way: RamWay) -> Result<(), HypervisorError> {
    match way {
        RamWay::BackgroundSnapshot => wait_transferred(qmp, vm, "saving its RAM").await,
        RamWay::RamCopy | RamWay::StopAndSave => Ok(()),
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

/// Loads what [`fix`] and [`finish`] saved into a new QEMU that waits for it.
pub(super) async fn load(
    qmp: &Qmp,
    vm: &str,
    way: RamWay,
    process: Process,
    folder: &Path,
) -> Result<(), HypervisorError> {
    let stream = match way {
        RamWay::RamCopy => {
            memfd::load(process, &folder.join(RAM_FILE)).await?;
            DEVICES_FILE
        }
        RamWay::BackgroundSnapshot | RamWay::StopAndSave => RAM_FILE,
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
    pages: u64,
    error: String,
}

impl MigrationInfo {
    async fn ask(qmp: &Qmp) -> Result<Self, HypervisorError> {
        let info = qmp.execute("query-migrate", json!({})).await?;
        let count = |name: &str| info["ram"][name].as_u64().unwrap_or(0);
        let text = |name: &str| info[name].as_str().unwrap_or_default().to_owned();
        let pages = count("normal") + count("duplicate");
        Ok(Self { status: text("status"), pages, error: text("error-desc") })
    }

    fn has_ended(&self) -> bool {
        matches!(self.status.as_str(), "" | "none" | "completed" | "failed" | "cancelled")
    }
}

async fn wait_transferred(qmp: &Qmp, vm: &str, what: &'static str) -> Result<(), HypervisorError> {
    wait(qmp, vm, what, |info| info.status == "completed", TRANSFER_PATIENCE, ASK_EVERY).await
}

async fn wait(
    qmp: &Qmp,
    vm: &str,
    what: &'static str,
    done: impl Fn(&MigrationInfo) -> bool,
    patience: Duration,
    ask_every: Duration,
) -> Result<(), HypervisorError> {
    let deadline = Instant::now() + patience;
    loop {
        let info = MigrationInfo::ask(qmp).await?;
        if done(&info) {
            return Ok(());
        }
        if matches!(info.status.as_str(), "failed" | "cancelled" | "cancelling") {
            let reason = if info.error.is_empty() { info.status } else { info.error };
            return Err(HypervisorError::Refused { vm: vm.to_owned(), command: what.to_owned(), reason });
        }
        if Instant::now() > deadline {
            return Err(HypervisorError::TimedOut {
                vm: vm.to_owned(),
                what: what.to_owned(),
                after: patience,
            });
        }
        // The round trip itself paces the question where every millisecond is one of pause.
        if !ask_every.is_zero() {
            tokio::time::sleep(ask_every).await;
        }
    }
}

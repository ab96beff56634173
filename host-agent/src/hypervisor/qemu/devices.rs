//! Are the devices of a running QEMU those of its command line? A device that somebody has plugged in or out meanwhile is in
//! the saved state and not in the machine that is to load it, and a network card has none of our programs.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::HypervisorError;
use super::command::device_ids;
use super::qmp::Qmp;

/// Devices without an id: the port of the guest's channel.
const ANONYMOUS: usize = 1;

/// Fails if a device came or went.
pub(super) async fn check(qmp: &Qmp, vm: &str, disks: usize, nics: usize) -> Result<(), HypervisorError> {
    let expected: BTreeSet<_> = device_ids(disks, nics).collect();
    let found: BTreeSet<_> = children(qmp, "/machine/peripheral").await?.into_iter().collect();
    let anonymous = children(qmp, "/machine/peripheral-anon").await?;
    let strange = found.difference(&expected).chain(anonymous.iter().skip(ANONYMOUS));
    let changes: Vec<_> = strange
        .map(|device| format!("{device} was plugged in"))
        .chain(expected.difference(&found).map(|device| format!("{device} was taken out")))
        .collect();
    if changes.is_empty() {
        return Ok(());
    }
    let why = format!(
        "{} since it was started, and such a snapshot could not be restored: undo that, or put it into the VM's definition and restart the VM",
        changes.join(", ")
    );
    Err(HypervisorError::WrongState { vm: vm.to_owned(), wanted: "prepare a cut", why })
}

/// Names of what stands below a path of QEMU's object tree.
async fn children(qmp: &Qmp, path: &'static str) -> Result<Vec<String>, HypervisorError> {
    let listed = qmp.execute("qom-list", json!({"path": path})).await?;
    let entries = listed.as_array().map(Vec::as_slice).unwrap_or_default();
    let is_child = |entry: &&Value| entry["type"].as_str().is_some_and(|kind| kind.starts_with("child<"));
    Ok(entries.iter().filter(is_child).filter_map(|entry| Some(entry["name"].as_str()?.to_owned())).collect())
}

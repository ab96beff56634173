//! Tap devices: one per network card, on the bridge that the definition names.

use std::path::Path;

use super::super::HypervisorError;
use super::tool::run;
use crate::definition::VmDefinition;

/// Name of the tap of card `index`: fixed by state folder, VM and index, so that a restart finds it and no
/// other agent of the same host can mean the same one. At most 15 bytes, as Linux wants.
pub(super) fn name(state_dir: &Path, vm: &str, index: usize) -> String {
    let seed = format!("{}\0{vm}\0{index}", state_dir.display());
    format!("us{}", &blake3::hash(seed.as_bytes()).to_hex()[..12])
}

/// Creates the taps of `vm` afresh and returns their names. They take no frames before [`raise`].
///
/// # Errors
/// `Tool`; taps made so far are removed.
pub(super) async fn create_all(state_dir: &Path, vm: &VmDefinition) -> Result<Vec<String>, HypervisorError> {
    let names: Vec<String> = (0..vm.nics.len()).map(|n| name(state_dir, vm.name.as_str(), n)).collect();
    remove_all(&names).await?;
    for (name, nic) in names.iter().zip(&vm.nics) {
        if let Err(error) = create(name, &nic.bridge).await {
            remove_all(&names).await?;
            return Err(error);
        }
    }
    Ok(names)
}

async fn create(name: &str, bridge: &str) -> Result<(), HypervisorError> {
    run("ip", &["tuntap", "add", "dev", name, "mode", "tap"]).await?;
    run("ip", &["link", "set", "dev", name, "master", bridge]).await?;
    Ok(())
}

/// Lets frames through. A VM that is loaded and waits for START must not have any: other members' old instances may still
/// live, and what these send would wait in the queue and be taken for the restored ones'.
///
/// # Errors
/// `Tool` when one of them is gone.
pub(super) async fn raise(names: &[String]) -> Result<(), HypervisorError> {
    for name in names {
        run("ip", &["link", "set", "dev", name, "up"]).await?;
    }
    Ok(())
}

/// Removes those that exist.
///
/// # Errors
/// `Tool` when one of them cannot be removed.
pub(super) async fn remove_all(names: &[String]) -> Result<(), HypervisorError> {
    // Not /sys/class/net: that shows the network namespace in which /sys was mounted.
    let devices = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let exists = |name: &str| devices.lines().any(|line| line.trim_start().starts_with(&format!("{name}:")));
    for name in names.iter().filter(|name| exists(name)) {
        run("ip", &["link", "delete", "dev", name]).await?;
    }
    Ok(())
}

//! Layers of a VM's disks: made, switched, merged, linked into snapshots and back.
//!
//! The operator's image is only ever read. Above it stands a chain of qcow2 layers in the VM's disks folder;
//! all but the last are frozen and may be shared, by hard links, with any number of snapshots.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use unasnap_files::qcow2;

use super::super::{HypervisorError, base_image};
use super::command::{disk_id, node};
use super::instance::{Chain, Layer, VmFolder};
use super::qmp::{Command, Qmp};
use super::tool::run;
use crate::definition::{Disk, ImageFormat};
use crate::store::files;
use crate::store::manifest::{FileRole, Manifest};

/// Chains longer than this many layers are merged: each layer makes a cut and every read slower.
const MAX_LAYERS: usize = 8;
/// A disk consists of these, bytes.
const SECTOR: u64 = 512;
/// How long a merge may take to stop when the next cut is prepared.
const MERGE_STOP_PATIENCE: Duration = Duration::from_secs(10);

/// The first layer above the operator's image.
pub(super) async fn new_chain(
    index: usize,
    disk: &Disk,
    folder: &VmFolder,
) -> Result<Chain, HypervisorError> {
    let base = base_image::describe(&disk.image)?;
    let layer = Layer::new(index, 0);
    create_layer(&layer, &base.path.to_string_lossy(), disk.format, folder).await?;
    Ok(Chain { base, layers: vec![layer], next: None })
}

/// An empty layer above `backing`, a path or the name of a file of the same folder, which is of this format. What lies below
/// that is not opened: its header names the image where it was when the layer was made, perhaps on another host.
pub(super) async fn create_layer(
    layer: &Layer,
    backing: &str,
    format: ImageFormat,
    folder: &VmFolder,
) -> Result<(), HypervisorError> {
    let path = folder.disks.join(&layer.file);
    // A file of this name can only be left over from a cut that an agent did not live to end.
    files::remove_if_there(&path).map_err(HypervisorError::file("delete", &path))?;
    let bytes = disk_bytes(&folder.disks.join(backing), format)?.to_string();
    let (format, path) = (format.label(), path.to_string_lossy());
    let unopened: [&str; 11] =
        ["create", "-q", "-u", "-f", "qcow2", "-F", format, "-b", backing, &path, &bytes];
    run("qemu-img", &unopened).await?;
    Ok(())
}

/// Length of the disk in an image.
fn disk_bytes(image: &Path, format: ImageFormat) -> Result<u64, HypervisorError> {
    if format == ImageFormat::Raw {
        let bytes = std::fs::metadata(image).map_err(HypervisorError::file("read", image))?.len();
        return Ok(bytes.next_multiple_of(SECTOR));
    }
    let unusable = |what: String| HypervisorError::Unsupported { what };
    let bytes = qcow2::virtual_bytes(image).map_err(|error| unusable(error.to_string()))?;
    bytes.ok_or_else(|| {
        unusable(format!("{} is no qcow2 image: say `format = \"raw\"` if it is a raw one", image.display()))
    })
}

/// The chain with which a VM that is not running goes on: the overlay of an unfinished cut is kept, because
/// nobody knows whether the VM had been switched to it.
pub(super) fn after_a_crash(mut chain: Chain, folder: &VmFolder) -> Chain {
    if let Some(next) = chain.next.take()
        && folder.disks.join(&next.file).exists()
    {
        chain.layers.push(next);
    }
    chain
}

/// Creates the overlay of every disk and opens it in QEMU.
pub(super) async fn open_overlays(
    qmp: &Qmp,
    chains: &[Chain],
    folder: &VmFolder,
) -> Result<(), HypervisorError> {
    for chain in chains {
        let Some(next) = &chain.next else { continue };
        create_layer(next, &chain.active().file, ImageFormat::Qcow2, folder).await?;
        let path = folder.disks.join(&next.file);
        qmp.execute("blockdev-add", node(next.node(), &path.to_string_lossy(), &Value::Null, false)).await?;
    }
    Ok(())
}

/// The command that switches every disk to its opened overlay, all or none; none is needed without disks.
pub(super) fn switch(chains: &[Chain]) -> Option<Command> {
    let pairs = chains.iter().filter_map(|chain| Some((chain.active().node(), chain.next.as_ref()?.node())));
    let actions: Vec<Value> = pairs
        .map(|(node, overlay)| json!({"type": "blockdev-snapshot", "data": {"node": node, "overlay": overlay}}))
        .collect();
    (!actions.is_empty()).then(|| ("transaction", json!({"actions": actions})))
}

/// Brings `chains` in line with QEMU's block graph, which alone knows whether a switch or a merge happened.
/// Overlays that were opened and not used are closed and deleted, as are layers that a merge made superfluous.
pub(super) async fn settle(
    qmp: &Qmp,
    chains: &mut [Chain],
    folder: &VmFolder,
) -> Result<(), HypervisorError> {
    let nodes = qmp.execute("query-named-block-nodes", json!({"flat": true})).await?;
    let devices = qmp.execute("query-block", json!({})).await?;
    for (index, chain) in chains.iter_mut().enumerate() {
        let medium = medium(&devices, index)?;
        let mut superfluous = Vec::new();
        if let Some(next) = chain.next.take() {
            let switched = medium["node-name"] == next.node();
            if switched { &mut chain.layers } else { &mut superfluous }.push(next);
        }
        // The image is opened as the definition names it, so QEMU names it the same way.
        let below = medium["image"]["backing-image"]["filename"].as_str().unwrap_or_default();
        if Path::new(below) == chain.base.path {
            let merged = chain.layers.len() - 1;
            superfluous.extend(chain.layers.drain(..merged).rev());
        }
        for layer in superfluous {
            if is_open(&nodes, layer.node()) {
                qmp.execute("blockdev-del", json!({"node-name": layer.node()})).await?;
            }
            let path = folder.disks.join(&layer.file);
            files::remove_if_there(&path).map_err(HypervisorError::file("delete", &path))?;
        }
    }
    Ok(())
}

/// What QEMU says about the node on which device `index` stands.
fn medium(devices: &Value, index: usize) -> Result<&Value, HypervisorError> {
    let path = format!("/machine/peripheral/{}/", disk_id(index));
    let is_ours = |device: &&Value| device["qdev"].as_str().is_some_and(|qdev| qdev.starts_with(&path));
    let device = devices.as_array().into_iter().flatten().find(is_ours);
    device.map(|device| &device["inserted"]).filter(|medium| medium["node-name"].is_string()).ok_or_else(
        || {
            let what = format!("QEMU does not say on which node {} stands: restart the VM", disk_id(index));
            HypervisorError::Unsupported { what }
        },
    )
}

fn is_open(nodes: &Value, name: &str) -> bool {
    nodes.as_array().into_iter().flatten().any(|node| node["node-name"] == name)
}

fn merge_id(index: usize) -> String {
    format!("merge-{}", disk_id(index))
}

/// Begins to merge the layers of every chain that has grown too long into its active one, behind the running VM.
pub(super) async fn start_merges(qmp: &Qmp, chains: &[Chain]) -> Result<(), HypervisorError> {
    for (index, chain) in chains.iter().enumerate().filter(|(_, chain)| chain.layers.len() > MAX_LAYERS) {
        let base = format!("{}-base", disk_id(index));
        let job = json!({"job-id": merge_id(index), "device": chain.active().node(), "base-node": base});
        qmp.execute("block-stream", job).await?;
    }
    Ok(())
}

/// Stops merges that still run: they and a switch of the disks exclude each other.
pub(super) async fn stop_merges(qmp: &Qmp, vm: &str) -> Result<(), HypervisorError> {
    let deadline = Instant::now() + MERGE_STOP_PATIENCE;
    loop {
        let jobs = qmp.execute("query-block-jobs", json!({})).await?;
        let ids: Vec<&str> =
            jobs.as_array().into_iter().flatten().filter_map(|job| job["device"].as_str()).collect();
        if ids.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let what = format!("stopping the merge of disk layers ({})", ids.join(", "));
            return Err(HypervisorError::TimedOut { vm: vm.to_owned(), what, after: MERGE_STOP_PATIENCE });
        }
        for id in ids {
            match qmp.execute("block-job-cancel", json!({"device": id, "force": true})).await {
                // It may have ended by itself since it was listed.
                Ok(_) | Err(HypervisorError::Refused { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Builds the disks folder of a VM from the layers of a snapshot, each chain with a new active layer on top.
pub(super) async fn from_snapshot(
    manifest: &Manifest,
    saved: &Path,
    disks: &[Disk],
    folder: &VmFolder,
) -> Result<Vec<Chain>, HypervisorError> {
    let chains = above_saved(manifest, saved, disks, folder).await?.into_iter().enumerate();
    let whole = chains.map(|(index, chain)| {
        chain.ok_or_else(|| {
            let what =
                format!("the snapshot holds no layer of {}: the VM had fewer disks then", disk_id(index));
            HypervisorError::Unsupported { what }
        })
    });
    whole.collect()
}

/// As [`from_snapshot`], of the frozen disks of a VM that may never have run: then there are only its images.
pub(super) async fn from_frozen(
    manifest: &Manifest,
    saved: &Path,
    disks: &[Disk],
    folder: &VmFolder,
) -> Result<Vec<Chain>, HypervisorError> {
    let mut chains = Vec::new();
    for (index, chain) in above_saved(manifest, saved, disks, folder).await?.into_iter().enumerate() {
        chains.push(match chain {
            Some(chain) => chain,
            None => {
                let chain = new_chain(index, &disks[index], folder).await?;
                let base = base_image::check(chain.base, manifest.bases.get(index)).await?;
                Chain { base, ..chain }
            }
        });
    }
    Ok(chains)
}

/// A chain for each disk; `None` where no layer of it was saved.
async fn above_saved(
    manifest: &Manifest,
    saved: &Path,
    disks: &[Disk],
    folder: &VmFolder,
) -> Result<Vec<Option<Chain>>, HypervisorError> {
    let mut chains = Vec::new();
    for (index, disk) in disks.iter().enumerate() {
        let base = base_image::check(base_image::describe(&disk.image)?, manifest.bases.get(index)).await?;
        let mut layers = Vec::new();
        for file in manifest.files.iter().filter(|file| file.role == FileRole::DiskLayer(index)) {
            let (from, to) = (saved.join(&file.name), folder.disks.join(&file.name));
            files::link_or_copy(&from, &to).map_err(HypervisorError::file("link", &from))?;
            layers.push(Layer { file: file.name.clone(), blake3: Some(file.blake3.clone()) });
        }
        if layers.is_empty() {
            chains.push(None);
            continue;
        }
        let mut chain = Chain { base, layers, next: None };
        let active = chain.following(index);
        create_layer(&active, &chain.active().file, ImageFormat::Qcow2, folder).await?;
        chain.layers.push(active);
        chains.push(Some(chain));
    }
    Ok(chains)
}

/// Fills in the digests of the operator's images; each is computed once as long as the image stays as it is.
pub(super) async fn digest_bases(chains: &mut [Chain]) -> Result<(), HypervisorError> {
    for chain in chains {
        let now = base_image::describe(&chain.base.path)?;
        chain.base.blake3 = match base_image::unchanged(&now, &chain.base)? {
            unknown if unknown.is_empty() => base_image::digest(&now.path).await?,
            known => known,
        };
    }
    Ok(())
}

//! Machines of other hosts. VirtualBox would open every file that the settings name, so it gets settings that are written anew, with
//! nothing but what unasnap's own have unless that host is believed; and the rest is looked at before any of it is used.

use std::collections::BTreeSet;
use std::path::Path;

use unasnap_files::vbox::foreign::{Own, written_anew};
use unasnap_files::{vbox, vdi};

use super::super::HypervisorError;
use super::machine::{LAYOUT_FILE, Layout, SETTINGS_FILE};
use super::record::{VmFolder, socket_path};
use crate::store::Placed;
use crate::store::manifest::{FileRole, Manifest};

/// Where a machine's differences and saved states lie in its folder.
const SNAPSHOTS: &str = "Snapshots/";

/// Refuses a local snapshot of a machine that is not one of unasnap's, or of which VirtualBox would open more than has come; also the
/// disks alone of one that does not run.
/// `saved` has the files of `manifest`, `here` says where the machine and its base are to lie.
///
/// # Errors
/// What is wrong with it.
pub fn check(manifest: &Manifest, saved: &Path, here: &Placed) -> Result<(), HypervisorError> {
    if manifest.files.iter().all(|file| file.role == FileRole::DifferenceDisk) {
        let [base] = here.bases.as_slice() else {
            return Err(unsupported("it has not one base".to_owned()));
        };
        return layers(manifest, saved, base).map(drop);
    }
    let layout = Layout::read(saved)?;
    let ([base], [_]) = (here.bases.as_slice(), layout.bases.as_slice()) else {
        return Err(unsupported("its machine has not one disk on one base".to_owned()));
    };
    check_files(manifest, &layout)?;
    let settings = saved.join(SETTINGS_FILE);
    let attached = vbox::attached(&settings).map_err(|error| unsupported(error.to_string()))?;
    if attached.has_removable {
        let what = "an image is in its machine's drive, which has not come: eject it there (VBoxManage storageattach)";
        return Err(unsupported(what.to_owned()));
    }
    let cut = attached.snapshots.get(&layout.snapshot);
    let cut = cut.filter(|_| here.believed || attached.snapshots.len() == 1).ok_or_else(|| {
        unsupported(
            "its machine has other snapshots of VirtualBox than that of the cut: delete them there (VBoxManage snapshot)"
                .to_owned(),
        )
    })?;
    let [disk] = cut.as_slice() else {
        return Err(unsupported(format!("its machine has {} disks at the cut, not one", cut.len())));
    };
    if !layers(manifest, saved, base)?.contains(disk) {
        return Err(unsupported(format!("its machine has a disk {disk} that has not come with it")));
    }
    written_settings(saved, here).map(drop)
}

/// The settings of a local snapshot that came from another host, for the machine as it is to be here.
///
/// # Errors
/// There is something in them that no machine of unasnap's has, and that host is not believed; or they cannot be read.
pub fn written_settings(saved: &Path, here: &Placed) -> Result<String, HypervisorError> {
    let (path, vm, folder) =
        (saved.join(SETTINGS_FILE), &here.definition, VmFolder::of_machine(&here.definition));
    let text = std::fs::read_to_string(&path).map_err(HypervisorError::file("read", &path))?;
    let bridges: Vec<&str> = vm.nics.iter().map(|nic| nic.bridge.as_str()).collect();
    let guest_channel = socket_path(&folder.guest_channel())?;
    let console = socket_path(&folder.console_socket())?;
    let own = Own {
        name: vm.name.as_str(),
        bridges: &bridges,
        guest_channel: &guest_channel,
        console: &console,
        believed: here.believed,
    };
    written_anew(&text, &own).map_err(|what| {
        unsupported(format!(
            "the settings of {}'s machine are not as unasnap makes them: {what}; set it back on the host that it comes from, and take a \
             snapshot there, or have this host believe that one (`believes` in the [virtualbox] of host.toml)",
            vm.name
        ))
    })
}

/// Each file lies where VirtualBox puts such a file, and nothing else has come.
fn check_files(manifest: &Manifest, layout: &Layout) -> Result<(), HypervisorError> {
    let mut placed = BTreeSet::new();
    for file in &manifest.files {
        let end = match file.role {
            FileRole::Settings if file.name == SETTINGS_FILE => continue,
            FileRole::Layout if file.name == LAYOUT_FILE => continue,
            FileRole::DifferenceDisk => ".vdi",
            FileRole::SavedState => ".sav",
            role => {
                return Err(unsupported(format!(
                    "{} is a {role:?}, which no machine of unasnap's has",
                    file.name
                )));
            }
        };
        let of_file = |(name, place): &&(String, String)| *name == file.name && lies_inside(place, end);
        if layout.places.iter().filter(of_file).count() != 1 {
            return Err(unsupported(format!("its layout does not put {} into {SNAPSHOTS}", file.name)));
        }
        placed.insert(&file.name);
    }
    match layout.places.iter().find(|(name, _)| !placed.contains(name)) {
        Some((name, place)) => {
            Err(unsupported(format!("its layout has {name} at {place}, which has not come")))
        }
        None => Ok(()),
    }
}

fn lies_inside(place: &str, end: &str) -> bool {
    let name = place.strip_prefix(SNAPSHOTS).and_then(|name| name.strip_suffix(end));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-{}".contains(&byte);
    name.is_some_and(|name| !name.is_empty() && name.bytes().all(plain))
}

/// The UUIDs of the differences, each of which has to stand on `base` or on another one.
fn layers(manifest: &Manifest, saved: &Path, base: &Path) -> Result<BTreeSet<String>, HypervisorError> {
    let read = |path: &Path, is_layer: bool| {
        let header = vdi::read(path).map_err(|error| unsupported(error.to_string()))?;
        let header = header.filter(|header| (header.kind == vdi::Kind::Difference) == is_layer);
        let header = header.filter(|header| header.parent().is_some() == is_layer);
        let uuid = header.as_ref().and_then(vdi::Header::uuid);
        let what = if is_layer { "a difference" } else { "a base" };
        uuid.zip(header)
            .ok_or_else(|| unsupported(format!("{} is not {what} of VirtualBox's", path.display())))
    };
    let (base, _) = read(base, false)?;
    let differences = manifest.files.iter().filter(|file| file.role == FileRole::DifferenceDisk);
    let headers = differences.map(|file| read(&saved.join(&file.name), true));
    let headers = headers.collect::<Result<Vec<_>, _>>()?;
    let uuids: BTreeSet<String> = headers.iter().map(|(uuid, _)| uuid.clone()).collect();
    let stands = |parent: &String| *parent == base || uuids.contains(parent);
    match headers.iter().find(|(_, header)| !header.parent().is_some_and(|parent| stands(&parent))) {
        Some((uuid, _)) => {
            Err(unsupported(format!("its disk {uuid} stands on another base than the one that came with it")))
        }
        None if uuids.len() < headers.len() => Err(unsupported("two of its disks have one UUID".to_owned())),
        None => Ok(uuids),
    }
}

fn unsupported(what: String) -> HypervisorError {
    HypervisorError::Unsupported { what }
}

//! Could this VM be restored on this host? What cannot be is said before a byte is moved, and before anything is ended.
//!
//! And may it? QEMU opens every file that the header of an image names, and VirtualBox every one that a machine's settings do, and
//! another host has made these: one that names a file could show the VM any file of this host.

use std::path::Path;

use unasnap_files::qcow2;
use unasnap_protocol::control::{Failure, FailureKind, Phase};

use crate::definition::{ImageFormat, VmDefinition};
use crate::drivers::Runners;
use crate::hypervisor::virtualbox::coming;
use crate::store::Placed;
use crate::store::manifest::{Facts, FileRole, Manifest};
use crate::works::chain;

/// What the hypervisor of a VM is on this host, or why there is none.
pub type Runner = Result<Facts, String>;

/// Of this VM.
pub async fn runner(runners: &dyn Runners, vm: &VmDefinition) -> Runner {
    runners.facts(vm.machine.is_some()).await.map_err(|error| chain(&error))
}

/// Refuses what would not run here.
///
/// # Errors
/// What is missing, in words.
pub fn check(definition: &VmDefinition, taken: &Facts, here: &Runner, phase: Phase) -> Result<(), Failure> {
    let vm = &definition.name;
    let refuse = |text: String| Err(Failure::new(FailureKind::BadRequest, phase, text));
    let here = check_definition(definition, taken, here, phase)?;
    let letter = |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter);
    let has_type = definition.machine.is_none();
    if has_type && (taken.machine.is_empty() || !taken.machine.chars().all(letter)) {
        return refuse(format!("{:?} in the snapshot's manifest is no machine type of QEMU", taken.machine));
    }
    if release(&here.version).zip(release(&taken.version)).is_some_and(|(here, taken)| here < taken) {
        return refuse(format!(
            "{vm} was snapshotted by {} {}, and this host has {}, which is older and cannot load it; install that version here, or use another host",
            product(definition),
            taken.version,
            here.version
        ));
    }
    if here.accel != taken.accel {
        return refuse(format!(
            "{vm} was snapshotted under {}, and this host runs VMs under {}: its processor's state does not fit; use a host with {}",
            taken.accel.label(),
            here.accel.label(),
            taken.accel.label()
        ));
    }
    Ok(())
}

/// As [`check`], of a VM that does not run: there is no state of a processor that has to fit.
///
/// # Errors
/// As there.
pub fn check_stopped(
    definition: &VmDefinition,
    taken: &Facts,
    here: &Runner,
    phase: Phase,
) -> Result<(), Failure> {
    check_definition(definition, taken, here, phase).map(drop)
}

/// Answers what would run it here.
fn check_definition<'a>(
    definition: &VmDefinition,
    taken: &Facts,
    here: &'a Runner,
    phase: Phase,
) -> Result<&'a Facts, Failure> {
    let (vm, product) = (&definition.name, product(definition));
    let refuse = |text: String| Err(Failure::new(FailureKind::BadRequest, phase, text));
    if taken.kind != product.to_lowercase() {
        return refuse(format!("{vm} is a VM of {product}, and was snapshotted by {}", taken.kind));
    }
    // Another host wrote it, and what the hypervisor is told is made of it.
    if let Err(error) = definition.check(Path::new("the manifest of the other host")) {
        return refuse(error.to_string());
    }
    let here = match here {
        Ok(here) => here,
        Err(why) => {
            return refuse(format!(
                "{vm} is a VM of {product}, which this host's agent does not drive: {why}"
            ));
        }
    };
    // A machine that was made by hand may know its bridges itself.
    let named = definition.nics.iter().filter(|nic| definition.machine.is_none() || !nic.bridge.is_empty());
    match named.into_iter().find(|nic| !is_device(&nic.bridge)) {
        Some(nic) => refuse(format!(
            "{vm} needs a bridge {}, and this host has none of that name; make it, and connect it to the network of the others",
            nic.bridge
        )),
        None => Ok(here),
    }
}

fn product(definition: &VmDefinition) -> &'static str {
    if definition.machine.is_some() { "VirtualBox" } else { "QEMU" }
}

/// Major and minor number.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Refuses settings of a machine that this host would not obey, as soon as they have come.
///
/// # Errors
/// The setting, in words.
pub fn check_settings(folder: &Path, here: &Placed) -> Result<(), String> {
    coming::written_settings(folder, here).map(drop).map_err(|error| chain(&error))
}

/// Refuses what would make the hypervisor open files that have not come with it. `folder` has the files of `manifest`, `here`
/// says where the rest lies.
///
/// # Errors
/// The image or the setting, in words.
pub fn check_images(manifest: &Manifest, folder: &Path, here: &Placed) -> Result<(), String> {
    if here.definition.machine.is_some() {
        return coming::check(manifest, folder, here).map_err(|error| chain(&error));
    }
    let layers = manifest.files.iter().filter(|file| matches!(file.role, FileRole::DiskLayer(_)));
    // What is below a layer is named when it is opened.
    layers.into_iter().try_for_each(|layer| stands_alone(&folder.join(&layer.name), true))?;
    let images = here.definition.disks.iter().filter(|disk| disk.format == ImageFormat::Qcow2);
    images.into_iter().try_for_each(|disk| stands_alone(&disk.image, false))
}

/// Refuses an image that needs other files than itself, or than the one below it where it `is_layer`.
fn stands_alone(image: &Path, is_layer: bool) -> Result<(), String> {
    let needs = qcow2::needs(image).map_err(|error| error.to_string())?;
    let Some(needs) = needs else { return Err(format!("{} is no qcow2 image", image.display())) };
    if needs.data_file || (needs.backing && !is_layer) {
        return Err(format!(
            "{} is only a part of an image, and names the file that holds the rest; such a VM is not moved to another host. \
             Make it one file (`qemu-img convert -O qcow2`), and a VM above that",
            image.display()
        ));
    }
    Ok(())
}

/// A device of this name; that it is a bridge shows when the tap is put on it. Read where the agent's own network namespace
/// is shown.
fn is_device(name: &str) -> bool {
    let devices = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    devices.lines().any(|line| line.split_once(':').is_some_and(|(device, _)| device.trim() == name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::manifest::{Accel, RamWay};

    fn facts(kind: &str, accel: Accel) -> Facts {
        let (kind, version, machine) = (kind.to_owned(), "10.0".to_owned(), "pc".to_owned());
        Facts { kind, version, machine, accel, ram_way: RamWay::Live }
    }

    fn words(bridge: &str, taken: &Facts, here: Option<&Facts>) -> String {
        let mac = "52:54:00:00:00:01";
        words_of(bridge, mac, taken, here)
    }

    fn words_of(bridge: &str, mac: &str, taken: &Facts, here: Option<&Facts>) -> String {
        let text = format!(
            "name = \"web\"\ndeployment = \"shop\"\nmemory_mb = 128\nkernel = \"k\"\n[[nic]]\nbridge = \"{bridge}\"\nmac = \"{mac}\"\n"
        );
        let mut definition: VmDefinition = toml::from_str(&text).unwrap();
        if taken.accel == Accel::VirtualBox {
            (definition.machine, definition.kernel) = (Some("web.vbox".into()), None);
        }
        let here = here.cloned().ok_or_else(|| "it is not installed".to_owned());
        check(&definition, taken, &here, Phase::Fetch)
            .map_or_else(|failure| failure.text, |()| "fits".to_owned())
    }

    #[test]
    fn what_would_not_run_is_named_before_anything_is_moved() {
        let (kvm, tcg) = (facts("qemu", Accel::Kvm), facts("qemu", Accel::Tcg));
        assert_eq!(words("lo", &kvm, Some(&kvm)), "fits");
        assert!(words("br-none", &kvm, Some(&kvm)).contains("a bridge br-none"));
        assert!(words("lo", &kvm, Some(&tcg)).contains("under kvm, and this host runs VMs under tcg"));
        assert!(words("lo", &kvm, None).contains("does not drive"));
        let smuggled = words_of("lo", "52:54:00:00:00:01,romfile=/root/x", &kvm, Some(&kvm));
        assert!(smuggled.contains("`nic[0].mac`"), "{smuggled}");
        let smuggled = Facts { machine: "pc,firmware=/root/x".to_owned(), ..kvm.clone() };
        assert!(words("lo", &smuggled, Some(&kvm)).contains("is no machine type"));
        for (taken, here, fits) in
            [("10.0.2", "9.2.0", false), ("9.2.0", "10.0.2", true), ("10.0.8", "10.0.2", true)]
        {
            let of = |version: &str| Facts { version: version.to_owned(), ..kvm.clone() };
            let words = words("lo", &of(taken), Some(&of(here)));
            assert_eq!(words == "fits", fits, "{words}");
        }
        let other = Facts { accel: Accel::VirtualBox, ..kvm.clone() };
        assert!(
            words("lo", &other, Some(&kvm)).contains("is a VM of VirtualBox, and was snapshotted by qemu")
        );
    }

    #[test]
    fn machines_of_virtualbox_need_one_that_is_as_new_and_their_bridges() {
        let of = |version: &str| Facts {
            version: version.to_owned(),
            machine: String::new(),
            ..facts("virtualbox", Accel::VirtualBox)
        };
        let taken = of("7.2.22_Debianr175245");
        assert_eq!(words("lo", &taken, Some(&taken)), "fits");
        assert_eq!(words("lo", &taken, Some(&of("7.2.4r170995"))), "fits");
        let older = words("lo", &taken, Some(&of("7.1.12r169651")));
        assert!(
            older.contains("by VirtualBox 7.2.22_Debianr175245, and this host has 7.1.12r169651"),
            "{older}"
        );
        assert!(words("br-none", &taken, Some(&taken)).contains("a bridge br-none"));
        let none = words("lo", &taken, None);
        assert!(
            none.contains("a VM of VirtualBox, which this host's agent does not drive: it is not installed"),
            "{none}"
        );
    }
}

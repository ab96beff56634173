//! Machines of unasnap's own, which lie in its state folder: made on a base that several share, cloned, and deleted.
//!
//! A machine's UUID is chosen and written down before VirtualBox hears of it, so that whatever breaks off, the next agent knows
//! what to take away. A clone is a new machine whose difference becomes a copy of the other one's: both stand on the same base, and neither
//! can see what the other one writes. (`clonevm` would copy the base, too, or bind the clone to the other one's files.)

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use unasnap_files::vdi;
use unasnap_protocol::name::Name;

use super::super::{FrozenDisks, Ground, HypervisorError, SavedVm, base_image};
use super::machine::Machine;
use super::record::{Record, VmFolder, socket_path};
use super::{State, UNLOCK_LIMIT, VirtualBox, machine};
use crate::definition::{MAX_DEVICES, VmDefinition};
use crate::store::files;
use crate::store::manifest::{BaseImage, FileRole, Saved, SavedFile};

/// What VirtualBox is told that the guest is: it chooses devices by that.
pub(super) const GUEST: &str = "Linux_64";
/// The kernel's random UUIDs.
const RANDOM_UUID: &str = "/proc/sys/kernel/random/uuid";
/// What a difference is called that other hosts may fetch.
const FROZEN_DISK: &str = "disk.vdi";

/// What the disk of a machine that is to be made holds.
struct Content {
    /// The base, with its digest.
    base: BaseImage,
    /// The difference that is copied; without it, an empty one.
    difference: Option<PathBuf>,
}

impl VirtualBox {
    /// See [`Hypervisor::make`](crate::hypervisor::Hypervisor::make).
    pub(super) async fn make_vm(
        &self,
        vm: &VmDefinition,
        ground: Ground<'_>,
        incarnation: u64,
    ) -> Result<(), HypervisorError> {
        let folder = self.folder(&vm.name);
        if !folder.owns(vm) {
            return Err(by_hand(vm, "make"));
        }
        let content = match ground {
            Ground::Bases([base]) => Content { base: base.clone(), difference: None },
            Ground::Bases(_) => {
                return Err(unsupported(format!("VM {}: a machine is made on one base", vm.name)));
            }
            Ground::DisksOf(other) => {
                let (base, difference) = self.disk_of(other).await?;
                Content { base, difference: Some(difference) }
            }
            Ground::Frozen(saved) => frozen_content(&saved).await?,
        };
        self.forget_vm(&vm.name).await?;
        let random = Path::new(RANDOM_UUID);
        let uuid = fs::read_to_string(random).map_err(HypervisorError::file("read", random))?;
        let manage = self.manage(&vm.name, uuid.trim().to_owned());
        folder.write(&Record {
            uuid: manage.uuid().to_owned(),
            incarnation,
            awaits_resume: false,
            fenced: false,
            paused: false,
            bases: vec![content.base.clone()],
            made: true,
        })?;
        let vms = self.config.state_dir.join("vms");
        let console = socket_path(&folder.console_socket())?;
        let machine = machine(vm)?;
        let base = &content.base.path;
        let holder = self.holder(&vm.name, base)?;
        {
            let _no_other = self.sharing.lock().await;
            holder.hold().await?;
            manage.create(vm.name.as_str(), &vms).await?;
            manage.register(&machine.vbox, &[]).await?;
            let settings = settings(vm, &console);
            manage.modify(&settings.iter().map(String::as_str).collect::<Vec<_>>()).await?;
            manage.add_controller().await?;
            manage.attach(base).await?;
        }
        let difference = only_difference(&machine, base)?;
        if let Some(other) = content.difference {
            let to = difference.clone();
            let copying = tokio::task::spawn_blocking(move || copy_content(&other, &to)).await;
            copying
                .map_err(|error| unsupported(format!("copying {} ended: {error}", difference.display())))??;
        }
        for file in [&difference, &machine.vbox] {
            files::sync(file).map_err(HypervisorError::file("flush", file))?;
        }
        let inside = difference.parent().unwrap_or(machine.folder());
        for folder in [inside, machine.folder(), &vms] {
            files::sync_folder(folder).map_err(HypervisorError::file("flush", folder))?;
        }
        Ok(())
    }

    /// The disk of a VM that does not run: its base, and the difference.
    async fn disk_of(&self, vm: &VmDefinition) -> Result<(BaseImage, PathBuf), HypervisorError> {
        let folder = self.folder(&vm.name);
        if !folder.owns(vm) {
            return Err(by_hand(vm, "clone"));
        }
        let machine = machine(vm)?;
        let manage = self.manage(&vm.name, machine.uuid()?);
        if manage.find().await?.is_some() {
            let state = manage.unlocked(UNLOCK_LIMIT).await?.state;
            if state != State::Off {
                let why = format!("its machine is {state:?}, not off: let it run and shut it down");
                return Err(manage.wrong_state("clone", why));
            }
            // An agent that died while it saved a cut has left it.
            for cut in machine.cuts()? {
                manage.delete(&cut).await?;
            }
        }
        let disks = machine.disks()?;
        let [disk] = disks.as_slice() else {
            return Err(manage.wrong_state("clone", "its machine has not one disk".to_owned()));
        };
        let [base, difference] = disk.as_slice() else {
            let why = "its disk has snapshots of VirtualBox's own: delete them (VBoxManage snapshot)";
            return Err(manage.wrong_state("clone", why.to_owned()));
        };
        let known = folder.read()?.map(|record| record.bases).unwrap_or_default();
        let mut found = base_image::describe(base)?;
        found.blake3 = match known.iter().find(|known| known.path == *base) {
            Some(known) => base_image::unchanged(&found, known)?,
            None => base_image::digest(base).await?,
        };
        Ok((found, difference.clone()))
    }

    /// See [`Hypervisor::freeze`](crate::hypervisor::Hypervisor::freeze). Nothing is copied: a machine that runs writes the same file, and whoever
    /// fetches it then finds that by its digest.
    pub(super) async fn frozen_disks(&self, vm: &VmDefinition) -> Result<FrozenDisks, HypervisorError> {
        let (base, difference) = self.disk_of(vm).await?;
        let folder = self.folder(&vm.name).frozen();
        files::remove_folder(&folder).map_err(HypervisorError::file("delete", &folder))?;
        fs::create_dir_all(&folder).map_err(HypervisorError::file("create", &folder))?;
        files::link_or_copy(&difference, &folder.join(FROZEN_DISK))
            .map_err(HypervisorError::file("link", &difference))?;
        let file = SavedFile { name: FROZEN_DISK.to_owned(), role: FileRole::DifferenceDisk, blake3: None };
        let saved = Saved { hypervisor: self.facts.clone(), files: vec![file], bases: vec![base] };
        Ok(FrozenDisks { folder, saved })
    }

    /// See [`Hypervisor::forget`](crate::hypervisor::Hypervisor::forget). A machine that the operator made stays.
    pub(super) async fn forget_vm(&self, vm: &Name) -> Result<(), HypervisorError> {
        let folder = self.folder(vm);
        if let Some(record) = folder.read()? {
            let manage = self.manage(vm, record.uuid);
            if let Some(info) = manage.find().await? {
                if info.state.is_alive() {
                    return Err(manage.wrong_state("delete", "it runs".to_owned()));
                }
                if record.made {
                    manage.unlocked(UNLOCK_LIMIT).await?;
                    // With `--delete` it would delete the base, once no other machine has it.
                    manage.unregister().await?;
                }
            }
            for base in record.bases.iter().filter(|_| record.made) {
                self.let_go(vm, &base.path).await;
            }
        }
        folder.remove()
    }
}

/// Of `modifyvm`.
fn settings(vm: &VmDefinition, console: &str) -> Vec<String> {
    let mut settings = vec![format!("--memory={}", vm.memory_mb), format!("--cpus={}", vm.cpus)];
    settings
        .extend(["--audio-enabled=off", "--boot1=disk", "--boot2=none", "--boot3=none"].map(str::to_owned));
    settings.extend(["--uart1", "0x3F8", "4", "--uart-mode1", "server", console].map(str::to_owned));
    for slot in 1..=MAX_DEVICES {
        match vm.nics.get(slot - 1) {
            Some(nic) => settings.extend([
                format!("--nic{slot}=bridged"),
                format!("--bridge-adapter{slot}={}", nic.bridge),
                format!("--mac-address{slot}={}", nic.mac.replace(':', "")),
            ]),
            // The first one would be there by itself, and let the guest out.
            None => settings.push(format!("--nic{slot}=none")),
        }
    }
    settings
}

/// What the disk of a VM of another host held, with the base where it lies here.
async fn frozen_content(saved: &SavedVm<'_>) -> Result<Content, HypervisorError> {
    match (saved.here.map(|here| here.bases.as_slice()), saved.manifest.files.as_slice()) {
        (Some([base]), [difference]) => {
            let base = base_image::check(base_image::describe(base)?, saved.manifest.bases.first()).await?;
            Ok(Content { base, difference: Some(saved.folder.join(&difference.name)) })
        }
        _ => Err(unsupported("what came is not one disk on one base".to_owned())),
    }
}

/// The machine's disk, which has to be a difference of this base: nothing else would leave the base as it is.
fn only_difference(machine: &Machine, base: &Path) -> Result<PathBuf, HypervisorError> {
    let disks = machine.disks()?;
    match disks.as_slice() {
        [disk] if disk.len() == 2 && disk[0] == base && disk[1].starts_with(machine.folder()) => {
            Ok(disk[1].clone())
        }
        other => Err(unsupported(format!(
            "VirtualBox was to give the machine a difference of {}, and it has {other:?}",
            base.display()
        ))),
    }
}

/// Makes `to`, an empty difference, a copy of `from`, with the UUID that it has.
fn copy_content(from: &Path, to: &Path) -> Result<(), HypervisorError> {
    let header = |path: &Path| {
        let header = vdi::read(path).map_err(|error| unsupported(error.to_string()))?;
        header.ok_or_else(|| unsupported(format!("{} is no VDI", path.display())))
    };
    let (theirs, own) = (header(from)?, header(to)?);
    let Some(uuid) = own.uuid().filter(|_| theirs.parent() == own.parent()) else {
        return Err(unsupported(format!("{} stands on another base than {}", from.display(), to.display())));
    };
    let half = to.with_extension("vdi.new");
    let copied = || -> io::Result<()> {
        fs::copy(from, &half)?;
        let file = fs::File::options().write(true).open(&half)?;
        vdi::rename(&file, &uuid)?;
        file.sync_all()?;
        fs::rename(&half, to)
    };
    copied().map_err(HypervisorError::file("copy", from))
}

/// A machine that lies elsewhere.
fn by_hand(vm: &VmDefinition, wanted: &str) -> HypervisorError {
    unsupported(format!(
        "VM {} has a machine that was made by hand: {wanted} it with VirtualBox's own means",
        vm.name
    ))
}

fn unsupported(what: String) -> HypervisorError {
    HypervisorError::Unsupported { what }
}

impl VmFolder {
    /// Is the VM's machine unasnap's own, which goes with the VM?
    #[must_use]
    pub fn owns(&self, vm: &VmDefinition) -> bool {
        vm.machine.as_ref() == Some(&self.machine())
    }
}

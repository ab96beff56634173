//! A machine as a local snapshot has it: VirtualBox forgets the one that is there, the files come to their places, and it is registered.

use std::path::PathBuf;

use super::super::{HypervisorError, SavedVm, Vm, base_image};
use super::machine::{Layout, Machine, SETTINGS_FILE};
use super::record::Record;
use super::{UNLOCK_LIMIT, VirtualBox, check_size, coming, machine, prepare_sockets};
use crate::definition::VmDefinition;
use crate::store::files;

impl VirtualBox {
    /// See [`Hypervisor::restore`](crate::hypervisor::Hypervisor::restore).
    pub(super) async fn restore_vm(
        &self,
        vm: &VmDefinition,
        saved: SavedVm<'_>,
        incarnation: u64,
    ) -> Result<Box<dyn Vm>, HypervisorError> {
        let manifest = saved.manifest;
        if manifest.hypervisor.kind != self.facts.kind {
            let kind = &manifest.hypervisor.kind;
            let what = format!("the snapshot was taken by {kind}, and this VM is defined as VirtualBox's");
            return Err(HypervisorError::Unsupported { what });
        }
        let (machine, folder) = (machine(vm)?, self.folder(&vm.name));
        let mut layout = Layout::read(saved.folder)?;
        let stored = Machine { vbox: saved.folder.join(SETTINGS_FILE) };
        let manage = self.manage(&vm.name, stored.uuid()?);
        if machine.vbox.exists() && machine.uuid()? != stored.uuid()? {
            let why = format!("{} is another machine's: give this VM its own", machine.vbox.display());
            return Err(manage.wrong_state("restore", why));
        }
        // What another host says of its own places is nothing here.
        let settings = match saved.here {
            None => None,
            Some(here) => {
                layout.bases = here.bases.iter().map(|path| path.to_string_lossy().into_owned()).collect();
                Some(coming::written_settings(saved.folder, here)?)
            }
        };
        let mut bases = Vec::new();
        for (index, place) in layout.bases.iter().enumerate() {
            let found = base_image::describe(&machine.folder().join(place))?;
            bases.push(base_image::check(found, manifest.bases.get(index)).await?);
        }
        if let Some(info) = manage.find().await? {
            if info.state.is_alive() {
                return Err(manage.wrong_state("restore", "it already runs: destroy that first".to_owned()));
            }
            // One that VirtualBox cannot read does not say where it is.
            let is_ours = match &info.settings {
                Some(settings) => *settings == machine.vbox,
                None => folder.read()?.is_some_and(|record| record.uuid == manage.uuid()),
            };
            if settings.is_some() && !is_ours {
                let why = format!(
                    "VirtualBox has another machine of its UUID, {}: remove that (VBoxManage unregistervm)",
                    info.settings.unwrap_or_default().display()
                );
                return Err(manage.wrong_state("restore", why));
            }
            manage.unlocked(UNLOCK_LIMIT).await?;
            manage.unregister().await?;
        }
        let made = folder.owns(vm);
        let shared = bases.first().filter(|_| made).map(|base| base.path.clone());
        let (placed, from, at, as_saved) =
            (machine.clone(), saved.folder.to_owned(), layout.clone(), shared.is_some());
        // It would keep the bytes of a disk that is no more.
        let frozen = folder.frozen();
        let placing = tokio::task::spawn_blocking(move || {
            placed.remove_own()?;
            files::remove_folder(&frozen).map_err(HypervisorError::file("delete", &frozen))?;
            placed.lay_out(&from, &at, as_saved, settings.as_deref())
        });
        let lost = |error| HypervisorError::file("fill", machine.folder())(std::io::Error::other(error));
        placing.await.map_err(lost)??;
        let record = Record {
            uuid: manage.uuid().to_owned(),
            incarnation,
            awaits_resume: true,
            fenced: false,
            paused: false,
            bases,
            made,
        };
        folder.write(&record)?;
        let differences = differences(&machine, &layout);
        if let Some(base) = &shared {
            self.register_on(base, &differences, &vm.name, &manage).await?;
        } else {
            let places = layout.bases.iter().map(|place| machine.folder().join(place));
            let disks: Vec<PathBuf> = places.chain(differences).collect();
            manage.register(&machine.vbox, &disks).await?;
            manage.go_back(&layout.snapshot).await?;
        }
        let info = manage.info().await?;
        check_size(vm, &info)?;
        prepare_sockets(&info, &folder)?;
        Ok(Box::new(self.vm(vm, manage, machine, record, &info)?))
    }
}

/// The disks of a snapshot above its bases, each after the one below it.
fn differences(machine: &Machine, layout: &Layout) -> Vec<PathBuf> {
    let is_disk = |place: &str| ![".sav", ".nvram"].iter().any(|end| place.ends_with(end));
    let places = layout.places.iter().rev().map(|(_, place)| place).filter(|place| is_disk(place));
    places.map(|place| machine.folder().join(place)).collect()
}

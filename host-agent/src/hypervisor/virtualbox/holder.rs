//! A base that the machines of a host share: VirtualBox calls it *multiattach*, and gives every machine to which it is attached an
//! empty difference of its own.
//!
//! VirtualBox keeps a disk with all its differences in the settings of one machine. Were that one of those that share it, none
//! could go without another losing its disk. So a base has a *holder*: a machine that never runs, from before the first
//! machine has the base until after the last.
//!
//! ```text
//! <state_dir>/vms/base.<UUID of the base>/      its folder: no VM has a dot in its name, and the file tracker looks here
//! ```
//!
//! What it takes, as tried with VirtualBox 7.2.22:
//!
//! - Only a disk that is registered with a machine can be multiattach. VBoxManage makes it so by attaching it first as it is, and opens
//!   it for writing then: the base would have another modification time. So the holder's settings tell of it from the beginning.
//! - The differences that VirtualBox makes are registered where their base is. Those that come back with a restore are so once the
//!   newest was attached to the holder; registered with their own machine, they would be lost with the next end of VirtualBox's service.
//! - A machine that is unregistered takes its differences out of the holder's settings. One whose settings were lost leaves them there.
//! - `showmediuminfo` makes a disk known without a machine, for good; `list hdds` only tells.

use std::path::{Path, PathBuf};

use unasnap_files::{vbox, vdi};
use unasnap_protocol::name::Name;

use super::super::HypervisorError;
use super::VirtualBox;
use super::making::GUEST;
use super::manage::Manage;
use crate::store::files;
use crate::works::chain;

/// The controller of a machine that unasnap makes.
const CONTROLLER: &str = "SATA";

/// A disk, as `list hdds` tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Medium {
    /// Its UUID.
    pub uuid: String,
    /// The UUID of the disk whose differences it holds; `base` for none.
    pub parent: String,
    /// Is it shared by machines, each with a difference of its own?
    pub is_shared: bool,
    /// Its file.
    pub location: PathBuf,
}

/// Reads `list hdds`: a paragraph for each disk, parents first. A paragraph that lacks something is no disk.
#[must_use]
pub fn media(text: &str) -> Vec<Medium> {
    let medium = |paragraph: &str| {
        let value = |key: &str| {
            let mut values = paragraph.lines().filter_map(|line| line.strip_prefix(key));
            values.next().map(|value| value.trim().to_owned())
        };
        let is_shared = value("Type:")?.starts_with("multiattach");
        let (uuid, parent, location) = (value("UUID:")?, value("Parent UUID:")?, value("Location:")?.into());
        Some(Medium { uuid, parent, is_shared, location })
    };
    text.split("\n\n").filter_map(medium).collect()
}

/// The holder of a base, whether it is there or not.
pub(super) struct Holder {
    /// The machine, which has the UUID of the base.
    manage: Manage,
    base: PathBuf,
    folder: PathBuf,
    name: String,
}

impl Holder {
    /// Sees to it that the base can be attached to machines.
    ///
    /// # Errors
    /// VirtualBox refuses, also where a machine writes the base itself.
    pub async fn hold(&self) -> Result<(), HypervisorError> {
        let known = self.media().await?;
        let base = known.iter().find(|medium| medium.uuid == self.manage.uuid());
        if let Some(other) = base.filter(|base| base.location != self.base) {
            return Err(unsupported(format!(
                "VirtualBox knows {} as {}: make machines of that, or have it forget that (VBoxManage closemedium disk)",
                self.base.display(),
                other.location.display()
            )));
        }
        if let Some(info) = self.manage.find().await? {
            if info.is_accessible() && base.is_some_and(|base| base.is_shared) {
                return Ok(());
            }
            self.manage.unregister().await?;
        }
        if base.is_some() {
            // Refused where a machine has it: that one writes it, or has snapshots of it.
            self.close(&self.base.to_string_lossy()).await?;
        }
        files::remove_folder(&self.folder).map_err(HypervisorError::file("delete", &self.folder))?;
        let above = self.folder.parent().unwrap_or(Path::new("/"));
        let settings = self.folder.join(format!("{}.vbox", self.name));
        self.manage.create(&self.name, above).await?;
        // One that tells of the base is whole, whatever breaks off.
        self.manage.register(&settings, &[]).await?;
        self.manage.add_controller().await?;
        self.manage.unregister().await?;
        let text = std::fs::read_to_string(&settings).map_err(HypervisorError::file("read", &settings))?;
        let text = vbox::with_shared_base(&text, self.manage.uuid(), &self.base.to_string_lossy());
        let text = text.map_err(|why| unsupported(format!("{} is damaged: {why}", settings.display())))?;
        files::write_durably(&settings, text.as_bytes())
            .map_err(HypervisorError::file("write", &settings))?;
        self.manage.register(&settings, &[]).await
    }

    /// Takes in the differences of a machine that VirtualBox does not know, each after the one below it.
    ///
    /// # Errors
    /// VirtualBox refuses, also where they are not those of this base.
    pub async fn take_in(&self, differences: &[PathBuf]) -> Result<(), HypervisorError> {
        for difference in differences {
            self.manage.show(&difference.to_string_lossy()).await?;
        }
        let Some(newest) = differences.last() else { return Ok(()) };
        self.manage.attach(newest).await?;
        self.manage.attach(Path::new("none")).await
    }

    /// Has VirtualBox forget the disks that lie below the folder of a machine that it does not know.
    ///
    /// # Errors
    /// VirtualBox refuses.
    pub async fn forget_below(&self, folder: &Path) -> Result<(), HypervisorError> {
        let known = self.media().await?;
        for medium in known.iter().rev().filter(|medium| medium.location.starts_with(folder)) {
            if let Err(error) = self.close(&medium.uuid).await {
                // The holder may have kept one that it was taking in.
                self.manage.attach(Path::new("none")).await.map_err(|_| error)?;
                self.close(&medium.uuid).await?;
            }
        }
        Ok(())
    }

    /// Goes, if no machine has the base any more.
    ///
    /// # Errors
    /// VirtualBox refuses.
    pub async fn release(&self) -> Result<(), HypervisorError> {
        let known = self.media().await?;
        let is_used = known.iter().any(|medium| medium.parent == self.manage.uuid());
        if is_used || self.manage.find().await?.is_none() {
            return Ok(());
        }
        if known.iter().any(|medium| medium.uuid == self.manage.uuid()) {
            self.close(self.manage.uuid()).await?;
        }
        self.manage.unregister().await?;
        files::remove_folder(&self.folder).map_err(HypervisorError::file("delete", &self.folder))
    }

    async fn close(&self, disk: &str) -> Result<(), HypervisorError> {
        self.manage.change(&["closemedium", "disk", disk]).await
    }

    async fn media(&self) -> Result<Vec<Medium>, HypervisorError> {
        Ok(media(&self.manage.question(&["list", "hdds"]).await?.stdout))
    }
}

impl VirtualBox {
    pub(super) fn holder(&self, vm: &Name, base: &Path) -> Result<Holder, HypervisorError> {
        let header = vdi::read(base).map_err(|error| unsupported(error.to_string()))?;
        let uuid = header.and_then(|header| header.uuid());
        let uuid = uuid.ok_or_else(|| unsupported(format!("{} is no VDI", base.display())))?;
        let name = format!("base.{uuid}");
        let folder = self.config.state_dir.join("vms").join(&name);
        Ok(Holder { manage: self.manage(vm, uuid), base: base.to_owned(), folder, name })
    }

    /// Registers the machine of a VM, whose disk are these differences of a base, the newest last.
    pub(super) async fn register_on(
        &self,
        base: &Path,
        differences: &[PathBuf],
        vm: &Name,
        manage: &Manage,
    ) -> Result<(), HypervisorError> {
        let (holder, folder) = (self.holder(vm, base)?, self.folder(vm));
        let _no_other = self.sharing.lock().await;
        holder.forget_below(folder.path()).await?;
        holder.hold().await?;
        holder.take_in(differences).await?;
        manage.register(&folder.machine(), &[]).await
    }

    /// A VM that has gone needs the base no longer. What goes wrong here does not keep the VM: a holder that stays serves the next one.
    pub(super) async fn let_go(&self, vm: &Name, base: &Path) {
        let _no_other = self.sharing.lock().await;
        let go = async {
            let holder = self.holder(vm, base)?;
            holder.forget_below(self.folder(vm).path()).await?;
            holder.release().await
        };
        if let Err(error) = go.await {
            tracing::warn!(vm = %vm, "VirtualBox keeps {}: {}", base.display(), chain(&error));
        }
    }
}

impl Manage {
    /// Makes the settings of a machine of this UUID, whose folder lies in `above`. VirtualBox does not know it yet.
    ///
    /// # Errors
    /// VirtualBox refuses, also where there is one.
    pub(super) async fn create(&self, name: &str, above: &Path) -> Result<(), HypervisorError> {
        let above = above.to_string_lossy();
        let who = ["--name", name, "--uuid", self.uuid(), "--ostype", GUEST];
        self.change(&[&["createvm"], &who[..], &["--basefolder", &*above]].concat()).await
    }

    /// Adds the controller for the only disk of a machine that has none yet.
    ///
    /// # Errors
    /// VirtualBox refuses.
    pub(super) async fn add_controller(&self) -> Result<(), HypervisorError> {
        let controller =
            ["--name", CONTROLLER, "--add", "sata", "--controller", "IntelAhci", "--portcount", "1"];
        self.change(&[&["storagectl", self.uuid()], &controller[..]].concat()).await
    }

    /// Gives the machine this disk: an empty difference of it, if it is a shared base; no disk, if it is `none`.
    ///
    /// # Errors
    /// VirtualBox refuses.
    pub(super) async fn attach(&self, disk: &Path) -> Result<(), HypervisorError> {
        let place = ["--storagectl", CONTROLLER, "--port", "0", "--device", "0", "--type", "hdd"];
        let disk = disk.to_string_lossy();
        self.change(&[&["storageattach", self.uuid()], &place[..], &["--medium", &*disk]].concat()).await
    }
}

fn unsupported(what: String) -> HypervisorError {
    HypervisorError::Unsupported { what }
}

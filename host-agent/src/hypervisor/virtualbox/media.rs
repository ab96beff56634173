//! A base that the machines of a host share: VirtualBox calls it *multiattach*, and gives every machine to which it is attached an
//! empty difference of its own. What it takes to get there, as tried with VirtualBox 7.2:
//!
//! - Only a disk that is registered with a machine can be multiattach. VBoxManage makes it so by attaching it first as it is, and opens
//!   it for writing then: the base would have another modification time. So the machine's settings tell of the
//!   base from the beginning, and it is registered with them.
//! - Where it stays known when its last machine has gone, it belongs to none, and cannot be attached: it is closed first.
//! - `showmediuminfo` makes a disk known without a machine, for good; `list hdds` only tells.

use std::path::Path;

use super::super::HypervisorError;
use super::manage::Manage;

/// The controller of a made machine.
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
    pub location: String,
}

/// Reads `list hdds`: a paragraph for each disk. A paragraph that lacks something is no disk.
#[must_use]
pub fn media(text: &str) -> Vec<Medium> {
    let medium = |paragraph: &str| {
        let value = |key: &str| {
            let mut values = paragraph.lines().filter_map(|line| line.strip_prefix(key));
            values.next().map(|value| value.trim().to_owned())
        };
        let is_shared = value("Type:")?.starts_with("multiattach");
        let (uuid, parent, location) = (value("UUID:")?, value("Parent UUID:")?, value("Location:")?);
        Some(Medium { uuid, parent, is_shared, location })
    };
    text.split("\n\n").filter_map(medium).collect()
}

impl Manage {
    /// Adds the controller for the only disk of a machine that has none yet.
    ///
    /// # Errors
    /// VirtualBox refuses.
    pub async fn add_controller(&self) -> Result<(), HypervisorError> {
        let controller =
            ["--name", CONTROLLER, "--add", "sata", "--controller", "IntelAhci", "--portcount", "1"];
        self.change(&[&["storagectl", self.uuid()], &controller[..]].concat()).await
    }

    /// Sees to it that a machine whose settings tell of `base` can share it.
    ///
    /// # Errors
    /// VirtualBox refuses, also where a machine writes `base` itself.
    pub async fn free(&self, base: &Path) -> Result<(), HypervisorError> {
        let base = base.to_string_lossy();
        let known = self.media().await?;
        let has_children = |uuid: &str| known.iter().any(|medium| medium.parent == uuid);
        match known.iter().find(|medium| medium.location == base) {
            Some(medium) if !medium.is_shared || !has_children(&medium.uuid) => {
                // Refused where a machine has it: that one writes it, or has snapshots of it.
                self.change(&["closemedium", "disk", &base]).await
            }
            _ => Ok(()),
        }
    }

    /// Gives the machine an empty difference of `base`, which is shared.
    ///
    /// # Errors
    /// VirtualBox refuses.
    pub async fn attach(&self, base: &Path) -> Result<(), HypervisorError> {
        let place = ["--storagectl", CONTROLLER, "--port", "0", "--device", "0", "--type", "hdd"];
        let base = base.to_string_lossy();
        self.change(&[&["storageattach", self.uuid()], &place[..], &["--medium", &*base]].concat()).await
    }

    async fn media(&self) -> Result<Vec<Medium>, HypervisorError> {
        Ok(media(&self.question(&["list", "hdds"]).await?.stdout))
    }
}

//! A base that the machines of a host share: VirtualBox calls it *multiattach*, and gives every machine to which it is attached an
//! empty difference of its own. What it takes to get there, as tried with VirtualBox 7.2:
//!
//! - Only a disk that is registered with a machine and attached to none becomes multiattach. So the first machine is given it as
//!   it is, and it is taken away again, before it changes.
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

    /// Gives the machine an empty difference of `base`, which no machine writes.
    ///
    /// # Errors
    /// VirtualBox refuses, also where a machine writes `base` itself.
    pub async fn share(&self, base: &Path) -> Result<(), HypervisorError> {
        let base = base.to_string_lossy();
        let known = self.media().await?;
        let medium = known.iter().find(|medium| medium.location == base);
        let has_children = |uuid: &str| known.iter().any(|medium| medium.parent == uuid);
        match medium {
            Some(medium) if medium.is_shared && has_children(&medium.uuid) => {
                return self.attach(&base).await;
            }
            // Refused where a machine has it: that one writes it, or has snapshots of it.
            Some(_) => self.close(&base).await?,
            None => {}
        }
        self.attach(&base).await?;
        self.attach("none").await?;
        self.change(&["modifymedium", "disk", &base, "--type", "multiattach"]).await?;
        self.attach(&base).await
    }

    async fn media(&self) -> Result<Vec<Medium>, HypervisorError> {
        Ok(media(&self.question(&["list", "hdds"]).await?.stdout))
    }

    /// `none` takes away what is there.
    async fn attach(&self, medium: &str) -> Result<(), HypervisorError> {
        let place = ["--storagectl", CONTROLLER, "--port", "0", "--device", "0", "--type", "hdd"];
        let call = [&["storageattach", self.uuid()], &place[..], &["--medium", medium]].concat();
        self.change(&call).await
    }

    async fn close(&self, disk: &str) -> Result<(), HypervisorError> {
        self.change(&["closemedium", "disk", disk]).await
    }
}

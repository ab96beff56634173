//! The disks of a VM that lives on another host come here, for a VM that is to be made of them.

use std::path::Path;

use unasnap_protocol::control::{FailureKind, Phase};
use unasnap_protocol::household::Replica;
use unasnap_protocol::transfer::{Ask, Disks};

use super::conversation::{Conversation, Result, Wish, failure};
use super::fitting;
use super::receiving::{Receiver, Transfer};
use super::telling::{Far, Mark, told};
use crate::definition::VmDefinition;
use crate::hypervisor::SavedVm;
use crate::store::manifest::{FileRole, Manifest};
use crate::store::{Incoming, Placed, Store, StoreError};
use crate::works::store_failure;

/// Disks that have come.
pub struct Arrived {
    store: Store,
    incoming: Incoming,
    manifest: Manifest,
    here: Placed,
}

impl Arrived {
    /// The files, every one compared with its digest.
    #[must_use]
    pub fn saved(&self) -> SavedVm<'_> {
        SavedVm { folder: self.incoming.folder(), manifest: &self.manifest, here: Some(&self.here) }
    }

    /// The VM as it is on the other host, with its images where they lie here.
    #[must_use]
    pub fn definition(&self) -> &VmDefinition {
        &self.here.definition
    }

    /// They are used, or never will be.
    ///
    /// # Errors
    /// What has come cannot be deleted.
    pub fn discard(&self) -> std::result::Result<(), StoreError> {
        self.store.discard(&self.incoming)
    }
}

impl Receiver {
    /// Gets the frozen disks of a VM; `None` when `is_known` says of the other host's VM that the replica is here already.
    /// A transfer that breaks off is gone on with the next time, as long as the VM has not run since. While they come, `tell`
    /// hears every second how far they are.
    ///
    /// # Errors
    /// What `is_known` says. The source does not give them, or they could not be used here.
    pub async fn replicate(
        &self,
        replica: &Replica,
        is_known: impl Fn(&VmDefinition) -> Result<bool>,
        tell: impl Fn(Far),
    ) -> Result<Option<Arrived>> {
        told(tell, |far| self.disks_of(replica, is_known, far)).await
    }

    async fn disks_of(
        &self,
        replica: &Replica,
        is_known: impl Fn(&VmDefinition) -> Result<bool>,
        far: Mark,
    ) -> Result<Option<Arrived>> {
        let (of, name) = (&replica.clone.of, &replica.clone.name);
        let Some(source) = &replica.source else {
            return Err(failure(
                FailureKind::BadRequest,
                format!("no host was named that has the disks of {of}"),
            ));
        };
        let wish = Wish {
            kind: "the VM",
            what: format!("the disks of {of}"),
            cure: format!("check the disk of that host; `unasnap restore` brings {of} back to a snapshot"),
        };
        let tell = |moved| drop(far.send_replace(Some(Far { from: source.host.clone(), moved })));
        let first = (&Ask::Disks(Disks { vm: of.clone(), digest: source.digest }), wish);
        let (talk, offer) = Conversation::open(source, &self.trust, first, replica.per_second, &tell).await?;
        let mut transfer = Transfer { receiver: self, snapshot: of, vm: of, talk };
        let (text, manifest) = transfer.manifest(&offer).await?;
        let is_disk = |role| matches!(role, FileRole::DiskLayer(_) | FileRole::DifferenceDisk);
        if manifest.files.iter().any(|file| !is_disk(file.role)) {
            return Err(transfer.talk.odd("it gives more than disks"));
        }
        let definition = &manifest.identity.definition;
        let runner = fitting::runner(&*self.runners, definition).await;
        fitting::check_stopped(definition, &manifest.hypervisor, &runner, Phase::Fetch)?;
        if is_known(definition)? {
            transfer.talk.close().await;
            return Ok(None);
        }
        // Of two replicas of one VM each has its own folder.
        let incoming = self.store.receive(of, name, &text);
        let incoming = incoming.map_err(|error| store_failure(&error, Phase::Fetch))?;
        let here = transfer.everything(&offer, &manifest, &incoming).await?;
        transfer.talk.close().await;
        Ok(Some(Arrived { store: self.store.clone(), incoming, manifest, here }))
    }
}

/// Are these two the same but for the places of their images and machines?
#[must_use]
pub fn is_same(one: &VmDefinition, other: &VmDefinition) -> bool {
    let placeless = |definition: &VmDefinition| {
        let mut placeless = definition.clone();
        let disks = placeless.disks.iter_mut().map(|disk| &mut disk.image);
        disks
            .chain(&mut placeless.kernel)
            .chain(&mut placeless.initrd)
            .chain(&mut placeless.machine)
            .for_each(|path| Path::new("").clone_into(path));
        placeless
    };
    placeless(one) == placeless(other)
}

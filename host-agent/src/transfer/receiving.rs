//! The target's end: one transfer. What is there already is not asked for again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use unasnap_channel::Trust;
use unasnap_protocol::control::{Envelope, Failure, FailureKind, Moved, Phase, Source};
use unasnap_protocol::name::Name;
use unasnap_protocol::transfer::{Ask, Give, Image, Item, MAX_IMAGES, Offer, Wanted};

use super::conversation::{Conversation, Result, Wish, blocking, failure, missing};
use super::fitting;
use super::images::{self, Images, hex};
use crate::drivers::Runners;
use crate::store::manifest::{FileRole, MAX_MANIFEST_BYTES, Manifest};
use crate::store::{Incoming, Placed, Store, StoreError, files};
use crate::works::store_failure;

/// What a host needs to receive.
pub struct Receiver {
    /// Where local snapshots go.
    pub store: Store,
    /// Where images go.
    pub images: Images,
    /// Who we are to the source.
    pub trust: Trust,
    /// The hypervisors that would restore what comes.
    pub runners: Arc<dyn Runners>,
    /// Hosts whose machines of VirtualBox come as they are.
    pub believes: Vec<Name>,
}

/// One that is under way.
pub(super) struct Transfer<'a> {
    pub receiver: &'a Receiver,
    pub snapshot: &'a Name,
    pub vm: &'a Name,
    pub talk: Conversation<'a>,
}

impl Receiver {
    /// Gets everything that a member needs to be restored on this host. A transfer that breaks off is gone on with the next
    /// time. What is here and was found damaged comes anew, as far as it is not what the source has.
    ///
    /// # Errors
    /// [`FailureKind::HostLost`] where trying again may help; otherwise what is wrong, in words.
    pub async fn fetch(
        &self,
        envelope: &Envelope,
        source: &Source,
        progress: &watch::Sender<Moved>,
    ) -> Result<Moved> {
        let Envelope { snapshot, vm, deployment, .. } = envelope;
        if let Some(total) = self.is_here(snapshot, vm, source)? {
            return Ok(Moved { total, ..Moved::default() });
        }
        let wanted = Wanted { snapshot: snapshot.clone(), vm: vm.clone(), digest: source.digest };
        let wish = Wish {
            kind: "the snapshot",
            what: format!("snapshot {snapshot} of {vm}"),
            cure: format!("`unasnap snapshot verify {snapshot}` names all that is; restore another snapshot"),
        };
        let first = (&Ask::Open(wanted), wish);
        let tell = |moved| {
            progress.send_replace(moved);
        };
        let (talk, offer) = Conversation::open(source, &self.trust, first, None, &tell).await?;
        let mut transfer = Transfer { receiver: self, snapshot, vm, talk };
        transfer.receive(&offer, deployment).await?;
        Ok(transfer.talk.close().await)
    }

    /// The length of what this snapshot of this VM needs, if it is complete on this host already.
    fn is_here(&self, snapshot: &Name, vm: &Name, source: &Source) -> Result<Option<u64>> {
        if self.store.is_damaged(snapshot, vm) {
            return Ok(None);
        }
        let failure = |error: StoreError| store_failure(&error, Phase::Fetch);
        let Some(text) = self.store.manifest_text(snapshot, vm).map_err(failure)? else { return Ok(None) };
        if *blake3::hash(&text).as_bytes() != source.digest {
            let text = format!(
                "this host has another snapshot {snapshot} of VM {vm} than the coordinator knows; remove {}",
                self.store.vm_folder(snapshot, vm).display()
            );
            return Err(Failure::new(FailureKind::Files, Phase::Fetch, text));
        }
        self.store.commit(snapshot).map_err(failure)?;
        let manifest = self.store.manifest(snapshot, vm).map_err(failure)?;
        Ok(Some(manifest.files.iter().map(|file| file.size).sum()))
    }
}

impl Transfer<'_> {
    async fn receive(&mut self, offer: &Offer, deployment: &Name) -> Result<()> {
        let stored = |error: StoreError| store_failure(&error, Phase::Fetch);
        let store = &self.receiver.store;
        let (text, manifest) = self.manifest(offer).await?;
        let definition = &manifest.identity.definition;
        if definition.deployment != *deployment {
            return Err(self.talk.odd(&format!("its VM is one of deployment {}", definition.deployment)));
        }
        let has = |role| manifest.files.iter().any(|file| file.role == role);
        let has_state = match definition.machine {
            Some(_) => has(FileRole::Settings),
            None => has(FileRole::MigrationStream) || (has(FileRole::Ram) && has(FileRole::DeviceState)),
        };
        if !has_state {
            return Err(self.talk.odd("it gives disks, and no snapshot of a VM that ran"));
        }
        let runner = fitting::runner(&*self.receiver.runners, definition).await;
        fitting::check(definition, &manifest.hypervisor, &runner, Phase::Fetch)?;
        // Only now: a source that has nothing better changes nothing here.
        store.set_aside(self.snapshot, self.vm, &manifest).map_err(stored)?;
        let incoming = store.receive(self.snapshot, self.vm, &text).map_err(stored)?;
        let placed = self.everything(offer, &manifest, &incoming).await?;
        let (store, incoming) = (store.clone(), incoming.clone());
        blocking(move || store.accept(&incoming, &manifest, &placed).map_err(stored)).await
    }

    /// The manifest, with its text: its digest is the coordinator's, and the offer fits it.
    pub async fn manifest(&mut self, offer: &Offer) -> Result<(Vec<u8>, Manifest)> {
        let text = self.manifest_text(offer).await?;
        let understood = self.receiver.store.understand(&text, self.snapshot, self.vm);
        let manifest = understood.map_err(|error| store_failure(&error, Phase::Fetch))?;
        self.check_offer(offer, &manifest)?;
        Ok((text, manifest))
    }

    async fn manifest_text(&mut self, offer: &Offer) -> Result<Vec<u8>> {
        if offer.manifest_bytes > MAX_MANIFEST_BYTES {
            return Err(self.talk.odd(&format!("its manifest has {} bytes", offer.manifest_bytes)));
        }
        self.talk.read(Item::Manifest, 0).await?;
        let mut text = Vec::new();
        loop {
            match self.talk.next().await? {
                Give::Chunk(chunk) if chunk.offset == text.len() as u64 => text.extend(chunk.bytes),
                Give::End(_) => break,
                _ => return Err(self.talk.odd("its manifest does not come in order")),
            }
            if text.len() as u64 > offer.manifest_bytes {
                return Err(self.talk.odd("it sends more bytes of its manifest than it announced"));
            }
        }
        if *blake3::hash(&text).as_bytes() == self.talk.source.digest {
            return Ok(text);
        }
        let text = format!(
            "host {} sent another manifest of {} than the coordinator knows; nothing of it was used",
            self.talk.source.host, self.talk.wish.what
        );
        Err(failure(FailureKind::Files, text))
    }

    fn check_offer(&self, offer: &Offer, manifest: &Manifest) -> Result<()> {
        let definition = &manifest.identity.definition;
        let disks = if definition.machine.is_some() { 1 } else { definition.disks.len() };
        let images = images::paths(&Placed::nowhere_else(manifest)).len();
        let bases = manifest.bases.iter().zip(&offer.images);
        let fits = offer.data_bytes.len() == manifest.files.len()
            // One that came with none would keep the place that it has on the other host.
            && manifest.bases.len() == disks
            && offer.images.len() == images
            && images <= MAX_IMAGES
            && bases.into_iter().all(|(base, image)| base.blake3 == hex(&image.digest));
        if fits { Ok(()) } else { Err(self.talk.odd("its offer does not fit the manifest")) }
    }

    /// All files and images, compared with their digests; how the VM is to be here. What has come is kept
    /// when it breaks off, unless there is no room for it.
    pub async fn everything(
        &mut self,
        offer: &Offer,
        manifest: &Manifest,
        incoming: &Incoming,
    ) -> Result<Placed> {
        let received = self.receive_all(offer, manifest, incoming).await;
        self.receiver.store.settle_incoming(incoming);
        if received.as_ref().is_err_and(|failure| failure.kind == FailureKind::NoSpace) {
            self.receiver.store.discard(incoming).map_err(|error| store_failure(&error, Phase::Fetch))?;
            for path in offer.images.iter().filter_map(|image| self.receiver.images.gathering(image).ok()) {
                files::remove_if_there(&path).map_err(|error| self.talk.unwritten(&error, &path))?;
            }
        }
        received
    }

    async fn receive_all(
        &mut self,
        offer: &Offer,
        manifest: &Manifest,
        incoming: &Incoming,
    ) -> Result<Placed> {
        let images = self.receiver.images.clone();
        let wanted = offer.images.clone();
        let searched = images.clone();
        let found: Vec<_> = blocking(move || {
            let found = wanted.iter().map(|image| searched.find(image)).collect::<io::Result<_>>();
            found.map_err(|error| failure(FailureKind::Files, format!("an image cannot be read: {error}")))
        })
        .await?;
        self.plan(offer, manifest, incoming, &found)?;
        let unplaced =
            |error| failure(FailureKind::Internal, format!("cannot resolve the state folder: {error}"));
        let unusable = |why| failure(FailureKind::Files, format!("nothing of it is used: {why}"));
        let believed = self.receiver.believes.contains(&self.talk.source.host);
        for (index, file) in manifest.files.iter().enumerate() {
            let path = incoming.folder().join(&file.name);
            let item = Item::File(u32::try_from(index).unwrap_or(u32::MAX));
            self.talk.whole(item, &path, file.size, &file.blake3).await?;
            if file.role == FileRole::Settings {
                let here = images.placed(manifest, &[], believed).map_err(unplaced)?;
                fitting::check_settings(incoming.folder(), &here).map_err(unusable)?;
            }
        }
        let mut places = Vec::new();
        for (index, (image, here)) in offer.images.iter().zip(found).enumerate() {
            let modified = manifest.bases.get(index).map(|base| base.modified);
            // Of two VMs that need the same image one gets it, and the other finds it.
            let _no_other = images.lock(image).await;
            let came = images.place(image);
            places.push(match here.or_else(|| came.is_file().then_some(came)) {
                Some(path) => path,
                None => {
                    let failed = |error: io::Error| self.talk.unwritten(&error, Path::new(&image.path));
                    let path = images.gathering(image).map_err(failed)?;
                    let item = Item::Image(u32::try_from(index).unwrap_or(u32::MAX));
                    self.talk.whole(item, &path, image.size, &hex(&image.digest)).await?;
                    let failed = |error: io::Error| self.talk.unwritten(&error, &path);
                    images.keep(image, modified).map_err(failed)?
                }
            });
        }
        let placed = images.placed(manifest, &places, believed).map_err(unplaced)?;
        fitting::check_images(manifest, incoming.folder(), &placed).map_err(unusable)?;
        Ok(placed)
    }

    /// What will come, and is there room for it?
    fn plan(
        &mut self,
        offer: &Offer,
        manifest: &Manifest,
        incoming: &Incoming,
        found: &[Option<PathBuf>],
    ) -> Result<()> {
        let mut files_to_come = 0_u64;
        for (file, data) in manifest.files.iter().zip(&offer.data_bytes) {
            let data = (*data).min(file.size);
            files_to_come = files_to_come.saturating_add(missing(&incoming.folder().join(&file.name), data));
        }
        let mut images_to_come = 0_u64;
        for (image, _) in offer.images.iter().zip(found).filter(|(_, here)| here.is_none()) {
            let path = self.receiver.images.gathering(image);
            let path = path.map_err(|error| self.talk.unwritten(&error, Path::new(&image.path)))?;
            images_to_come = images_to_come.saturating_add(missing(&path, image.data_bytes.min(image.size)));
        }
        let files = manifest.files.iter().map(|file| file.size);
        let images = offer.images.iter().map(|image: &Image| image.size);
        let to_send = files_to_come.saturating_add(images_to_come);
        self.talk.expect(to_send, files.chain(images).fold(0, u64::saturating_add));
        // Images are counted with the files: they lie on the same file system, as a rule.
        let promised = self.receiver.store.promise_incoming(incoming, to_send);
        promised.map_err(|error| store_failure(&error, Phase::Fetch))
    }
}

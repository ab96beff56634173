//! The target's end: one transfer. What is there already is not asked for again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use unasnap_channel::{Reader, Trust, Writer, connect_to_host};
use unasnap_protocol::control::{Envelope, Failure, FailureKind, Moved, Phase, Source};
use unasnap_protocol::name::Name;
use unasnap_protocol::transfer::{Ask, Give, Image, Item, MAX_CHUNK_BYTES, MAX_IMAGES, Offer, Piece, Wanted};

use super::images::{self, Images, hex};
use super::reading::lengths;
use super::{ask, fitting, given};
use crate::definition::VmDefinition;
use crate::store::manifest::{Facts, MAX_MANIFEST_BYTES, Manifest};
use crate::store::{Incoming, Store, StoreError, files};
use crate::works::store_failure;

/// How long a source may be busy with others.
const BUSY_LIMIT: Duration = Duration::from_secs(3600);
/// Between two questions whether it still is.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What a host needs to receive.
pub struct Receiver {
    /// Where local snapshots go.
    pub store: Store,
    /// Where images go.
    pub images: Images,
    /// Who we are to the source.
    pub trust: Trust,
    /// The hypervisor that would restore what comes.
    pub facts: Option<Facts>,
}

/// One that is under way.
struct Transfer<'a> {
    receiver: &'a Receiver,
    source: &'a Source,
    snapshot: &'a Name,
    vm: &'a Name,
    deployment: &'a Name,
    reader: Reader,
    writer: Writer,
    moved: Moved,
    progress: &'a watch::Sender<Moved>,
}

type Result<T> = std::result::Result<T, Failure>;

impl Receiver {
    /// Gets everything that a member needs to be restored on this host. A transfer that breaks off is gone on with the next
    /// time.
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
        let lost = |error: anyhow::Error| self.lost(source, &error);
        let deadline = Instant::now() + BUSY_LIMIT;
        loop {
            let connected = connect_to_host(&source.address, &source.host, &self.trust.identity()).await;
            let (reader, writer) = connected.map_err(|error| not_connected(&error))?.split();
            let moved = Moved::default();
            let mut transfer = Transfer {
                receiver: self,
                source,
                snapshot,
                vm,
                deployment,
                reader,
                writer,
                moved,
                progress,
            };
            match transfer.open().await? {
                Some(offer) => {
                    let done = transfer.receive(&offer).await?;
                    transfer.writer.close().await;
                    return Ok(done);
                }
                None if Instant::now() > deadline => {
                    return Err(lost(anyhow!("it was busy with other transfers for an hour")));
                }
                None => sleep(ASK_AGAIN).await,
            }
        }
    }

    /// The length of what this snapshot of this VM needs, if it is complete on this host already.
    fn is_here(&self, snapshot: &Name, vm: &Name, source: &Source) -> Result<Option<u64>> {
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

    fn lost(&self, source: &Source, error: &anyhow::Error) -> Failure {
        let text = format!(
            "the transfer from host {} broke off: {error:#}; what has come is kept, and the next one goes on there",
            source.host
        );
        Failure::new(FailureKind::HostLost, Phase::Fetch, text)
    }
}

fn not_connected(error: &unasnap_channel::ChannelError) -> Failure {
    let kind = if error.is_distrust() { FailureKind::BadRequest } else { FailureKind::HostLost };
    Failure::new(kind, Phase::Fetch, error.to_string())
}

fn failure(kind: FailureKind, text: String) -> Failure {
    Failure::new(kind, Phase::Fetch, text)
}

impl Transfer<'_> {
    /// `None`: the source is busy.
    async fn open(&mut self) -> Result<Option<Offer>> {
        let digest = self.source.digest;
        let wanted = Wanted { snapshot: self.snapshot.clone(), vm: self.vm.clone(), digest };
        ask(&mut self.writer, &Ask::Open(wanted)).await.map_err(|error| self.broke(&error))?;
        match self.next().await? {
            Give::Offer(offer) => Ok(Some(offer)),
            Give::Busy(()) => Ok(None),
            other => Err(self.odd(&format!("it began with {}", other.name()))),
        }
    }

    async fn receive(&mut self, offer: &Offer) -> Result<Moved> {
        let stored = |error: StoreError| store_failure(&error, Phase::Fetch);
        let store = &self.receiver.store;
        let text = self.manifest(offer).await?;
        let manifest = store.understand(&text, self.snapshot, self.vm).map_err(stored)?;
        self.check_offer(offer, &manifest)?;
        let definition = &manifest.identity.definition;
        if definition.deployment != *self.deployment {
            return Err(self.odd(&format!("its VM is one of deployment {}", definition.deployment)));
        }
        fitting::check(definition, &manifest.hypervisor, self.receiver.facts.as_ref(), Phase::Fetch)?;
        let incoming = store.receive(self.snapshot, self.vm, &text).map_err(stored)?;
        let received = self.everything(offer, &manifest, &incoming).await;
        store.settle_incoming(&incoming);
        match received {
            Ok(placed) => {
                let (store, incoming) = (store.clone(), incoming.clone());
                blocking(move || store.accept(&incoming, &manifest, &placed).map_err(stored)).await?;
                Ok(self.moved)
            }
            Err(full) if full.kind == FailureKind::NoSpace => {
                store.discard(self.snapshot, self.vm).map_err(stored)?;
                for path in offer.images.iter().filter_map(|image| self.receiver.images.gathering(image).ok())
                {
                    files::remove_if_there(&path).map_err(|error| self.unwritten(&error, &path))?;
                }
                Err(full)
            }
            Err(failure) => Err(failure),
        }
    }

    /// The manifest's text; its digest is the coordinator's.
    async fn manifest(&mut self, offer: &Offer) -> Result<Vec<u8>> {
        if offer.manifest_bytes > MAX_MANIFEST_BYTES {
            return Err(self.odd(&format!("its manifest has {} bytes", offer.manifest_bytes)));
        }
        self.read(Item::Manifest, 0).await?;
        let mut text = Vec::new();
        loop {
            match self.next().await? {
                Give::Chunk(chunk) if chunk.offset == text.len() as u64 => text.extend(chunk.bytes),
                Give::End(_) => break,
                _ => return Err(self.odd("its manifest does not come in order")),
            }
            if text.len() as u64 > offer.manifest_bytes {
                return Err(self.odd("it sends more bytes of its manifest than it announced"));
            }
        }
        if *blake3::hash(&text).as_bytes() == self.source.digest {
            return Ok(text);
        }
        let text = format!(
            "host {} sent another manifest of snapshot {} of {} than the coordinator knows; nothing of it was used",
            self.source.host, self.snapshot, self.vm
        );
        Err(failure(FailureKind::Files, text))
    }

    fn check_offer(&self, offer: &Offer, manifest: &Manifest) -> Result<()> {
        let definition = &manifest.identity.definition;
        let images = images::paths(manifest, definition).len();
        let bases = manifest.bases.iter().zip(&offer.images);
        let fits = offer.data_bytes.len() == manifest.files.len()
            // One that came with none would keep the place that it has on the other host.
            && manifest.bases.len() == definition.disks.len()
            && offer.images.len() == images
            && images <= MAX_IMAGES
            && bases.into_iter().all(|(base, image)| base.blake3 == hex(&image.digest));
        if fits { Ok(()) } else { Err(self.odd("its offer does not fit the manifest")) }
    }

    /// All files and images, compared with their digests; the definition with the images' places here.
    async fn everything(
        &mut self,
        offer: &Offer,
        manifest: &Manifest,
        incoming: &Incoming,
    ) -> Result<VmDefinition> {
        let images = self.receiver.images.clone();
        let wanted = offer.images.clone();
        let searched = images.clone();
        let found: Vec<_> = blocking(move || {
            let found = wanted.iter().map(|image| searched.find(image)).collect::<io::Result<_>>();
            found.map_err(|error| failure(FailureKind::Files, format!("an image cannot be read: {error}")))
        })
        .await?;
        self.plan(offer, manifest, incoming, &found)?;
        for (index, file) in manifest.files.iter().enumerate() {
            let path = incoming.folder().join(&file.name);
            let item = Item::File(u32::try_from(index).unwrap_or(u32::MAX));
            self.whole(item, &path, file.size, &file.blake3).await?;
        }
        // Of two VMs that need the same image one gets it, and the other finds it.
        let _no_other = images.lock().await;
        let mut places = Vec::new();
        for (index, (image, here)) in offer.images.iter().zip(found).enumerate() {
            let modified = manifest.bases.get(index).map(|base| base.modified);
            let came = images.place(image);
            places.push(match here.or_else(|| came.is_file().then_some(came)) {
                Some(path) => path,
                None => {
                    let failed = |error: io::Error| self.unwritten(&error, Path::new(&image.path));
                    let path = images.gathering(image).map_err(failed)?;
                    let item = Item::Image(u32::try_from(index).unwrap_or(u32::MAX));
                    self.whole(item, &path, image.size, &hex(&image.digest)).await?;
                    let failed = |error: io::Error| self.unwritten(&error, &path);
                    images.keep(image, modified).map_err(failed)?
                }
            });
        }
        let placed = images::placed(&manifest.identity.definition, &places);
        let fits = fitting::check_images(manifest, incoming.folder(), &placed);
        fits.map(|()| placed)
            .map_err(|why| failure(FailureKind::Files, format!("nothing of it is used: {why}")))
    }

    /// What will come, and is there room for it?
    fn plan(
        &mut self,
        offer: &Offer,
        manifest: &Manifest,
        incoming: &Incoming,
        found: &[Option<PathBuf>],
    ) -> Result<()> {
        let missing = |path: &Path, data: u64| {
            let (length, here) = lengths(path).unwrap_or_default();
            if length == 0 { data } else { data.saturating_sub(here) }
        };
        let mut files_to_come = 0_u64;
        for (file, data) in manifest.files.iter().zip(&offer.data_bytes) {
            let data = (*data).min(file.size);
            files_to_come = files_to_come.saturating_add(missing(&incoming.folder().join(&file.name), data));
        }
        let mut images_to_come = 0_u64;
        for (image, _) in offer.images.iter().zip(found).filter(|(_, here)| here.is_none()) {
            let path = self.receiver.images.gathering(image);
            let path = path.map_err(|error| self.unwritten(&error, Path::new(&image.path)))?;
            images_to_come = images_to_come.saturating_add(missing(&path, image.data_bytes.min(image.size)));
        }
        let files = manifest.files.iter().map(|file| file.size);
        let images = offer.images.iter().map(|image: &Image| image.size);
        self.moved.total = files.chain(images).fold(0, u64::saturating_add);
        self.moved.to_send = files_to_come.saturating_add(images_to_come);
        self.progress.send_replace(self.moved);
        // Images are counted with the files: they lie on the same file system, as a rule.
        let promised = self.receiver.store.promise_incoming(incoming, self.moved.to_send);
        promised.map_err(|error| store_failure(&error, Phase::Fetch))
    }

    /// One item, until it is complete and its digest is right. What came before may be torn by a crash of this host: then
    /// all of it comes once more.
    async fn whole(&mut self, item: Item, path: &Path, size: u64, blake3: &str) -> Result<()> {
        for _ in 0..2 {
            let resumed = self.item(item, path, size).await?;
            let (read, wanted) = (path.to_owned(), blake3.to_owned());
            let compared = blocking(move || {
                files::digest(&read).map(|found| found == wanted).map_err(|error| {
                    failure(FailureKind::Files, format!("{} cannot be read: {error}", read.display()))
                })
            });
            if compared.await? {
                return Ok(());
            }
            files::remove_if_there(path).map_err(|error| self.unwritten(&error, path))?;
            if !resumed {
                break;
            }
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let text = format!(
            "{name} of snapshot {} of {} is damaged on host {}: its digest differs from the manifest's, and what came of it was thrown away. \
             `unasnap snapshot verify {}` names all that is; restore another snapshot",
            self.snapshot, self.vm, self.source.host, self.snapshot
        );
        Err(failure(FailureKind::Files, text))
    }

    /// The rest of one item. Was a part of it here before?
    async fn item(&mut self, item: Item, path: &Path, size: u64) -> Result<bool> {
        let open = || OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
        let file = Arc::new(open().map_err(|error| self.unwritten(&error, path))?);
        let begin = file.metadata().map_err(|error| self.unwritten(&error, path))?.len();
        if begin > size {
            file.set_len(0).map_err(|error| self.unwritten(&error, path))?;
        }
        let begin = if begin > size { 0 } else { begin };
        if begin == size {
            return Ok(begin > 0);
        }
        self.read(item, begin).await?;
        let mut at = begin;
        loop {
            match self.next().await? {
                Give::Chunk(chunk) => {
                    let length = chunk.bytes.len();
                    let end = chunk.offset.saturating_add(length as u64);
                    if chunk.offset < at || length == 0 || length > MAX_CHUNK_BYTES {
                        return Err(self.odd("it sends bytes that were not asked for"));
                    }
                    if end > size {
                        return Err(self.odd(&format!(
                            "it sends more than the {size} bytes of {} that it announced",
                            path.display()
                        )));
                    }
                    self.write(&file, path, chunk.offset, chunk.bytes).await?;
                    at = end;
                    self.moved.sent += length as u64;
                    self.progress.send_replace(self.moved);
                }
                Give::End(length) if length == size => break,
                Give::End(length) => {
                    let text = format!(
                        "{} of snapshot {} of {} is damaged on host {}: it has {length} bytes instead of {size}; restore another snapshot",
                        path.file_name().unwrap_or_default().to_string_lossy(),
                        self.snapshot,
                        self.vm,
                        self.source.host
                    );
                    return Err(failure(FailureKind::Files, text));
                }
                other => return Err(self.odd(&format!("it answered with {}", other.name()))),
            }
        }
        file.set_len(size).map_err(|error| self.unwritten(&error, path))?;
        Ok(begin > 0)
    }

    async fn write(&self, file: &Arc<File>, path: &Path, offset: u64, bytes: Vec<u8>) -> Result<()> {
        let file = Arc::clone(file);
        let written = tokio::task::spawn_blocking(move || file.write_all_at(&bytes, offset)).await;
        written.map_err(io::Error::other).and_then(|done| done).map_err(|error| self.unwritten(&error, path))
    }

    async fn read(&mut self, item: Item, offset: u64) -> Result<()> {
        let piece = Piece { item, offset };
        ask(&mut self.writer, &Ask::Read(piece)).await.map_err(|error| self.broke(&error))
    }

    async fn next(&mut self) -> Result<Give> {
        match given(&mut self.reader).await.map_err(|error| self.broke(&error))? {
            Give::Refused(why) => {
                Err(failure(FailureKind::Files, format!("host {} refuses: {why}", self.source.host)))
            }
            other => Ok(other),
        }
    }

    fn broke(&self, error: &anyhow::Error) -> Failure {
        self.receiver.lost(self.source, error)
    }

    /// The source does not keep to the protocol.
    fn odd(&self, what: &str) -> Failure {
        let text = format!(
            "host {} does not keep to the protocol: {what}; install the same release on all hosts",
            self.source.host
        );
        failure(FailureKind::BadRequest, text)
    }

    fn unwritten(&self, error: &io::Error, path: &Path) -> Failure {
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            let text = format!(
                "the disk of this host is full ({}): what had come of {} was removed, and the snapshot is untouched on host {}; make room or choose another host",
                path.display(),
                self.vm,
                self.source.host
            );
            return failure(FailureKind::NoSpace, text);
        }
        failure(FailureKind::Internal, format!("cannot write {}: {error}", path.display()))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|error| failure(FailureKind::Internal, error.to_string()))?
}

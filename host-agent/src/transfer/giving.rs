//! The source's end: hosts ask for local snapshots, and get what is committed.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Error, Result, bail, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use unasnap_channel::{Arrival, Connection, Listener, Peer, Reader, Trust, Writer};
use unasnap_protocol::frame::Frame;
use unasnap_protocol::name::Name;
use unasnap_protocol::transfer::{
    Ask, Disks, Give, Image, Item, MAX_IDLE_S, MAX_IMAGES, Offer, Piece, Wanted,
};

use super::frozen::{Frozen, Shelf};
use super::images::{self, Images, hex};
use super::reading::{Rate, chunks, lengths};
use super::{fitting, give};
use crate::store::manifest::{MANIFEST_FILE, Manifest};
use crate::store::{Placed, Store, files};

/// Transfers at once; others are asked to come back.
pub const MAX_TRANSFERS: usize = 2;
/// Connections at once, those without a handshake among them.
const MAX_CONNECTIONS: usize = 32;
/// For the first question after the handshake.
const OPEN_LIMIT: Duration = Duration::from_secs(5);

/// What a host gives to other hosts.
pub struct Giver {
    store: Store,
    images: Images,
    shelf: Arc<Shelf>,
    trust: Trust,
    rate: Rate,
    transfers: Arc<Semaphore>,
}

impl Giver {
    /// Gives from `store`, from the `shelf` and of the bases, at most so many bytes per second.
    #[must_use]
    pub fn new(
        store: Store,
        images: Images,
        shelf: Arc<Shelf>,
        trust: Trust,
        per_second: Option<u64>,
    ) -> Arc<Self> {
        let transfers = Arc::new(Semaphore::new(MAX_TRANSFERS));
        Arc::new(Self { store, images, shelf, trust, rate: Rate::new(per_second), transfers })
    }

    /// Serves for ever.
    pub async fn listen(self: Arc<Self>, listener: Listener) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match listener.accept().await {
                Ok(arrival) => drop(tokio::spawn(Arc::clone(&self).welcome(arrival, place))),
                Err(error) => {
                    tracing::warn!("cannot accept another host's connection: {error}");
                    // Out of descriptors, most likely: others must end first.
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn welcome(self: Arc<Self>, arrival: Arrival, _place: OwnedSemaphorePermit) {
        let address = arrival.address();
        let connection = match arrival.handshake().await {
            Ok(connection) => connection,
            Err(error) => return tracing::warn!("refused a connection from {address}: {error}"),
        };
        let peer = connection.peer().clone();
        let (trust, shown) = (self.trust.clone(), connection.certificate().clone());
        let ended = tokio::select! {
            ended = self.serve(connection) => ended,
            why = trust.lost(&shown) => Err(why.into()),
        };
        if let Err(error) = ended {
            tracing::warn!("ended a transfer to {peer}: {error:#}");
        }
    }

    async fn serve(&self, connection: Connection) -> Result<()> {
        let peer = connection.peer().clone();
        let (mut reader, mut writer) = connection.split();
        let Peer::Host(host) = peer else {
            let why = format!("files of snapshots are given to hosts, not to {peer}");
            return refuse(&mut writer, &why).await;
        };
        let (store, images, shelf) = (self.store.clone(), self.images.clone(), Arc::clone(&self.shelf));
        let look: Box<dyn FnOnce() -> Result<Offered> + Send> = match next(&mut reader, OPEN_LIMIT).await? {
            Some(Ask::Open(wanted)) => Box::new(move || Offered::snapshot(&store, &wanted)),
            Some(Ask::Base(digest)) => Box::new(move || Offered::base(&images, digest)),
            Some(Ask::Disks(wanted)) => Box::new(move || Offered::disks(&shelf, &wanted)),
            _ => {
                let why = "the first question has to be which snapshot, base or disks are wanted";
                return refuse(&mut writer, why).await;
            }
        };
        let Ok(_transfer) = self.transfers.try_acquire() else {
            give(&mut writer, &Give::Busy(())).await?;
            writer.close().await;
            return Ok(());
        };
        let offered = match tokio::task::spawn_blocking(look).await? {
            Ok(offered) => offered,
            Err(why) => return refuse(&mut writer, &format!("{why:#}")).await,
        };
        tracing::info!("host {host} fetches {}", offered.what);
        give(&mut writer, &Give::Offer(offered.offer.clone())).await?;
        while let Some(question) = next(&mut reader, Duration::from_secs(MAX_IDLE_S)).await? {
            let Ask::Read(piece) = question else {
                return refuse(&mut writer, "one thing for each connection").await;
            };
            if let Err(why) = self.send(&offered, piece, &mut writer).await {
                return refuse(&mut writer, &format!("{why:#}")).await;
            }
        }
        writer.close().await;
        Ok(())
    }

    async fn send(&self, offered: &Offered, piece: Piece, writer: &mut Writer) -> Result<()> {
        let part = offered.part(piece.item)?;
        let unreadable = || format!("{} cannot be read", part.path.display());
        let file = part.open().with_context(unreadable)?;
        let length = file.metadata().with_context(unreadable)?.len();
        ensure!(piece.offset <= length, "{} is not that long", part.path.display());
        let mut chunks = chunks(file, piece.offset);
        while let Some(chunk) = chunks.recv().await {
            let chunk = chunk.with_context(unreadable)?;
            self.rate.pace(chunk.bytes.len()).await;
            give(writer, &Give::Chunk(chunk)).await?;
        }
        give(writer, &Give::End(length)).await
    }
}

/// What is given on one connection.
struct Offered {
    /// For the log.
    what: String,
    /// Manifest and files, in its order; none of a base.
    manifest: Option<Part>,
    files: Vec<Part>,
    images: Vec<Part>,
    offer: Offer,
}

/// One thing that can be read.
struct Part {
    path: PathBuf,
    /// Where it may have no name any more before it is read.
    kept: Option<File>,
}

impl Part {
    fn at(path: PathBuf) -> Self {
        Self { path, kept: None }
    }

    fn keep(path: PathBuf) -> Result<Self> {
        let file = File::open(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        Ok(Self { path, kept: Some(file) })
    }

    fn open(&self) -> io::Result<File> {
        self.kept.as_ref().map_or_else(|| File::open(&self.path), File::try_clone)
    }
}

impl Offered {
    fn base(images: &Images, digest: [u8; 32]) -> Result<Self> {
        let path = images.base(&hex(&digest));
        let path = path.with_context(|| format!("no base of this host has the digest {}", hex(&digest)))?;
        let (size, data_bytes) =
            lengths(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let image = Image { path: path.display().to_string(), size, data_bytes, digest };
        let offer = Offer { manifest_bytes: 0, data_bytes: Vec::new(), images: vec![image] };
        let what = format!("base {}", path.display());
        Ok(Self { what, manifest: None, files: Vec::new(), images: vec![Part::at(path)], offer })
    }

    fn snapshot(store: &Store, wanted: &Wanted) -> Result<Self> {
        let Wanted { snapshot, vm, digest } = wanted;
        let text = store.manifest_text(snapshot, vm)?;
        let text = text.with_context(|| absent(snapshot, vm))?;
        ensure!(store.is_committed(snapshot), "{}", absent(snapshot, vm));
        if *blake3::hash(&text).as_bytes() != *digest {
            bail!("the manifest of snapshot {snapshot} of VM {vm} is not the one that the coordinator knows");
        }
        let manifest = store.manifest(snapshot, vm)?;
        let here = store.here(&manifest)?;
        let folder = store.vm_folder(snapshot, vm);
        let (files, images, offer) = parts(&manifest, &here, &folder, text.len())?;
        Ok(Self {
            what: format!("snapshot {snapshot} of VM {vm}"),
            manifest: Some(Part::at(folder.join(MANIFEST_FILE))),
            files: files.into_iter().map(Part::at).collect(),
            images,
            offer,
        })
    }

    /// The files of a VM that may run on meanwhile, and merge them.
    fn disks(shelf: &Shelf, wanted: &Disks) -> Result<Self> {
        let vm = &wanted.vm;
        let frozen = shelf.get(wanted);
        let frozen = frozen.with_context(|| format!("the disks of VM {vm} are not frozen as the coordinator knows them; repeat `unasnap vm replicate`"))?;
        let Frozen { manifest, text, folder } = frozen.as_ref();
        let (files, images, offer) = parts(manifest, &Placed::nowhere_else(manifest), folder, text.len())?;
        let name = Path::new(MANIFEST_FILE);
        let mut memory = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?);
        memory.write_all(text)?;
        Ok(Self {
            what: format!("the disks of VM {vm}"),
            manifest: Some(Part { path: name.to_owned(), kept: Some(memory) }),
            files: files.into_iter().map(Part::keep).collect::<Result<_>>()?,
            images,
            offer,
        })
    }

    fn part(&self, item: Item) -> Result<&Part> {
        match item {
            Item::Manifest => self.manifest.as_ref().context("there is no manifest"),
            Item::File(index) => self.files.get(index as usize).context("there is no such file"),
            Item::Image(index) => self.images.get(index as usize).context("there is no such image"),
        }
    }
}

/// Files and images of a manifest, and what is said of them. Its files lie in `folder`.
fn parts(
    manifest: &Manifest,
    here: &Placed,
    folder: &Path,
    manifest_bytes: usize,
) -> Result<(Vec<PathBuf>, Vec<Part>, Offer)> {
    let images = images::paths(here);
    ensure!(images.len() <= MAX_IMAGES, "VM {} has more than {MAX_IMAGES} images", here.definition.name);
    fitting::check_images(manifest, folder, here).map_err(Error::msg)?;
    let files: Vec<_> = manifest.files.iter().map(|file| folder.join(&file.name)).collect();
    let offer = Offer {
        manifest_bytes: manifest_bytes as u64,
        data_bytes: files.iter().map(|path| Ok(lengths(path)?.1)).collect::<Result<_>>()?,
        images: images.iter().enumerate().map(|at| describe(manifest, at)).collect::<Result<_>>()?,
    };
    Ok((files, images.into_iter().map(Part::at).collect(), offer))
}

/// An image as the manifest knows it, or as it is: kernels are no part of a snapshot.
fn describe(manifest: &Manifest, (index, path): (usize, &PathBuf)) -> Result<Image> {
    let unreadable = || format!("{}, which the VM needs, cannot be read", path.display());
    let (length, data_bytes) = lengths(path).with_context(unreadable)?;
    let known = manifest.bases.get(index);
    let digest = match known {
        Some(base) => base.blake3.clone(),
        None => files::digest(path).with_context(unreadable)?,
    };
    let digest = *blake3::Hash::from_hex(&digest).context("the manifest is damaged")?.as_bytes();
    let size = known.map_or(length, |base| base.size);
    Ok(Image { path: path.display().to_string(), size, data_bytes, digest })
}

fn absent(snapshot: &Name, vm: &Name) -> String {
    format!("no committed snapshot {snapshot} of VM {vm} is on this host")
}

async fn next(reader: &mut Reader, limit: Duration) -> Result<Option<Ask>> {
    let waited = timeout(limit, reader.recv()).await;
    let frame: Option<Frame> =
        waited.with_context(|| format!("it asked nothing for {} s", limit.as_secs()))??;
    Ok(frame.map(|frame| Ask::decode(&frame)).transpose()?.map(|((), question)| question))
}

async fn refuse(writer: &mut Writer, why: &str) -> Result<()> {
    // The peer may be gone already; the log says why it was refused.
    let _ = give(writer, &Give::Refused(why.to_owned())).await;
    writer.close().await;
    bail!("{why}")
}

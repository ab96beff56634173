//! One connection to a host that has files: questions, answers, and the files that are made of them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use tokio::time::{Duration, Instant, sleep};
use unasnap_channel::{ChannelError, Reader, Trust, Writer, connect_to_host};
use unasnap_protocol::control::{Failure, FailureKind, Moved, Phase, Source};
use unasnap_protocol::transfer::{Ask, Give, Item, MAX_CHUNK_BYTES, Offer, Piece};

use super::reading::{Rate, lengths};
use super::{ask, given};
use crate::hypervisor::base_image::describe;
use crate::store::files;
use crate::store::manifest::BaseImage;
use crate::works::chain;

/// How long a source may be busy with others.
const BUSY_LIMIT: Duration = Duration::from_secs(3600);
/// Between two questions whether it still is.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What can go wrong with a transfer.
pub(super) type Result<T> = std::result::Result<T, Failure>;

/// What is wanted, in words.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    /// Of what kind: "the snapshot".
    pub kind: &'static str,
    /// Which: "snapshot s1 of web".
    pub what: String,
    /// What to do when the source's files are damaged.
    pub cure: String,
}

/// Hears how far a transfer is.
pub(super) type Tell<'a> = dyn Fn(Moved) + Sync + 'a;

/// One that is under way.
pub(super) struct Conversation<'a> {
    pub source: &'a Source,
    pub wish: Wish,
    reader: Reader,
    writer: Writer,
    rate: Rate,
    /// How far it is.
    pub moved: Moved,
    tell: &'a Tell<'a>,
}

impl<'a> Conversation<'a> {
    /// Connects and asks the first question, until the source is not busy any more.
    pub async fn open(
        source: &'a Source,
        trust: &Trust,
        (first, wish): (&Ask, Wish),
        per_second: Option<u64>,
        tell: &'a Tell<'a>,
    ) -> Result<(Self, Offer)> {
        let deadline = Instant::now() + BUSY_LIMIT;
        loop {
            let connected = connect_to_host(&source.address, &source.host, &trust.identity()).await;
            let (reader, writer) = connected.map_err(|error| not_connected(&error))?.split();
            let (rate, moved) = (Rate::new(per_second), Moved::default());
            let mut this = Self { source, wish: wish.clone(), reader, writer, rate, moved, tell };
            ask(&mut this.writer, first).await.map_err(|error| this.broke(&error))?;
            match this.next().await? {
                Give::Offer(offer) => return Ok((this, offer)),
                Give::Busy(()) if Instant::now() > deadline => {
                    return Err(lost(
                        source,
                        &anyhow::anyhow!("it was busy with other transfers for an hour"),
                    ));
                }
                Give::Busy(()) => sleep(ASK_AGAIN).await,
                other => return Err(this.odd(&format!("it began with {}", other.name()))),
            }
        }
    }

    /// Says goodbye.
    pub async fn close(mut self) -> Moved {
        self.writer.close().await;
        self.moved
    }

    /// So much will come in all.
    pub fn expect(&mut self, to_send: u64, total: u64) {
        (self.moved.to_send, self.moved.total) = (to_send, total);
        (self.tell)(self.moved);
    }

    /// One item, until it is complete and its digest is right: the file as it was read for that. What came before may be
    /// torn by a crash of this host: then all of it comes once more.
    pub async fn whole(&mut self, item: Item, path: &Path, size: u64, blake3: &str) -> Result<BaseImage> {
        for _ in 0..2 {
            let resumed = self.item(item, path, size).await?;
            let here = path.to_owned();
            let read = blocking(move || {
                // Described before it is read: what is written meanwhile is not taken for what was read.
                let described =
                    describe(&here).map_err(|error| failure(FailureKind::Files, chain(&error)))?;
                let blake3 = files::digest(&here).map_err(|error| {
                    failure(FailureKind::Files, format!("{} cannot be read: {error}", here.display()))
                })?;
                Ok(BaseImage { blake3, ..described })
            });
            let read = read.await?;
            if read.blake3 == blake3 {
                return Ok(read);
            }
            files::remove_if_there(path).map_err(|error| self.unwritten(&error, path))?;
            if !resumed {
                break;
            }
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let text = format!(
            "{name} of {} is damaged on host {}: its digest is not the one that is known, and what came of it was thrown away; {}",
            self.wish.what, self.source.host, self.wish.cure
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
                    self.rate.pace(length).await;
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
                    (self.tell)(self.moved);
                }
                Give::End(length) if length == size => break,
                Give::End(length) => {
                    let text = format!(
                        "{} of {} is damaged on host {}: it has {length} bytes instead of {size}; {}",
                        path.file_name().unwrap_or_default().to_string_lossy(),
                        self.wish.what,
                        self.source.host,
                        self.wish.cure
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

    pub async fn read(&mut self, item: Item, offset: u64) -> Result<()> {
        let piece = Piece { item, offset };
        ask(&mut self.writer, &Ask::Read(piece)).await.map_err(|error| self.broke(&error))
    }

    pub async fn next(&mut self) -> Result<Give> {
        match given(&mut self.reader).await.map_err(|error| self.broke(&error))? {
            Give::Refused(why) => {
                Err(failure(FailureKind::Files, format!("host {} refuses: {why}", self.source.host)))
            }
            other => Ok(other),
        }
    }

    fn broke(&self, error: &anyhow::Error) -> Failure {
        lost(self.source, error)
    }

    /// The source does not keep to the protocol.
    pub fn odd(&self, what: &str) -> Failure {
        let text = format!(
            "host {} does not keep to the protocol: {what}; install the same release on all hosts",
            self.source.host
        );
        failure(FailureKind::BadRequest, text)
    }

    pub fn unwritten(&self, error: &io::Error, path: &Path) -> Failure {
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            let text = format!(
                "the disk of this host is full ({}): what had come of {} was removed, and {} is untouched on host {}; make room or choose another host",
                path.display(),
                self.wish.what,
                self.wish.kind,
                self.source.host
            );
            return failure(FailureKind::NoSpace, text);
        }
        failure(FailureKind::Internal, format!("cannot write {}: {error}", path.display()))
    }
}

fn not_connected(error: &ChannelError) -> Failure {
    let kind = if error.is_distrust() { FailureKind::BadRequest } else { FailureKind::HostLost };
    failure(kind, error.to_string())
}

/// The source, or the way to it, was lost.
fn lost(source: &Source, error: &anyhow::Error) -> Failure {
    let text = format!(
        "the transfer from host {} broke off: {error:#}; what has come is kept, and the next one goes on there",
        source.host
    );
    failure(FailureKind::HostLost, text)
}

pub(crate) fn failure(kind: FailureKind, text: String) -> Failure {
    Failure::new(kind, Phase::Fetch, text)
}

/// Bytes of `data` that are still to come to `path`.
pub(super) fn missing(path: &Path, data: u64) -> u64 {
    let (length, here) = lengths(path).unwrap_or_default();
    if length == 0 { data } else { data.saturating_sub(here) }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|error| failure(FailureKind::Internal, error.to_string()))?
}

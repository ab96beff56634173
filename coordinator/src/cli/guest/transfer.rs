//! `unasnap vm put` and `get`: one file, whole or not at all.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::time::timeout;
use unasnap_protocol::access::{self, Ask, Chunk, Digest, GuestPath, Opened, Said};
use unasnap_protocol::name::Name;
use unasnap_protocol::power::Patterns;

use super::{Conversations, failed};
use crate::cli::output;
use crate::config::ClientConfig;
use crate::failure::{CliError, Kind, Result};

/// Bits of a mode that go into a guest.
const MODE_BITS: u32 = 0o7777;
/// Bits that come out of one: nobody's file becomes a program that runs as its owner here.
const PLAIN_MODE_BITS: u32 = 0o777;

/// A file that was moved.
#[derive(Serialize)]
struct Moved {
    vm: Name,
    host: Name,
    bytes: u64,
    blake3: String,
    ms: f64,
}

#[derive(Serialize)]
struct Put {
    put: Moved,
}

#[derive(Serialize)]
struct Got {
    get: Moved,
}

/// `vm put`.
pub async fn put(
    config: &ClientConfig,
    vm: Name,
    local: &Path,
    remote: GuestPath,
    limit_s: u32,
    json: bool,
) -> Result<()> {
    let unreadable = |error: io::Error| CliError::usage(format!("cannot read {}: {error}", local.display()));
    let from = File::open(local).map_err(unreadable)?;
    let found = from.metadata().map_err(unreadable)?;
    if !found.is_file() {
        return Err(CliError::usage(format!("{} is no ordinary file", local.display())));
    }
    let file = access::File { mode: found.permissions().mode() & MODE_BITS, bytes: found.len() };
    let moved = within(limit_s, &vm, async {
        let mut talk = Talk::open(config, &vm, Ask::Put(remote, file)).await?;
        let chunk = usize::from(talk.opened.chunk);
        let (mut from, mut hasher) = (from.take(file.bytes), blake3::Hasher::new());
        let mut sent = 0;
        loop {
            let mut bytes = Vec::with_capacity(chunk);
            let room = u64::try_from(chunk).unwrap_or(u64::MAX);
            from.by_ref().take(room).read_to_end(&mut bytes).map_err(unreadable)?;
            if bytes.is_empty() {
                break;
            }
            sent += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            hasher.update(&bytes);
            let bytes = Chunk::try_from(bytes).map_err(|error| CliError::internal(error.to_string()))?;
            talk.ask(Ask::Data(bytes)).await?;
        }
        if sent != file.bytes {
            return Err(CliError::usage(format!("{} became shorter while it was read", local.display())));
        }
        let digest = *hasher.finalize().as_bytes();
        match talk.ask(Ask::End(digest)).await? {
            Said::Done(same) if same == digest => Ok(talk.moved(sent, digest)),
            _ => Err(talk.lied("its digest of the file is another")),
        }
    });
    let put = moved.await?;
    if json { output::json(&Put { put }) } else { show(&put) }
}

/// `vm get`.
pub async fn get(
    config: &ClientConfig,
    vm: Name,
    remote: GuestPath,
    local: &Path,
    limit_s: u32,
    json: bool,
) -> Result<()> {
    let moved = within(limit_s, &vm, async {
        let mut talk = Talk::open(config, &vm, Ask::Get(remote)).await?;
        let Some(file) = talk.opened.file else { return Err(talk.lied("it does not say what the file is")) };
        let mut incoming = Incoming::begin(local)?;
        let (mut hasher, mut got) = (blake3::Hasher::new(), 0);
        loop {
            match talk.ask(Ask::More(talk.opened.chunk)).await? {
                Said::Data(chunk) => {
                    got += u64::try_from(chunk.bytes().len()).unwrap_or(u64::MAX);
                    if got > file.bytes || chunk.bytes().is_empty() {
                        return Err(talk.lied("it sends other bytes than it announced"));
                    }
                    hasher.update(chunk.bytes());
                    incoming.take(chunk.bytes())?;
                }
                Said::Done(digest) if got == file.bytes && digest == *hasher.finalize().as_bytes() => {
                    incoming.finish(file.mode)?;
                    return Ok(talk.moved(got, digest));
                }
                _ => return Err(talk.lied("what arrived is not what it announced")),
            }
        }
    });
    let get = moved.await?;
    if json { output::json(&Got { get }) } else { show(&get) }
}

fn show(moved: &Moved) -> Result<()> {
    output::line(&format!("{} on {}: {} bytes in {:.1} ms", moved.vm, moved.host, moved.bytes, moved.ms))
}

async fn within<T>(limit_s: u32, vm: &Name, work: impl Future<Output = Result<T>>) -> Result<T> {
    let worked = timeout(Duration::from_secs(u64::from(limit_s)), work).await;
    worked.unwrap_or_else(|_| {
        let text = format!("{vm}: the file was not moved in {limit_s} s (--timeout); nothing of it is left");
        Err(CliError::new(Kind::TimedOut, text))
    })
}

/// The conversation with one guest.
struct Talk {
    conversations: Conversations,
    vm: Name,
    opened: Opened,
    begun: Instant,
}

impl Talk {
    async fn open(config: &ClientConfig, vm: &Name, ask: Ask) -> Result<Self> {
        let begun = Instant::now();
        let vms = Patterns::try_from(vec![vm.clone().into()]);
        let vms = vms.map_err(|error| CliError::usage(error.to_string()))?;
        let conversations = Conversations::open(config, vms, ask).await?;
        let opened = Opened { chunk: 0, file: None };
        let mut talk = Self { conversations, vm: vm.clone(), opened, begun };
        match talk.hear().await? {
            Said::Opened(opened) => Ok(Self { opened, ..talk }),
            _ => Err(talk.lied("it answered something else than was asked")),
        }
    }

    async fn ask(&mut self, ask: Ask) -> Result<Said> {
        self.conversations.ask(&self.vm, ask).await?;
        self.hear().await
    }

    async fn hear(&mut self) -> Result<Said> {
        let (vm, said) = self.conversations.next().await?;
        said.map_err(|failure| failed(&vm, self.conversations.host(&vm), &failure))
    }

    fn lied(&self, how: &str) -> CliError {
        CliError::new(Kind::Refused, format!("{}: the guest is not to be trusted: {how}", self.vm))
    }

    fn moved(&self, bytes: u64, digest: Digest) -> Moved {
        let vm = self.vm.clone();
        let host = self.conversations.host(&vm).cloned().unwrap_or_else(|| vm.clone());
        let ms = self.begun.elapsed().as_secs_f64() * 1e3;
        Moved { vm, host, bytes, blake3: blake3::Hash::from(digest).to_hex().to_string(), ms }
    }
}

/// A file that is not whole yet. It goes when it is dropped before that.
struct Incoming {
    temporary: PathBuf,
    target: PathBuf,
    to: File,
    is_whole: bool,
}

impl Incoming {
    fn begin(target: &Path) -> Result<Self> {
        if target.is_dir() {
            let text = format!("{} is a folder; say what the file is to be called in it", target.display());
            return Err(CliError::usage(text));
        }
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
        let temporary = folder.unwrap_or(Path::new(".")).join(format!(".unasnap-get-{}", std::process::id()));
        let to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        let to = to.map_err(|error| unwritable(&temporary, &error))?;
        Ok(Self { temporary, target: target.to_owned(), to, is_whole: false })
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.to.write_all(bytes).map_err(|error| unwritable(&self.target, &error))
    }

    fn finish(mut self, mode: u32) -> Result<()> {
        let done = self.to.set_permissions(Permissions::from_mode(mode & PLAIN_MODE_BITS));
        let done =
            done.and_then(|()| self.to.sync_all()).and_then(|()| fs::rename(&self.temporary, &self.target));
        done.map_err(|error| unwritable(&self.target, &error))?;
        self.is_whole = true;
        Ok(())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.is_whole {
            // If it is gone, somebody else has removed it.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn unwritable(path: &Path, error: &io::Error) -> CliError {
    CliError::usage(format!("cannot write {}: {error}; nothing of the file is left", path.display()))
}

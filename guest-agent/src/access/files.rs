//! One file, in or out.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use unasnap_protocol::access::{self, Ask, CHUNK_BYTES, Chunk, Digest, GuestPath, Opened, RefusalKind, Said};

use super::{
    failed, misplaced, refusal,
    slot::{Next, Slot},
};

/// How soon it is noticed that nobody wants a file any more.
const SLICE: Duration = Duration::from_millis(50);
/// Bits of a mode that are kept.
const MODE_BITS: u32 = 0o7777;

fn opened(file: Option<access::File>) -> Said {
    Said::Opened(Opened { chunk: u16::try_from(CHUNK_BYTES).unwrap_or(u16::MAX), file })
}

/// Makes or replaces a file: under another name, until all of it is there.
pub fn put(slot: &Slot, path: &GuestPath, file: access::File) {
    let mut incoming = match Incoming::begin(Path::new(path.as_str()), file) {
        Ok(incoming) => incoming,
        Err(error) => return slot.say(why(path, "made", &error)),
    };
    slot.say(opened(None));
    loop {
        match slot.next(SLICE) {
            Next::Over => return,
            Next::Nothing => {}
            Next::Ask(Ask::Data(chunk)) => match incoming.take(chunk.bytes()) {
                Ok(()) => slot.say(Said::Taken),
                Err(error) => return say_without(slot, incoming, why(path, "written", &error)),
            },
            Next::Ask(Ask::End(digest)) => {
                return match incoming.finish(digest) {
                    Ok(()) => slot.say(Said::Done(digest)),
                    Err(error) => say_without(slot, incoming, why(path, "finished", &error)),
                };
            }
            Next::Ask(_) => return say_without(slot, incoming, misplaced()),
        }
    }
}

/// Nothing is left of the file when that is said.
fn say_without(slot: &Slot, incoming: Incoming, said: Said) {
    drop(incoming);
    slot.say(said);
}

/// Reads a file to its end.
pub fn get(slot: &Slot, path: &GuestPath) {
    let mut outgoing = match Outgoing::begin(Path::new(path.as_str())) {
        Ok(outgoing) => outgoing,
        Err(error) => return slot.say(why(path, "read", &error)),
    };
    slot.say(opened(Some(outgoing.file)));
    loop {
        match slot.next(SLICE) {
            Next::Over => return,
            Next::Nothing => {}
            Next::Ask(Ask::More(room)) => match outgoing.next(usize::from(room)) {
                Ok(Some(chunk)) => slot.say(Said::Data(chunk)),
                Ok(None) => return slot.say(Said::Done(*outgoing.hasher.finalize().as_bytes())),
                Err(error) => return slot.say(why(path, "read", &error)),
            },
            Next::Ask(_) => return slot.say(misplaced()),
        }
    }
}

fn why(path: &GuestPath, done: &str, error: &io::Error) -> Said {
    let text = format!("{} in the guest cannot be {done}: {error}", path.as_str());
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            refusal(RefusalKind::NoSpace, format!("{text}; nothing of it is left"))
        }
        ErrorKind::NotFound
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::InvalidInput => refusal(RefusalKind::NotFound, text),
        _ => failed(text),
    }
}

/// A file that is not whole yet. It goes when it is dropped before that.
struct Incoming {
    temporary: PathBuf,
    target: PathBuf,
    to: File,
    file: access::File,
    taken: u64,
    hasher: blake3::Hasher,
    is_whole: bool,
}

impl Incoming {
    fn begin(target: &Path, file: access::File) -> io::Result<Self> {
        if target.is_dir() {
            return Err(ErrorKind::IsADirectory.into());
        }
        let temporary = beside(target)?;
        // Nobody else reads it before its mode is known to be right, and nothing that lies there is followed.
        let to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let hasher = blake3::Hasher::new();
        Ok(Self { temporary, target: target.to_owned(), to, file, taken: 0, hasher, is_whole: false })
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.taken += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.taken > self.file.bytes {
            return Err(io::Error::other("more bytes came than were announced"));
        }
        self.hasher.update(bytes);
        self.to.write_all(bytes)
    }

    fn finish(&mut self, digest: Digest) -> io::Result<()> {
        if self.taken != self.file.bytes {
            return Err(io::Error::other("fewer bytes came than were announced"));
        }
        if *self.hasher.finalize().as_bytes() != digest {
            return Err(io::Error::other("what arrived is not what was sent: the digests differ"));
        }
        self.to.set_permissions(Permissions::from_mode(self.file.mode & MODE_BITS))?;
        self.to.sync_all()?;
        fs::rename(&self.temporary, &self.target)?;
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

/// A name in the same folder that is free.
fn beside(target: &Path) -> io::Result<PathBuf> {
    let folder = target.parent().ok_or(ErrorKind::InvalidInput)?;
    let free = |number: &u32| !fs::exists(folder.join(temporary_name(*number))).unwrap_or(true);
    fs::metadata(folder)?;
    let number =
        (0..10_000).find(free).ok_or_else(|| io::Error::other("its folder is full of half files"))?;
    Ok(folder.join(temporary_name(number)))
}

fn temporary_name(number: u32) -> String {
    format!(".unasnap-put-{number}")
}

struct Outgoing {
    from: File,
    file: access::File,
    left: u64,
    hasher: blake3::Hasher,
}

impl Outgoing {
    fn begin(path: &Path) -> io::Result<Self> {
        // A pipe must not be waited for, nor a terminal become ours.
        let from =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
        let found = from.metadata()?;
        if !found.is_file() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "it is no ordinary file"));
        }
        let file = access::File { mode: found.permissions().mode() & MODE_BITS, bytes: found.len() };
        Ok(Self { from, file, left: found.len(), hasher: blake3::Hasher::new() })
    }

    /// `None` at the end.
    fn next(&mut self, room: usize) -> io::Result<Option<Chunk>> {
        if self.left == 0 {
            return Ok(None);
        }
        let room = room.clamp(1, CHUNK_BYTES).min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let mut bytes = vec![0; room];
        let count = self.from.read(&mut bytes)?;
        if count == 0 {
            return Err(io::Error::other("it became shorter while it was read"));
        }
        bytes.truncate(count);
        self.left -= u64::try_from(count).unwrap_or(self.left);
        self.hasher.update(&bytes);
        Chunk::try_from(bytes).map(Some).map_err(io::Error::other)
    }
}

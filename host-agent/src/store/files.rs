//! Files that are either there, whole and durable, or not there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use unasnap_fault_points::{after, around, before};

/// Flushes a folder: names made, changed or removed in it survive a crash of the host.
///
/// # Errors
/// What the file system says.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    sync(folder)
}

/// Flushes a file or folder.
///
/// # Errors
/// What the file system says.
pub fn sync(path: &Path) -> io::Result<()> {
    around("file", "sync", || File::open(path)?.sync_all())
}

/// Replaces `path` with `content`: a reader, also one after a crash, sees the old text or the new one.
///
/// # Errors
/// What the file system says; `path` is then as before.
pub fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    let mut file = File::create(temporary)?;
    let mut write = || {
        before("file", "write")?;
        file.write_all(content)?;
        file.sync_all()?;
        after("file", "write")
    };
    let written = write();
    if let Err(error) = written.and_then(|()| fs::rename(temporary, path)) {
        remove_if_there(temporary)?;
        return Err(error);
    }
    sync_folder(folder)
}

/// Deletes a file; success when there is none.
///
/// # Errors
/// What the file system says.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    around("file", "remove", || match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    })
}

/// Deletes a folder with all that is in it, durably; success when there is none.
///
/// # Errors
/// What the file system says; some of it may be gone then.
pub fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder(folder.parent().unwrap_or(Path::new("/"))),
    }
}

/// Makes `to` the same file as `from`, or a copy of it where that cannot be (another file system).
///
/// # Errors
/// What the file system says.
pub fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    around("file", "link", || match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => fs::copy(from, to).map(drop),
        other => other,
    })
}

/// BLAKE3 of a file's content, 64 hex digits.
///
/// # Errors
/// What the file system says.
pub fn digest(path: &Path) -> io::Result<String> {
    around("file", "digest", || {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(path)?)?;
        Ok(hasher.finalize().to_hex().to_string())
    })
}

//! Files into which guests write without end: kept small, or one guest fills the disk on which all of them are saved.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::interval;

/// Size from which a console begins anew; what was in it goes to `console.log.old`.
const MAX_BYTES: u64 = 16 << 20;
/// Time between two looks. An emulated serial port carries some megabytes in it.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Looks after the consoles of all VMs below `vms`, for ever.
pub(super) async fn keep_small(vms: PathBuf) {
    let mut tick = interval(LOOK_EVERY);
    loop {
        tick.tick().await;
        for entry in fs::read_dir(&vms).into_iter().flatten().flatten() {
            let console = entry.path().join("console.log");
            if let Err(error) = begin_anew(&console) {
                tracing::warn!("{} cannot be kept small: {error}", console.display());
            }
        }
    }
}

/// QEMU keeps the file open to append to it, so it cannot be renamed; what is written between the copy and the cut is
/// lost.
fn begin_anew(console: &Path) -> io::Result<()> {
    match fs::metadata(console) {
        Ok(data) if data.len() > MAX_BYTES => {
            // Only the end of what a fast guest has written: the copy is bounded, too.
            keep_end(console, data.len())?;
            File::options().write(true).open(console)?.set_len(0)
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn keep_end(console: &Path, length: u64) -> io::Result<()> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut from = File::open(console)?;
    from.seek(SeekFrom::Start(length - MAX_BYTES))?;
    let mut to = File::create(console.with_extension("log.old"))?;
    io::copy(&mut from.take(MAX_BYTES), &mut to).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_console_that_grows_begins_anew_and_its_end_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        begin_anew(&path).unwrap();
        // As QEMU does.
        let mut guest = File::options().create(true).append(true).open(&path).unwrap();
        guest.write_all(b"boot\n").unwrap();
        begin_anew(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"boot\n");
        let flood = [vec![b'a'; usize::try_from(2 * MAX_BYTES).unwrap()], b"end\n".to_vec()].concat();
        guest.write_all(&flood).unwrap();
        begin_anew(&path).unwrap();
        guest.write_all(b"next\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"next\n");
        let old = fs::read(folder.path().join("console.log.old")).unwrap();
        assert!(old.len() as u64 == MAX_BYTES && old.ends_with(b"aend\n"));
    }
}

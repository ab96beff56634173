//! A number on a disk that follows the one in RAM, so that a disk that belongs to another instant is noticed.
//!
//! Every [`INTERVAL`] the number is read back and must be the one last written; then the next one is written. Reads and
//! writes go past the page cache: the cache is RAM and would agree with itself whatever the disk holds.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::meter::announce;

/// Between two writes.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// Writes between two lines on the console.
const REPORT_EVERY: u64 = 50;

/// Direct reads and writes must be aligned to the disk's blocks, which are at most this large.
#[repr(align(4096))]
struct Block([u8; 4096]);

/// Opens a file or a whole disk past the page cache and writes the number 0.
///
/// # Errors
/// It cannot be opened or written.
pub fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_DIRECT);
    let file = options.open(path).with_context(|| format!("opening {}", path.display()))?;
    write(&file, 0)?;
    Ok(file)
}

/// Counts for ever, from the number 0 that [`open`] wrote.
///
/// # Errors
/// The first number that is not the one last written.
pub fn count(file: &File) -> Result<()> {
    for sequence in 0.. {
        step(file, sequence)?;
        if sequence % REPORT_EVERY == 0 {
            announce("DISK-PROGRESS", &json!({"sequence": sequence}));
        }
        std::thread::sleep(INTERVAL);
    }
    Ok(())
}

/// Checks that the disk holds `sequence` and writes the next number.
fn step(file: &File, sequence: u64) -> Result<()> {
    let mut block = Block([0; 4096]);
    file.read_exact_at(&mut block.0, 0).context("reading the number back")?;
    let (number, rest) = block.0.split_at(8);
    let found = u64::from_le_bytes(number.try_into().context("number")?);
    if found != sequence || rest.iter().any(|byte| *byte != number[0]) {
        bail!(
            "the disk holds number {found}, but {sequence} was written: the disk is not of this RAM's instant"
        );
    }
    write(file, sequence + 1)
}

fn write(file: &File, sequence: u64) -> Result<()> {
    let mut block = Block([sequence.to_le_bytes()[0]; 4096]);
    block.0[..8].copy_from_slice(&sequence.to_le_bytes());
    file.write_all_at(&block.0, 0).context("writing the number")?;
    file.sync_data().context("flushing the disk")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_of_another_instant_is_noticed() {
        let path = std::env::temp_dir().join(format!("unasnap-disk-test-{}", std::process::id()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        write(&file, 0).unwrap();
        (0..300).for_each(|sequence| step(&file, sequence).unwrap());
        write(&file, 299).unwrap();
        let error = step(&file, 300).unwrap_err();
        assert!(error.to_string().contains("holds number 299, but 300"), "{error}");
    }
}

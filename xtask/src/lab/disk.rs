//! A small disk that can fill up: a file system in memory where a host keeps its snapshots.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;

use crate::interrupt::{self, OnInterrupt};

/// Name of the file that fills it up.
const FILLER: &str = ".filler";

/// The mounted disk; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
    _on_interrupt: OnInterrupt,
}

impl SmallDisk {
    /// Mounts `megabytes` at a folder, which is made.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn mount(at: &Path, megabytes: u32) -> Result<Self> {
        std::fs::create_dir_all(at).with_context(|| format!("making {}", at.display()))?;
        let for_interrupt = at.to_owned();
        let on_interrupt = interrupt::begin().register(move || unmount(&for_interrupt));
        let options = format!("size={megabytes}m");
        mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .with_context(|| format!("mounting a disk at {}", at.display()))?;
        Ok(Self { at: at.to_owned(), _on_interrupt: on_interrupt })
    }

    /// Fills it up but for so many bytes (in whole pages).
    ///
    /// # Errors
    /// It cannot be written.
    pub fn fill(&self, left: u64) -> Result<()> {
        let free = statvfs(&self.at).context("asking for free space")?;
        let mut bytes = (free.blocks_available() * free.fragment_size()).saturating_sub(left);
        let path = self.at.join(FILLER);
        let mut file = File::create(&path).with_context(|| format!("making {}", path.display()))?;
        let zeros = vec![0; 1 << 20];
        while bytes > 0 {
            let part = bytes.min(1 << 20);
            // Somebody else may have taken the rest meanwhile.
            if file.write_all(&zeros[..usize::try_from(part).unwrap_or(0)]).is_err() {
                break;
            }
            bytes -= part;
        }
        Ok(())
    }

    /// Makes room again.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn free(&self) -> Result<()> {
        match std::fs::remove_file(self.at.join(FILLER)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("making room"),
            _ => Ok(()),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(&self.at);
    }
}

/// Lazily: somebody who still has a file open keeps nobody waiting.
fn unmount(at: &Path) {
    if let Err(error) = umount2(at, MntFlags::MNT_DETACH) {
        eprintln!("warning: unmounting {}: {error}", at.display());
    }
}

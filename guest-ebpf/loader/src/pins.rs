//! The directory on the BPF file system where maps and links are pinned.
//!
//! ```text
//! /sys/fs/bpf/unasnap/STATE ...          in a guest: one per map
//! /sys/fs/bpf/unasnap/link-egress-2      one per hook and interface index
//! /sys/fs/bpf/unasnap-host/AGENT/VM/...  on a host: the same for each VM
//! ```
//!
//! Interfaces go by index, since the file system reserves names with dots (`eth0.5`), and a renamed
//! interface keeps its index.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use aya::maps::MapInfo;
use log::warn;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use unasnap_guest_ebpf::layout::{self, MapShape};

/// Where the BPF file system is.
pub const BPF_FS: &str = "/sys/fs/bpf";
const GUEST_DIRECTORY: &str = "/sys/fs/bpf/unasnap";

/// The pin directory; it exists once [`Pins::prepare`] has been called.
#[derive(Debug, Clone)]
pub struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// The directory of a guest.
    #[must_use]
    pub fn of_guest() -> Self {
        Self { directory: GUEST_DIRECTORY.into() }
    }

    /// Any directory below [`BPF_FS`]; no part of its path may have a dot.
    #[must_use]
    pub fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Mounts the BPF file system if nobody has and makes the directory.
    ///
    /// # Errors
    /// The file system cannot be mounted (not root, or a kernel without BPF) or written to.
    pub fn prepare(&self) -> Result<()> {
        let mounted = statfs(BPF_FS).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
        if !mounted {
            mount(Some("bpf"), BPF_FS, Some("bpf"), MsFlags::empty(), None::<&str>).with_context(|| {
                format!("cannot mount the BPF file system on {BPF_FS}: run as root, on Linux 5.12 or later")
            })?;
        }
        fs::create_dir_all(&self.directory)
            .with_context(|| format!("cannot make {}", self.directory.display()))
    }

    /// The directory of all pins.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where a map is pinned.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Where the link of a hook (`egress`, `ingress`) on an interface is pinned.
    #[must_use]
    pub fn link(&self, hook: &str, interface_index: u32) -> PathBuf {
        self.directory().join(format!("link-{hook}-{interface_index}"))
    }

    /// All pinned links.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn links(&self) -> io::Result<Vec<PathBuf>> {
        let mut links = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("link-") {
                links.push(entry.path());
            }
        }
        Ok(links)
    }

    /// Removes pinned maps of another shape than this build's, left by another version: the programs
    /// could not be loaded against them. Programs of that version keep using theirs until replaced.
    pub fn discard_foreign_maps(&self) {
        let foreign = layout::MAPS.iter().any(|shape| {
            let path = self.map(shape.name);
            path.exists() && !MapInfo::from_pin(&path).is_ok_and(|info| fits(&info, shape))
        });
        if foreign {
            warn!("the pinned maps are of another version of this agent; starting with new ones");
            for shape in &layout::MAPS {
                // One that is not there needs no removing.
                let _ = fs::remove_file(self.map(shape.name));
            }
        }
    }

    /// Removes everything, which detaches every pinned link and, once nobody holds them open, frees the maps.
    ///
    /// # Errors
    /// The directory cannot be read or a pin not removed.
    pub fn remove_all(&self) -> Result<()> {
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.directory.display()))
            }
            _ => Ok(()),
        }
    }
}

fn fits(found: &MapInfo, expected: &MapShape) -> bool {
    found.key_size() == expected.key_bytes
        && found.value_size() == expected.value_bytes
        && found.max_entries() == expected.entries
}

/// Names of the folders in a directory of the BPF file system; none when there is no such directory.
///
/// # Errors
/// It cannot be read.
pub fn subdirectories(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

//! The directory on the BPF file system where maps and links are pinned.
//!
//! ```text
//! /sys/fs/bpf/unasnap/STATE ...          one per map
//! /sys/fs/bpf/unasnap/link-egress-2      one per hook and interface index
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

const BPF_FS: &str = "/sys/fs/bpf";
const DIRECTORY: &str = "/sys/fs/bpf/unasnap";

/// The pin directory; it exists once [`Pins::prepare`] has been called.
#[derive(Debug, Clone, Copy)]
pub struct Pins;

impl Pins {
    /// Mounts the BPF file system if nobody has and makes the directory.
    ///
    /// # Errors
    /// The file system cannot be mounted (not root, or a kernel without BPF) or written to.
    pub fn prepare() -> Result<Self> {
        let mounted = statfs(BPF_FS).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
        if !mounted {
            mount(Some("bpf"), BPF_FS, Some("bpf"), MsFlags::empty(), None::<&str>).with_context(|| {
                format!("cannot mount the BPF file system on {BPF_FS}: run as root, on Linux 5.12 or later")
            })?;
        }
        fs::create_dir_all(DIRECTORY).with_context(|| format!("cannot make {DIRECTORY}"))?;
        Ok(Self)
    }

    /// The directory of all pins.
    #[must_use]
    pub fn directory(self) -> &'static Path {
        Path::new(DIRECTORY)
    }

    /// Where a map is pinned.
    #[must_use]
    pub fn map(self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Where the link of a hook (`egress`, `ingress`) on an interface is pinned.
    #[must_use]
    pub fn link(self, hook: &str, interface_index: u32) -> PathBuf {
        self.directory().join(format!("link-{hook}-{interface_index}"))
    }

    /// All pinned links.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn links(self) -> io::Result<Vec<PathBuf>> {
        let mut links = Vec::new();
        for entry in fs::read_dir(DIRECTORY)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("link-") {
                links.push(entry.path());
            }
        }
        Ok(links)
    }

    /// Removes pinned maps of another shape than this build's, left by another version: the programs
    /// could not be loaded against them. Programs of that version keep using theirs until replaced.
    pub fn discard_foreign_maps(self) {
        let foreign = layout::MAPS.iter().any(|shape| {
            let path = self.map(shape.name);
            path.exists() && !MapInfo::from_pin(&path).is_ok_and(|info| fits(&info, shape))
        });
        if foreign {
            warn!("the pinned maps are of another version of unasnap-guest; starting with new ones");
            for shape in &layout::MAPS {
                // One that is not there needs no removing.
                let _ = fs::remove_file(self.map(shape.name));
            }
        }
    }

    /// Removes everything, which detaches every pinned link and frees the maps.
    ///
    /// # Errors
    /// The directory cannot be read or a pin not removed.
    pub fn remove_all() -> Result<()> {
        match fs::remove_dir_all(DIRECTORY) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {DIRECTORY}"))
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

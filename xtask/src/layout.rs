//! Where everything lies. The only place that knows.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The target of the static guest programs.
pub const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Directories of this checkout.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The workspace.
    pub root: PathBuf,
    /// Cargo's target directory, `CARGO_TARGET_DIR` heeded: what this build makes.
    pub target: PathBuf,
    /// bpf-linker and its LLVM; the guest agent's build script looks here, whatever the target directory.
    pub tools: PathBuf,
    /// Downloaded guest kernel and busybox; as setup, shared by all target directories.
    pub downloads: PathBuf,
}

impl Layout {
    /// The checkout that this program was built from.
    ///
    /// # Errors
    /// The current directory cannot be read.
    pub fn find() -> Result<Self> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = package.parent().context("xtask lies in the workspace's directory")?.to_owned();
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        Ok(Self {
            target: std::path::absolute(target).context("current directory")?,
            tools: root.join("target/tools"),
            downloads: root.join("target/guest"),
            root,
        })
    }

    /// The guests' kernel (ELF with a PVH entry) and modules.
    pub fn kernel(&self) -> PathBuf {
        self.downloads.join("kernel")
    }

    /// The guests' static busybox.
    pub fn busybox(&self) -> PathBuf {
        self.downloads.join("busybox")
    }

    /// The VirtualBox of the tests, with a Debian of its own.
    pub fn virtualbox(&self) -> PathBuf {
        self.downloads.join("virtualbox")
    }

    /// The Debian that tests make images of.
    pub fn debian(&self) -> PathBuf {
        self.downloads.join("debian")
    }

    /// The guests' initramfs, made by `build`.
    pub fn initramfs(&self) -> PathBuf {
        self.target.join("guest/initramfs.cpio")
    }

    /// All four programs side by side, made by `build`.
    pub fn programs(&self) -> PathBuf {
        self.target.join("dist")
    }
}

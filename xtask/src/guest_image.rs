//! The guests' initramfs: busybox, kernel modules, the two static programs, and `/init`.

mod cpio;

use std::path::Path;

use anyhow::{Context, Result};

use crate::build::Artifacts;
use crate::layout::Layout;
use cpio::Archive;

const INIT: &str = include_str!("guest_image/init.sh");

/// Writes the initramfs, not compressed: guests start faster without unpacking.
///
/// # Errors
/// A file that belongs inside cannot be read.
pub fn write(layout: &Layout, artifacts: &Artifacts) -> Result<()> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "disk", "etc", "lib", "lib/modules", "proc", "run", "sys", "tmp"] {
        archive.directory(directory);
    }
    // The kernel opens it before /init has mounted anything.
    archive.character_device("dev/console", 5, 1);
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("bin/busybox", 0o755, &read(&layout.busybox())?);
    archive.link("bin/sh", "busybox");
    for program in ["unasnap-guest", "unasnap-ring"] {
        archive.file(&format!("bin/{program}"), 0o755, &read(&artifacts.programs.join(program))?);
    }
    let modules = layout.kernel().join("modules");
    let order = std::fs::read_to_string(modules.join("order")).context("reading the order of the modules")?;
    for name in order.lines() {
        archive.file(&format!("lib/modules/{name}"), 0o644, &read(&modules.join(name))?);
    }
    archive.file("lib/modules/order", 0o644, order.as_bytes());
    let to = layout.initramfs();
    std::fs::create_dir_all(to.parent().context("initramfs path")?)
        .context("making the initramfs's directory")?;
    let new = to.with_extension("new");
    std::fs::write(&new, archive.finish()).with_context(|| format!("writing {}", new.display()))?;
    std::fs::rename(&new, &to).with_context(|| format!("writing {}", to.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

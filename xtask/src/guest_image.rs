//! The guests' initramfs: busybox, kernel modules, the two static programs, and `/init`.

mod cpio;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::build::Artifacts;
use crate::layout::Layout;
use crate::process::text;
use crate::setup::modules;
use cpio::Archive;

/// Debian's iptables on its own kernel tables, under the name by which it is one program for all commands.
const IPTABLES: &str = "/usr/sbin/xtables-legacy-multi";

const QUICK: Duration = Duration::from_secs(30);

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
    add_modules(&mut archive, layout, modules::BOOT)?;
    replace(&layout.initramfs(), &archive.finish())
}

/// Writes the initramfs with iptables in addition, for guests that are coloured the published way, and returns its path. The
/// program is this machine's, with the libraries that it loads.
///
/// # Errors
/// This machine has no iptables, or a file cannot be read.
pub fn write_with_iptables(layout: &Layout) -> Result<PathBuf> {
    // Archives follow one another; the kernel unpacks them all.
    let mut archive = Archive::default();
    for directory in
        ["lib64", "usr", "usr/lib", "usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/xtables"]
    {
        archive.directory(directory);
    }
    archive.file("bin/iptables", 0o755, &read(Path::new(IPTABLES))?);
    let listed = text("ldd", Command::new("ldd").arg(IPTABLES), QUICK)?;
    for library in listed.split_whitespace().filter(|word| word.starts_with("/lib")) {
        let place =
            library.trim_start_matches('/').replace("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu");
        archive.file(&place, 0o755, &read(Path::new(library))?);
    }
    for extension in ["DSCP", "dscp", "standard"] {
        let library = format!("usr/lib/x86_64-linux-gnu/xtables/libxt_{extension}.so");
        archive.file(&library, 0o644, &read(&Path::new("/").join(&library))?);
    }
    add_modules(&mut archive, layout, modules::IPTABLES)?;
    let to = layout.initramfs().with_file_name("initramfs-iptables.cpio");
    replace(&to, &[read(&layout.initramfs())?, archive.finish()].concat())?;
    Ok(to)
}

/// The modules of a list, and the list.
fn add_modules(archive: &mut Archive, layout: &Layout, list: &str) -> Result<()> {
    let modules = layout.kernel().join("modules");
    let order = std::fs::read_to_string(modules.join(list)).context("reading a list of modules")?;
    for name in order.lines() {
        archive.file(&format!("lib/modules/{name}"), 0o644, &read(&modules.join(name))?);
    }
    archive.file(&format!("lib/modules/{list}"), 0o644, order.as_bytes());
    Ok(())
}

fn replace(to: &Path, content: &[u8]) -> Result<()> {
    std::fs::create_dir_all(to.parent().context("initramfs path")?)
        .context("making the initramfs's directory")?;
    let new = to.with_extension("new");
    std::fs::write(&new, content).with_context(|| format!("writing {}", new.display()))?;
    std::fs::rename(&new, to).with_context(|| format!("writing {}", to.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

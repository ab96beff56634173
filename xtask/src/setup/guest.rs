//! The guests' kernel, its modules, and busybox: downloaded from Debian, unpacked, never installed.
//!
//! `target/guest/kernel/` holds `vmlinux` (ELF with a PVH entry: QEMU starts it without boot loader and without
//! unpacking, a second faster than the compressed image), `release`, and `modules/*.ko` with `modules/order`, the names in the
//! order in which they can be loaded.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::apt::Apt;
use super::{bzimage, modules};
use crate::layout::Layout;
use crate::process::run;

/// The long-term series that the guests run; it has TCX.
const SERIES: &str = r"^linux-image-6\.12\.[^-]*-cloud-amd64$";

const QUICK: Duration = Duration::from_secs(120);

/// Whether a complete kernel is here: it is renamed into place when it is.
pub fn has_kernel(layout: &Layout) -> bool {
    // A kernel that was unpacked before the last list was known lacks its modules.
    layout.kernel().join("vmlinux").exists()
        && layout.kernel().join("modules").join(modules::IPTABLES).exists()
}

/// Downloads the newest kernel of the series.
///
/// # Errors
/// None is found, or it cannot be unpacked.
pub fn install_kernel(layout: &Layout, apt: &Apt) -> Result<()> {
    let names = apt.search(SERIES)?;
    let newest = names.into_iter().max_by_key(|name| numbers(name));
    let package = newest
        .context("the mirrors have no 6.12 cloud kernel: add the release's backports to apt's sources")?;
    eprintln!("setup: guest kernel {package}");
    let unpacked = fresh(layout.downloads.join("unpacked"))?;
    apt.unpack(&package, &unpacked)?;
    let release = package.strip_prefix("linux-image-").unwrap_or(&package);
    let kernel = fresh(layout.downloads.join("kernel.new"))?;
    let image = std::fs::read(unpacked.join("boot").join(format!("vmlinuz-{release}")))
        .context("reading the kernel")?;
    decompress(bzimage::payload(&image)?, &kernel.join("vmlinux"))?;
    let tree = unpacked.join("lib/modules").join(release).join("kernel");
    modules::collect(&tree, &kernel.join("modules"))?;
    std::fs::write(kernel.join("release"), release).context("writing the kernel's release")?;
    if layout.kernel().exists() {
        std::fs::remove_dir_all(layout.kernel()).context("removing the old kernel")?;
    }
    std::fs::rename(&kernel, layout.kernel()).context("putting the kernel in its place")?;
    std::fs::remove_dir_all(&unpacked).context("removing the unpacked package")
}

/// Downloads the static busybox.
///
/// # Errors
/// It cannot be downloaded or unpacked.
pub fn install_busybox(layout: &Layout, apt: &Apt) -> Result<()> {
    let unpacked = fresh(layout.downloads.join("unpacked"))?;
    apt.unpack("busybox-static", &unpacked)?;
    let program =
        ["bin/busybox", "usr/bin/busybox"].map(|path| unpacked.join(path)).into_iter().find(|p| p.exists());
    let program = program.context("the package busybox-static has no busybox")?;
    std::fs::rename(program, layout.busybox()).context("putting busybox in its place")?;
    std::fs::remove_dir_all(&unpacked).context("removing the unpacked package")
}

fn decompress(payload: bzimage::Payload, to: &Path) -> Result<()> {
    let packed = to.with_extension("packed");
    std::fs::write(&packed, payload.bytes).context("writing the kernel's payload")?;
    let file = std::fs::File::create(to).with_context(|| format!("writing {}", to.display()))?;
    let mut command = Command::new(payload.program);
    command.arg("-dc").arg(&packed).stdout(file);
    let status = crate::process::Group::spawn(payload.program, &mut command)?.wait(QUICK)?;
    anyhow::ensure!(status.success(), "{} could not unpack the kernel: {status}", payload.program);
    std::fs::remove_file(&packed).context("removing the kernel's payload")
}

/// The numbers in a name: they order Debian's kernel versions, `6.12.90+deb12.1` after `6.12.90+deb12`.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

fn fresh(directory: PathBuf) -> Result<PathBuf> {
    if directory.exists() {
        std::fs::remove_dir_all(&directory).with_context(|| format!("emptying {}", directory.display()))?;
    }
    std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    Ok(directory)
}

/// Unpacks an `.xz` or `.zst` file; a plain file is copied.
pub(super) fn unpack_file(from: &Path, to: &Path) -> Result<()> {
    let program = match from.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => {
            return std::fs::copy(from, to)
                .map(|_| ())
                .with_context(|| format!("copying {}", from.display()));
        }
    };
    let script = format!("{program} -dc \"$1\" >\"$2\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh"]).arg(from).arg(to);
    run(&format!("unpacking {}", from.display()), &mut command, QUICK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_ordered_by_number_and_not_by_letter() {
        let names = ["6.12.95+deb12", "6.12.117+deb12", "6.12.90+deb12.1", "6.12.90+deb12"];
        let newest = names.iter().max_by_key(|name| numbers(name)).unwrap();
        assert_eq!(*newest, "6.12.117+deb12");
        assert!(numbers(names[2]) > numbers(names[3]));
    }
}

//! `cargo xtask setup`: finds out what this machine lacks, says so, and installs it.
//!
//! Nothing is done twice, and nothing touches the network when nothing is missing. What can be kept out of the system
//! goes below `target/`: bpf-linker, the guests' kernel, busybox. The rest are Debian packages.

mod apt;
mod bzimage;
pub mod debian;
mod ebpf;
mod guest;
pub mod modules;
pub mod virtualbox;

use anyhow::{Result, bail};

use crate::layout::Layout;

/// One thing that is missing, in the order in which it must be installed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Missing {
    /// Debian packages from the release's own suites.
    Packages(Vec<&'static str>),
    /// A QEMU that can copy RAM of a running guest and hold the copy (8.2), and was tested: 10 or newer.
    Qemu,
    /// Debian's compiler as a rustup toolchain.
    Toolchain,
    /// bpf-linker, against the LLVM of the compiler that builds the TC programs.
    BpfLinker,
    /// The guests' kernel and its modules.
    Kernel,
    /// The guests' busybox.
    Busybox,
}

impl Missing {
    /// What is missing and what setup does about it.
    fn describe(&self) -> String {
        match self {
            Self::Packages(names) => format!("packages: apt-get install {}", names.join(" ")),
            Self::Qemu => {
                "QEMU 10 or newer: apt-get install qemu-system-x86 qemu-utils, from the release's backports \
                           (added as a source) if the release itself is older"
                    .into()
            }
            Self::Toolchain => {
                format!("Debian's Rust as a toolchain: rustup toolchain link {} /usr", ebpf::DEBIAN)
            }
            Self::BpfLinker => "bpf-linker: cargo install into target/tools (about a minute)".into(),
            Self::Kernel => {
                "guest kernel: newest Debian 6.12 cloud kernel, unpacked into target/guest".into()
            }
            Self::Busybox => "guest busybox: Debian's busybox-static, unpacked into target/guest".into(),
        }
    }

    fn needs_apt(&self) -> bool {
        !matches!(self, Self::Toolchain | Self::BpfLinker)
    }

    fn install(&self, layout: &Layout, apt: &apt::Apt) -> Result<()> {
        match self {
            Self::Packages(names) => apt.install(names, None),
            Self::Qemu => apt.install_qemu(),
            Self::Toolchain => ebpf::link_toolchain(),
            Self::BpfLinker => ebpf::install_linker(layout),
            Self::Kernel => guest::install_kernel(layout, apt),
            Self::Busybox => guest::install_busybox(layout, apt),
        }
    }
}

fn probe(layout: &Layout) -> Result<Vec<Missing>> {
    let mut missing = Vec::new();
    let packages = [apt::missing_packages(), ebpf::missing_packages()].concat();
    if !packages.is_empty() {
        missing.push(Missing::Packages(packages));
    }
    if !apt::qemu_is_new_enough() {
        missing.push(Missing::Qemu);
    }
    if ebpf::lacks_toolchain() {
        missing.push(Missing::Toolchain);
    }
    if ebpf::lacks_linker(layout) {
        missing.push(Missing::BpfLinker);
    }
    if !guest::has_kernel(layout) {
        missing.push(Missing::Kernel);
    }
    if !layout.busybox().exists() {
        missing.push(Missing::Busybox);
    }
    Ok(missing)
}

/// Says what is missing and, unless this is a dry run, installs it.
///
/// # Errors
/// What could not be installed, and why.
pub fn run(layout: &Layout, dry_run: bool) -> Result<()> {
    let missing = probe(layout)?;
    if missing.is_empty() {
        eprintln!("setup: nothing is missing");
        return Ok(());
    }
    for (number, item) in (1..).zip(&missing) {
        eprintln!("setup: missing {number}/{}: {}", missing.len(), item.describe());
    }
    if dry_run {
        return Ok(());
    }
    let apt = apt::Apt::new(layout)?;
    if missing.iter().any(Missing::needs_apt) {
        apt.update()?;
    }
    for (number, item) in (1..).zip(&missing) {
        eprintln!("setup: installing {number}/{}: {}", missing.len(), item.describe());
        item.install(layout, &apt)?;
    }
    check(layout)
}

/// Fails with one line that says which command to run, if anything is missing.
///
/// # Errors
/// What is missing.
pub fn check(layout: &Layout) -> Result<()> {
    let missing = probe(layout)?;
    if !missing.is_empty() {
        let list: Vec<_> = missing.iter().map(Missing::describe).collect();
        bail!("missing: {}. Run `cargo xtask setup`", list.join("; "));
    }
    Ok(())
}

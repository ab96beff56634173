//! The toolchain that compiles the TC programs.
//!
//! The guest agent's build script takes the toolchain `nightly` if that has the standard library's source, else
//! Debian's compiler, which ships a compiled `core` for the BPF target. bpf-linker reads what that compiler wrote, so it
//! must be built against an LLVM that is as new; for Debian's compiler it is that compiler's own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::layout::Layout;
use crate::process::{output, run, text};

/// Debian's compiler as the build script knows it.
pub const DEBIAN: &str = "debian-web";

/// The linker's version that was tried with both toolchains.
const LINKER_VERSION: &str = "0.13.0";

/// Where Debian puts the compiled `core`.
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";

const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

const QUICK: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(1800);

/// Whether an ordinary rustup nightly can do it.
fn has_nightly() -> bool {
    let mut command = Command::new("rustup");
    let sysroot = text("rustup", command.args(["run", "nightly", "rustc", "--print", "sysroot"]), QUICK);
    sysroot.is_ok_and(|path| Path::new(path.trim()).join("lib/rustlib/src/rust/library/core").exists())
}

/// Packages that are needed because there is no such nightly.
pub fn missing_packages() -> Vec<&'static str> {
    if Path::new(DEBIAN_CORE).exists() || has_nightly() { Vec::new() } else { DEBIAN_PACKAGES.into() }
}

/// Whether Debian's compiler is to be used and rustup does not know it.
pub fn lacks_toolchain() -> bool {
    let mut command = Command::new("rustup");
    let known = output("rustup", command.args(["run", DEBIAN, "rustc", "--version"]), QUICK);
    !known.is_ok_and(|output| output.status.success()) && !has_nightly()
}

/// Makes Debian's compiler a toolchain.
///
/// # Errors
/// rustup is missing or refuses.
pub fn link_toolchain() -> Result<()> {
    run("rustup toolchain link", Command::new("rustup").args(["toolchain", "link", DEBIAN, "/usr"]), QUICK)
        .context("Rust must be installed through rustup")
}

/// Whether bpf-linker is missing or cannot run, as when the compiler's LLVM was replaced by a newer one.
pub fn lacks_linker(layout: &Layout) -> bool {
    let own = layout.tools.join("bin/bpf-linker");
    let program = if own.exists() { own } else { PathBuf::from("bpf-linker") };
    let version = output("bpf-linker", Command::new(program).arg("--version"), QUICK);
    let runs = version.is_ok_and(|output| output.status.success());
    let stale = built_for(layout).is_some_and(|built| llvm_version().is_ok_and(|now| now != built));
    !runs || stale
}

/// The LLVM version that our own bpf-linker was built for, from the link that stood beside it.
fn built_for(layout: &Layout) -> Option<String> {
    let library = std::fs::read_link(layout.tools.join("llvm/lib/libLLVM.so")).ok()?;
    Some(library.file_name()?.to_str()?.strip_prefix("libLLVM.so.")?.to_owned())
}

/// `major.minor` of the LLVM in Debian's compiler.
fn llvm_version() -> Result<String> {
    let about = text("rustc", Command::new("/usr/bin/rustc").arg("-vV"), QUICK)?;
    let version = about.lines().find_map(|line| line.strip_prefix("LLVM version: "));
    let mut parts = version.context("/usr/bin/rustc -vV names no LLVM version")?.split('.');
    match (parts.next(), parts.next()) {
        (Some(major), Some(minor)) => Ok(format!("{major}.{minor}")),
        _ => bail!("/usr/bin/rustc -vV: unexpected LLVM version {version:?}"),
    }
}

/// Builds bpf-linker for the toolchain that the build script will take.
///
/// # Errors
/// cargo cannot build it.
pub fn install_linker(layout: &Layout) -> Result<()> {
    let mut command = Command::new("cargo");
    // The environment that `cargo xtask` runs in must not reach this build.
    command.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS").current_dir(&layout.root);
    command.args([
        "install",
        "-q",
        "bpf-linker",
        "--locked",
        "--force",
        "--version",
        LINKER_VERSION,
        "--root",
    ]);
    command.arg(&layout.tools);
    command.env("CARGO_PROFILE_RELEASE_DEBUG", "0").env("CARGO_PROFILE_RELEASE_STRIP", "true");
    if !has_nightly() {
        let version = llvm_version()?;
        let prefix = link_llvm(layout, &version)?;
        let major = version.split('.').next().unwrap_or_default();
        command.env("LLVM_PREFIX", prefix).args([
            "--no-default-features",
            "--features",
            &format!("llvm-{major}"),
        ]);
    }
    run("cargo install bpf-linker", &mut command, PATIENCE)
}

/// Debian has the library without the link that a linker looks for; makes a prefix that has it.
fn link_llvm(layout: &Layout, version: &str) -> Result<PathBuf> {
    let prefix = layout.tools.join("llvm");
    let link = prefix.join("lib/libLLVM.so");
    std::fs::create_dir_all(prefix.join("lib")).context("making the LLVM prefix")?;
    if link.is_symlink() {
        std::fs::remove_file(&link).with_context(|| format!("removing {}", link.display()))?;
    }
    let library = format!("/usr/lib/x86_64-linux-gnu/libLLVM.so.{version}");
    std::os::unix::fs::symlink(&library, &link).with_context(|| format!("linking {}", link.display()))?;
    Ok(prefix)
}

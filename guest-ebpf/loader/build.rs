//! Builds the TC programs for the BPF target and leaves the object in `OUT_DIR/unasnap-tc`.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use aya_build::{Package, Toolchain};

const MISSING: &str = "the eBPF toolchain is missing: run `cargo xtask setup`";
/// Names a rustup toolchain that can build for `bpfel-unknown-none`.
const TOOLCHAIN_VARIABLE: &str = "EBPF_TOOLCHAIN";
/// Debian's compiler, which ships a `core` for the BPF target, as `cargo xtask setup` links it.
const DEBIAN: &str = "debian-web";
/// These use unstable features, which a released compiler grants by name only.
const UNSTABLE_CRATES: &str = "aya_ebpf,aya_ebpf_bindings,aya_log_ebpf,unasnap_tc";

fn main() {
    println!("cargo::rerun-if-env-changed={TOOLCHAIN_VARIABLE}");
    if let Err(error) = build() {
        println!("cargo::error={error:#}");
    }
}

fn build() -> Result<()> {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("cargo sets CARGO_MANIFEST_DIR")?);
    let programs = manifest.parent().context("this package lies in the programs' directory")?;
    let workspace = programs.parent().context("the programs' directory lies in the workspace's")?;
    put_tools_first(workspace)?;
    if !runs("bpf-linker", &["--version"]) {
        bail!(MISSING);
    }
    let toolchain = toolchain()?;
    if toolchain != "nightly" {
        set("RUSTC_BOOTSTRAP", UNSTABLE_CRATES);
    }
    // Every line of the inner cargo would be shown as a warning.
    set("CARGO_TERM_QUIET", "true");
    let package = Package {
        name: "unasnap-guest-ebpf",
        root_dir: programs.to_str().context("the workspace's path is not UTF-8")?,
        features: &["programs"],
        ..Package::default()
    };
    aya_build::build_ebpf([package], Toolchain::Custom(&toolchain))
}

/// `cargo xtask setup` installs bpf-linker below the workspace's own target directory.
fn put_tools_first(workspace: &Path) -> Result<()> {
    let tools = workspace.join("target/tools/bin");
    println!("cargo::rerun-if-changed={}", tools.join("bpf-linker").display());
    let inherited = env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    let path = env::join_paths(std::iter::once(tools).chain(env::split_paths(&inherited)))?;
    set("PATH", path);
    Ok(())
}

/// For the commands that this script starts.
fn set(variable: &str, value: impl AsRef<OsStr>) {
    // SAFETY: the build script has one thread.
    unsafe { env::set_var(variable, value) };
}

/// The toolchain that the environment names, else the first that is known to work.
fn toolchain() -> Result<String> {
    if let Ok(named) = env::var(TOOLCHAIN_VARIABLE) {
        return Ok(named);
    }
    if let Some(sysroot) = rustc("nightly", &["--print", "sysroot"])
        && sysroot.join("lib/rustlib/src/rust/library/core").exists()
    {
        return Ok("nightly".to_owned());
    }
    let target = ["--print", "target-libdir", "--target", "bpfel-unknown-none"];
    if rustc(DEBIAN, &target).is_some_and(|directory| directory.exists()) {
        return Ok(DEBIAN.to_owned());
    }
    bail!(MISSING)
}

/// The path that a toolchain's rustc prints; `None` when there is no such toolchain.
fn rustc(toolchain: &str, arguments: &[&str]) -> Option<PathBuf> {
    let output = Command::new("rustup")
        .args(["run", toolchain, "rustc"])
        .args(arguments)
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(path.trim_end()))
}

fn runs(program: &str, arguments: &[&str]) -> bool {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

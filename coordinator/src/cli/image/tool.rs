//! The programs that know images and file systems: qemu-img, debugfs and the like. Each ends with its future.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use crate::failure::{CliError, Kind, Result};

/// For what copies or reads a whole image.
pub const LONG: Duration = Duration::from_secs(3600);
/// For what looks at a few blocks.
pub const SHORT: Duration = Duration::from_secs(120);

/// Program, and the Debian package that has it.
const PACKAGES: [(&str, &str); 6] = [
    ("qemu-img", "qemu-utils"),
    ("debugfs", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("partx", "util-linux"),
    ("blkid", "util-linux"),
    ("dpkg-deb", "dpkg"),
];

/// Runs a program in `folder` to its end, however that is.
///
/// # Errors
/// It cannot be started, or takes longer than `limit`.
pub async fn output(
    folder: &Path,
    program: &str,
    arguments: &[impl AsRef<OsStr>],
    limit: Duration,
) -> Result<Output> {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    // Where users who are not root have none of them.
    path.push(":/usr/sbin:/sbin");
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).current_dir(folder).env("PATH", path).env("LC_ALL", "C");
    command.stdin(Stdio::null()).kill_on_drop(true);
    let failed = |error: std::io::Error| {
        let package = PACKAGES.iter().find(|(name, _)| *name == program);
        let package =
            package.map_or_else(String::new, |(_, package)| format!("; it is in the package {package}"));
        CliError::usage(format!("cannot run {program}: {error}{package}"))
    };
    match tokio::time::timeout(limit, command.output()).await {
        Ok(outcome) => outcome.map_err(failed),
        Err(_) => {
            let text = format!("{program} was not done after {} s; it was ended", limit.as_secs());
            Err(CliError::new(Kind::TimedOut, text))
        }
    }
}

/// The standard output of a program that succeeds.
///
/// # Errors
/// As [`output`], and when it fails; then with what it said.
pub async fn text(
    folder: &Path,
    program: &str,
    arguments: &[impl AsRef<OsStr>],
    limit: Duration,
) -> Result<String> {
    let output = output(folder, program, arguments, limit).await?;
    if !output.status.success() {
        return Err(CliError::usage(format!("{program} failed: {}", said(&output))));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a program said about its failure.
pub fn said(output: &Output) -> String {
    let words = [&output.stderr[..], &output.stdout].concat();
    let words = String::from_utf8_lossy(&words);
    let lines: Vec<_> = words.lines().map(str::trim).filter(|line| !line.is_empty()).take(8).collect();
    if lines.is_empty() { output.status.to_string() } else { lines.join("; ") }
}

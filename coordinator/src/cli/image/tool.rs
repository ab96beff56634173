//! The programs that know images and file systems: qemu-img, debugfs and the like. Each ends with its future. What they say may
//! come from an image of anybody, and so is capped.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::failure::{CliError, Kind, Result};

/// For what copies or reads a whole image.
pub const LONG: Duration = Duration::from_secs(3600);
/// For what looks at a few blocks.
pub const SHORT: Duration = Duration::from_secs(120);
/// Most that is kept of what a program writes to either of its outputs, bytes.
pub const MAX_OUTPUT: u64 = 64 << 20;

/// Program, and the Debian package that has it.
const PACKAGES: [(&str, &str); 4] =
    [("qemu-img", "qemu-utils"), ("debugfs", "e2fsprogs"), ("e2fsck", "e2fsprogs"), ("dpkg-deb", "dpkg")];

/// Runs a program in `folder` to its end, however that is. One that says more than [`MAX_OUTPUT`] finds nobody who reads on,
/// which usually ends it; what it said until then is the answer.
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
    // Else debugfs may hand what it shows to a pager.
    command.env("DEBUGFS_PAGER", "__none__");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let failed = |error: io::Error| {
        let package = PACKAGES.iter().find(|(name, _)| *name == program);
        let package =
            package.map_or_else(String::new, |(_, package)| format!("; it is in the package {package}"));
        CliError::usage(format!("cannot run {program}: {error}{package}"))
    };
    let mut child = command.spawn().map_err(failed)?;
    let (stdout, stderr) = (beginning(child.stdout.take()), beginning(child.stderr.take()));
    match tokio::time::timeout(limit, async { tokio::try_join!(child.wait(), stdout, stderr) }).await {
        Ok(ended) => {
            let (status, stdout, stderr) = ended.map_err(failed)?;
            Ok(Output { status, stdout, stderr })
        }
        Err(_) => {
            let text = format!("{program} was not done after {} s; it was ended", limit.as_secs());
            Err(CliError::new(Kind::TimedOut, text))
        }
    }
}

/// The first [`MAX_OUTPUT`] bytes. The pipe is closed then, so that a program with more to say does not wait for ever.
async fn beginning(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(MAX_OUTPUT).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_does_not_stop_talking_is_cut_off() {
        let said = output(Path::new("/"), "yes", &["and so on"], LONG).await.unwrap();
        assert_eq!(said.stdout.len() as u64, MAX_OUTPUT);
        assert!(said.stdout.starts_with(b"and so on\n") && !said.status.success());
    }
}

//! Network namespaces, and commands in them.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace, which ends with this value and the sockets made in it.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// A new one, with its loopback device up.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new() -> Result<Self> {
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("a network namespace")?;
            run("ip link set lo up")?;
            File::open("/proc/thread-self/ns/net").map(Self).context("the namespace's file")
        })
    }

    /// Runs `action` inside: sockets and processes that it makes belong to this namespace.
    ///
    /// # Errors
    /// Those of `action`, or the namespace cannot be entered.
    pub fn within<T: Send>(&self, action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_a_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
            action()
        })
    }

    /// A path by which other programs can name it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Which namespace a thread is in ends with the thread: nobody has to find back.
fn on_a_thread<T: Send>(action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| scope.spawn(action).join())
        .map_err(|_| anyhow!("a thread in a namespace panicked"))?
}

/// Runs a command line (split at blanks) and returns what it printed.
///
/// # Errors
/// It cannot be started or fails; its own words are in the error.
pub fn run(line: &str) -> Result<String> {
    feed(line, "")
}

/// The same with something to read on standard input.
///
/// # Errors
/// As [`run`].
pub fn feed(line: &str, input: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().context("an empty command")?);
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {line}"))?;
    let mut pipe = child.stdin.take().context("piped")?;
    pipe.write_all(input.as_bytes()).with_context(|| format!("writing to {line}"))?;
    drop(pipe);
    let output = child.wait_with_output().with_context(|| format!("waiting for {line}"))?;
    ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

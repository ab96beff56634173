//! Processes that outlive their parent: found again, and killed, without ever hitting a stranger.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A process, told apart from every later one that gets the same pid by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    /// Process id.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks from the boot of the host to the start of the process.
    pub started: u64,
}

impl Process {
    /// The process that has this pid now; `None` when there is none or it has ended (zombie).
    pub(super) fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name stands in parentheses and may hold anything, so the fields begin after the last one.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(Self { pid, started })
    }

    /// The process that wrote `pid_file`, if it still runs and `mark` is one of its arguments.
    pub(super) fn from_pid_file(pid_file: &Path, mark: &str) -> Option<Self> {
        let pid = std::fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
        let process = Self::of(pid)?;
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let mut arguments = arguments.split(|&byte| byte == 0);
        arguments.any(|argument| argument == mark.as_bytes()).then_some(process)
    }

    /// Processes with this argument.
    pub(super) fn with_argument(wanted: &str) -> Vec<u32> {
        let names = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
        let pids = names.filter_map(|name| name.to_str()?.parse().ok());
        let has = |pid: &u32| {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments.split(|byte| *byte == 0).skip(1).any(|argument| argument == wanted.as_bytes())
        };
        pids.filter(has).collect()
    }

    /// Does it still run?
    pub(super) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends SIGKILL and waits until the process is gone; success when it already was.
    ///
    /// # Errors
    /// `TimedOut` when it is still there after `patience` (it hangs in the kernel); what the kernel says otherwise.
    pub(super) async fn kill(self, patience: Duration) -> io::Result<()> {
        // The descriptor is taken first and compared afterwards: from then on it cannot mean anybody else.
        let Some(handle) = pidfd_open(self.pid)? else { return Ok(()) };
        if !self.is_alive() {
            return Ok(());
        }
        pidfd_kill(&handle)?;
        let deadline = Instant::now() + patience;
        while self.is_alive() {
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

/// `None`: no such process.
fn pidfd_open(pid: u32) -> io::Result<Option<OwnedFd>> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        Ok(fd) if fd >= 0 => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            error => Err(error),
        },
    }
}

fn pidfd_kill(handle: &OwnedFd) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open as long as `handle` lives, and a null siginfo means that of kill(2).
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, handle.as_raw_fd(), libc::SIGKILL, no_info, 0) };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(()),
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_recycled_pid_is_not_killed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        let predecessor = Process { started: process.started - 1, ..process };
        assert!(!predecessor.is_alive());
        predecessor.kill(Duration::from_secs(1)).await.unwrap();
        assert!(process.is_alive(), "a stranger was killed");
        process.kill(Duration::from_secs(5)).await.unwrap();
        assert!(!process.is_alive());
        child.wait().unwrap();
        process.kill(Duration::from_secs(1)).await.unwrap();
    }
}

//! Processes that a step of the tests leaves behind: daemons that have left its process group, such as the QEMU of a test that was
//! killed.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// Longest time until a killed process is gone.
const DEATH: Duration = Duration::from_secs(20);

/// From now on, whoever is left below this process becomes its child, and not init's (prctl(2), `PR_SET_CHILD_SUBREAPER`).
///
/// # Errors
/// The kernel cannot.
pub fn adopt() -> Result<()> {
    set_child_subreaper(true).context("taking charge of daemons that tests leave behind")
}

/// Ends every child of this process, and those that they leave; the names of the first. No step is under way.
///
/// # Errors
/// One does not end.
pub fn end() -> Result<Vec<String>> {
    let start = Instant::now();
    let mut names = Vec::new();
    loop {
        let living = children()?;
        if living.is_empty() {
            return Ok(names);
        }
        if start.elapsed() > DEATH {
            bail!("{living:?} are still there {} s after SIGKILL", DEATH.as_secs());
        }
        for (pid, name) in living {
            // It may have ended by itself since it was listed.
            if kill(pid, Signal::SIGKILL).is_ok()
                && waitpid(pid, Some(WaitPidFlag::WNOHANG)) != Err(Errno::ECHILD)
                && !names.contains(&name)
            {
                names.push(name);
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Process ids and names of this process's children that are not dead yet; of the dead ones nothing stays.
fn children() -> Result<Vec<(Pid, String)>> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("/proc")? {
        let entry = entry.context("/proc")?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).map(Pid::from_raw)
        else {
            continue;
        };
        // proc_pid_stat(5): number, (name), state, parent. It may have ended since it was listed.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((before, behind)) = stat.rsplit_once(") ") else { continue };
        let mut behind = behind.split(' ');
        let (state, parent) = (behind.next(), behind.next());
        if parent != Some(own.as_str()) {
            continue;
        }
        if state == Some("Z") {
            // Whoever awaits it as a child of its own is not there between two steps.
            let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            continue;
        }
        let name = before.split_once('(').map_or(before, |(_, name)| name);
        found.push((pid, name.to_owned()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn daemons_that_a_killed_step_leaves_are_found_and_ended() {
        adopt().unwrap();
        // Its own session, and no parent: as QEMU makes itself a daemon.
        let status = Command::new("setsid").args(["--fork", "sleep", "611"]).status().unwrap();
        assert!(status.success());
        let is_there = || children().unwrap().iter().any(|(_, name)| name == "sleep");
        let start = Instant::now();
        while !is_there() && start.elapsed() < DEATH {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(is_there());
        // Other tests of this program may have children of their own at this moment: only this one is ended.
        for (pid, _) in children().unwrap().into_iter().filter(|(_, name)| name == "sleep") {
            kill(pid, Signal::SIGKILL).unwrap();
        }
        while is_there() && start.elapsed() < DEATH {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!is_there());
    }
}

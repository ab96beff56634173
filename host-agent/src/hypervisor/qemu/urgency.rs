//! Around its cut a QEMU comes before the other programs of a busy host: what it does there takes a few milliseconds in which its
//! guest, and soon all members, stand still. Guests' processors keep their place.

use std::path::PathBuf;

use super::super::process::Process;

/// Begin of the name of a thread that runs a guest's processor (`-name debug-threads=on`).
const GUEST_PROCESSOR: &str = "CPU ";

/// Threads of a QEMU that have real-time priority until this is dropped.
#[derive(Debug)]
pub(super) struct Urgent {
    threads: Vec<libc::pid_t>,
}

impl Urgent {
    /// Raises all threads that there are. Where the host does not allow it, a cut is as quick as the host is idle.
    pub(super) fn raise(process: &Process) -> Self {
        let tasks = PathBuf::from(format!("/proc/{}/task", process.pid));
        let threads = std::fs::read_dir(tasks).into_iter().flatten().flatten().filter_map(|task| {
            let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
            let thread = task.file_name().to_str()?.parse().ok()?;
            (!name.starts_with(GUEST_PROCESSOR) && schedule(thread, libc::SCHED_RR, 1)).then_some(thread)
        });
        Self { threads: threads.collect() }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        for thread in &self.threads {
            schedule(*thread, libc::SCHED_OTHER, 0);
        }
    }
}

/// See sched_setscheduler(2); a thread that has ended is no error.
fn schedule(thread: libc::pid_t, policy: libc::c_int, priority: libc::c_int) -> bool {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the kernel reads one `sched_param`, which outlives the call.
    let result = unsafe { libc::sched_setscheduler(thread, policy, &raw const parameters) };
    if result != 0 {
        tracing::debug!(thread, error = %std::io::Error::last_os_error(), "no real-time priority");
    }
    result == 0
}

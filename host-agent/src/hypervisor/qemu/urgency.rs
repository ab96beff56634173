//! Around its cut a QEMU comes before the other programs of a busy host: what it does there takes a few milliseconds in which its
//! guest, and soon all members, stand still. Guests' processors keep their place. What is done before comes after them.

use std::path::PathBuf;

use super::super::process::Process;

/// Begin of the name of a thread that runs a guest's processor (`-name debug-threads=on`).
const GUEST_PROCESSOR: &str = "CPU ";

/// Nice value of what can wait: a tenth of the usual weight (sched(7): a factor of 1.25 each).
const BEHIND: libc::c_int = 10;

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

/// A thread of this program that lets all others go first, guests first of all. It still gets a tenth of what they get.
#[derive(Debug)]
pub(super) struct Behind {
    thread: libc::pid_t,
}

impl Behind {
    /// The calling thread; `None` where the host would not let it come back (setpriority(2), without CAP_SYS_NICE).
    pub(super) fn step_back() -> Option<Self> {
        // SAFETY: the call touches no memory.
        let thread = unsafe { libc::gettid() };
        let may_return = [BEHIND, 0, BEHIND].into_iter().all(|nice| set_nice(thread, nice));
        may_return.then_some(Self { thread })
    }

    /// Back to its place.
    pub(super) fn come_back(&self) {
        set_nice(self.thread, 0);
    }
}

fn set_nice(thread: libc::pid_t, nice: libc::c_int) -> bool {
    // SAFETY: the call touches no memory.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, thread.unsigned_abs(), nice) };
    if result != 0 {
        tracing::debug!(thread, error = %std::io::Error::last_os_error(), "its priority stays as it is");
    }
    result == 0
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

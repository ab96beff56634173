//! Around its cut a QEMU comes before the other programs of a busy host: what it does there takes a few milliseconds in which its
//! guest, and soon all members, stand still. Guests' processors keep their place. What is done before comes after them.

use std::path::PathBuf;

use super::super::process::Process;

/// Begin of the name of a thread that runs a guest's processor (`-name debug-threads=on`).
const GUEST_PROCESSOR: &str = "CPU ";

/// Begin of the names of the threads that send RAM, of QEMU 9.1 and before that.
const SENDERS: [&str; 2] = ["mig/src/", "live_migration"];
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
        let threads = threads(process, |name| !name.starts_with(GUEST_PROCESSOR));
        Self { threads: threads.filter(|thread| schedule(*thread, libc::SCHED_RR, 1)).collect() }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        for thread in &self.threads {
            schedule(*thread, libc::SCHED_OTHER, 0);
        }
    }
}

/// Threads that let all others go first, guests first of all. They still get a tenth of what the others get.
#[derive(Debug, Default)]
pub(super) struct Behind {
    threads: Vec<libc::pid_t>,
}

impl Behind {
    /// The calling thread.
    pub(super) fn this_thread() -> Self {
        // SAFETY: the call touches no memory.
        Self::all([unsafe { libc::gettid() }])
    }

    /// The threads with which a QEMU sends its RAM; none yet, right after it was told to.
    pub(super) fn senders(process: &Process) -> Self {
        Self::all(threads(process, |name| SENDERS.iter().any(|sender| name.starts_with(sender))))
    }

    /// Those that the host would let come back (setpriority(2): without CAP_SYS_NICE it lets nobody).
    fn all(threads: impl IntoIterator<Item = libc::pid_t>) -> Self {
        let may_return =
            |thread: &libc::pid_t| [BEHIND, 0, BEHIND].iter().all(|nice| set_nice(*thread, *nice));
        Self { threads: threads.into_iter().filter(may_return).collect() }
    }

    /// Is there nobody?
    pub(super) fn is_empty(&self) -> bool {
        self.threads.is_empty()
    }

    /// Back to their places.
    pub(super) fn come_back(&self) {
        for thread in &self.threads {
            set_nice(*thread, 0);
        }
    }
}

/// Those threads of a process whose names are wanted.
fn threads(process: &Process, wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = libc::pid_t> {
    let tasks = PathBuf::from(format!("/proc/{}/task", process.pid));
    std::fs::read_dir(tasks).into_iter().flatten().flatten().filter_map(move |task| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let thread = task.file_name().to_str()?.parse().ok()?;
        wanted(&name).then_some(thread)
    })
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

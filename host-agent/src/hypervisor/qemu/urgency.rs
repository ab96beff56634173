//! Around its cut a QEMU comes before the other programs of a busy host: what it does there takes a few milliseconds in which its
//! guest, and soon all members, stand still. Guests' processors keep their place. What is done before comes after them.

use std::path::PathBuf;

use nix::errno::Errno;

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
    /// With the nice values that they had.
    threads: Vec<(libc::pid_t, libc::c_int)>,
}

impl Behind {
    /// The calling thread.
    pub(super) fn this_thread() -> Self {
        // SAFETY: the call touches no memory.
        Self::all([unsafe { libc::gettid() }])
    }

    /// The threads with which a QEMU sends its RAM; `None` while it has none, right after it was told to.
    pub(super) fn senders(process: &Process) -> Option<Self> {
        let mut senders =
            threads(process, |name| SENDERS.iter().any(|sender| name.starts_with(sender))).peekable();
        senders.peek()?;
        Some(Self::all(senders))
    }

    /// Only those that can come back: without CAP_SYS_NICE nobody can (setpriority(2)), which one step ahead shows.
    fn all(threads: impl IntoIterator<Item = libc::pid_t>) -> Self {
        let step_back = |thread| {
            let before = nice(thread)?;
            let steps = before < BEHIND && set_nice(thread, before - 1) && set_nice(thread, BEHIND);
            steps.then_some((thread, before))
        };
        Self { threads: threads.into_iter().filter_map(step_back).collect() }
    }

    /// Back to their places.
    pub(super) fn come_back(&self) {
        for (thread, before) in &self.threads {
            set_nice(*thread, *before);
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

/// `None` if the thread has ended. -1 is a nice value as well as an error, hence the look at errno (getpriority(2)).
fn nice(thread: libc::pid_t) -> Option<libc::c_int> {
    Errno::clear();
    // SAFETY: the call touches no memory.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, thread.unsigned_abs()) };
    (nice != -1 || Errno::last_raw() == 0).then_some(nice)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn own_nice() -> libc::c_int {
        // SAFETY: the call touches no memory.
        nice(unsafe { libc::gettid() }).unwrap()
    }

    /// In a thread of its own, which starts at this nice value.
    fn in_thread<T: Send + 'static>(nice: libc::c_int, what: impl FnOnce() -> T + Send + 'static) -> T {
        let start = move || {
            // SAFETY: the call touches no memory.
            assert!(set_nice(unsafe { libc::gettid() }, nice), "tests run as root");
            what()
        };
        std::thread::spawn(start).join().unwrap()
    }

    #[test]
    fn a_thread_comes_back_to_its_own_place() {
        for before in [-5, 0, 3] {
            let seen = in_thread(before, || {
                let behind = Behind::this_thread();
                let stepped = own_nice();
                behind.come_back();
                (stepped, own_nice())
            });
            assert_eq!(seen, (BEHIND, before));
        }
        assert_eq!(in_thread(15, || (Behind::this_thread().threads.len(), own_nice())), (0, 15));
    }

    #[test]
    fn a_thread_that_could_not_come_back_stays() {
        let seen = in_thread(0, || {
            // SAFETY: the call touches no memory. As a raw system call it is about this thread only (setresuid(2)).
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
            assert_eq!(changed, 0);
            (Behind::this_thread().threads.len(), own_nice())
        });
        assert_eq!(seen, (0, 0));
    }
}

//! One command: a process group of its own, at low priority, killed when its time is over or nobody wants it any more.

use std::{
    ffi::OsStr,
    io::{self, ErrorKind, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{
            ffi::OsStrExt,
            process::{CommandExt, ExitStatusExt},
        },
    },
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use unasnap_protocol::access::{Ask, CHUNK_BYTES, CommandLine, Exit, Opened, RefusalKind, Said, Stream};

use super::{
    failed, misplaced, refusal,
    slot::{Next, Slot},
};

/// Longest time in which the end of the command, or of its time, is not noticed.
const SLICE: Duration = Duration::from_millis(10);
/// What an ended command's children still write into its output is told, up to here.
const MAX_AFTERWARDS: usize = 1 << 20;
/// Behind everything else in the guest, as of nice(1).
const NICENESS: libc::c_int = 10;
/// The agent's own environment is nobody's business.
const ENVIRONMENT: [(&str, &str); 2] =
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/root")];

/// Runs `command` for `limit` at most, and tells what it writes as it is asked for.
pub fn run(slot: &Slot, command: &CommandLine, limit: Duration) {
    let mut running = match Running::begin(command, limit) {
        Ok(running) => running,
        Err(error) => return slot.say(not_begun(command, &error)),
    };
    let chunk = u16::try_from(CHUNK_BYTES).unwrap_or(u16::MAX);
    slot.say(Said::Opened(Opened { chunk, file: None }));
    loop {
        match slot.next(SLICE) {
            Next::Over => return,
            Next::Nothing => running.look(),
            Next::Ask(Ask::More(room)) => {
                let Some(said) = running.tell(slot, usize::from(room)) else { return };
                let ends = matches!(said, Said::Exited(_) | Said::Refused(_));
                slot.say(said);
                if ends {
                    return;
                }
            }
            Next::Ask(_) => return slot.say(misplaced()),
        }
    }
}

fn not_begun(command: &CommandLine, error: &io::Error) -> Said {
    let program = String::from_utf8_lossy(command.program());
    match error.kind() {
        ErrorKind::NotFound => {
            refusal(RefusalKind::NotFound, format!("there is no program {program} in the guest"))
        }
        ErrorKind::PermissionDenied => {
            refusal(RefusalKind::NotFound, format!("{program} in the guest is not a program"))
        }
        _ => failed(format!("{program} cannot be started in the guest: {error}")),
    }
}

struct Running {
    child: Child,
    out: Option<ChildStdout>,
    err: Option<ChildStderr>,
    deadline: Instant,
    killed: bool,
    ended: Option<ExitStatus>,
    /// Bytes that came after the end.
    afterwards: usize,
}

impl Running {
    fn begin(command: &CommandLine, limit: Duration) -> io::Result<Self> {
        let mut start = Command::new(OsStr::from_bytes(command.program()));
        start.args(command.arguments().iter().map(|argument| OsStr::from_bytes(argument)));
        start.env_clear().envs(ENVIRONMENT).current_dir("/").process_group(0);
        start.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: between fork and exec only setpriority(2) and prctl(2) are called, which are mere system calls.
        unsafe { start.pre_exec(step_back) };
        let mut child = start.spawn()?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let deadline = Instant::now() + limit;
        Ok(Self { child, out, err, deadline, killed: false, ended: None, afterwards: 0 })
    }

    /// Notices its end, and the end of its time.
    fn look(&mut self) {
        if self.ended.is_none() {
            // An error would mean that it is not our child.
            self.ended = self.child.try_wait().ok().flatten();
        }
        if self.ended.is_none() && Instant::now() >= self.deadline {
            self.kill();
        }
    }

    /// What it writes next, or how it ended; `None` when nobody wants to know any more.
    fn tell(&mut self, slot: &Slot, room: usize) -> Option<Said> {
        loop {
            if slot.is_unwanted() {
                return None;
            }
            // Before it is looked for output: what was written before the end is there then.
            self.look();
            let had_ended = self.ended;
            match self.read(room) {
                Ok(Some((stream, bytes))) => {
                    self.afterwards += if had_ended.is_some() { bytes.len() } else { 0 };
                    return Some(
                        bytes.try_into().map_or_else(|_| misplaced(), |chunk| Said::Output(stream, chunk)),
                    );
                }
                Ok(None) => {}
                Err(error) => return Some(failed(format!("the command's output cannot be read: {error}"))),
            }
            if let Some(status) = had_ended {
                return Some(Said::Exited(self.exit(status)));
            }
        }
    }

    fn exit(&self, status: ExitStatus) -> Exit {
        match (self.killed, status.code(), status.signal()) {
            (true, ..) => Exit::TimedOut,
            (_, Some(code), _) => Exit::Code(code),
            (_, _, signal) => Exit::Signal(signal.unwrap_or_default()),
        }
    }

    /// Waits for output, a moment.
    fn read(&mut self, room: usize) -> io::Result<Option<(Stream, Vec<u8>)>> {
        if self.afterwards > MAX_AFTERWARDS {
            return Ok(None);
        }
        let open: Vec<Stream> = [(Stream::Out, self.out.is_some()), (Stream::Err, self.err.is_some())]
            .into_iter()
            .filter_map(|(stream, open)| open.then_some(stream))
            .collect();
        // Nothing comes from an ended command that is not there already.
        let patience = if self.ended.is_some() { Duration::ZERO } else { SLICE };
        let ready = wait(open.iter().filter_map(|stream| self.descriptor(*stream)), patience)?;
        for stream in open.into_iter().zip(ready).filter_map(|(stream, ready)| ready.then_some(stream)) {
            let mut bytes = vec![0; room.clamp(1, CHUNK_BYTES)];
            let count = match stream {
                Stream::Out => self.out.as_mut().map_or(Ok(0), |out| out.read(&mut bytes)),
                Stream::Err => self.err.as_mut().map_or(Ok(0), |err| err.read(&mut bytes)),
            };
            match (count?, stream) {
                (0, Stream::Out) => self.out = None,
                (0, Stream::Err) => self.err = None,
                (count, _) => {
                    bytes.truncate(count);
                    return Ok(Some((stream, bytes)));
                }
            }
        }
        Ok(None)
    }

    fn descriptor(&self, stream: Stream) -> Option<BorrowedFd<'_>> {
        match stream {
            Stream::Out => self.out.as_ref().map(AsFd::as_fd),
            Stream::Err => self.err.as_ref().map(AsFd::as_fd),
        }
    }

    /// With all its children, unless they have left its group.
    fn kill(&mut self) {
        self.killed = true;
        if let Ok(group) = libc::pid_t::try_from(self.child.id()) {
            // SAFETY: no memory is touched. The child leads its group and was not waited for, so that the number is its own.
            unsafe { libc::killpg(group, libc::SIGKILL) };
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.kill();
            // It is dead already; this only takes its number back.
            let _ = self.child.wait();
        }
    }
}

/// Which of these can be read, or have ended. Sleeps where there are none.
fn wait<'a>(descriptors: impl Iterator<Item = BorrowedFd<'a>>, patience: Duration) -> io::Result<Vec<bool>> {
    let mut polled: Vec<_> = descriptors.map(|open| PollFd::new(open, PollFlags::POLLIN)).collect();
    let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
    match poll(&mut polled, patience) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(polled.iter().map(|polled| polled.any().unwrap_or(false)).collect())
}

/// The command is never in the way of what the guest is for, and dies with the agent.
fn step_back() -> io::Result<()> {
    let signal = libc::SIGKILL as libc::c_ulong;
    // SAFETY: no memory is touched; 0 is this process.
    let done = unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) == 0
            && libc::prctl(libc::PR_SET_PDEATHSIG, signal) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

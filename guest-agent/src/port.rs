//! The port to the host agent: a virtio-serial port, or for tests a unix socket.
//!
//! A virtio-serial port has no connection. While nobody has it open on the host's side, reading answers 0 and
//! polling answers at once, so the only way to wait without spinning is to look again after a while; writing
//! would block until somebody comes, by which time the reply answers nobody.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::AsFd,
        unix::{fs::FileTypeExt, fs::OpenOptionsExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use unasnap_protocol::guest::PORT_NAME;

const PORTS_BY_NAME: &str = "/dev/virtio-ports";
const PORTS_IN_SYSFS: &str = "/sys/class/virtio-ports";

/// How soon a host that opens its side is noticed.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// After which time nobody waits for a reply any more.
const WRITE_LIMIT: Duration = Duration::from_secs(1);

/// Where the port is: what udev named, else (in an initramfs without udev) what sysfs says.
#[must_use]
pub fn find() -> Option<PathBuf> {
    let named = Path::new(PORTS_BY_NAME).join(PORT_NAME);
    if named.exists() {
        return Some(named);
    }
    let is_ours = |port: &fs::DirEntry| {
        fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim_end() == PORT_NAME)
    };
    let port = fs::read_dir(PORTS_IN_SYSFS).ok()?.filter_map(Result::ok).find(is_ours)?;
    Some(Path::new("/dev").join(port.file_name()))
}

/// An open port, not blocking.
#[derive(Debug)]
pub enum Port {
    /// A character device; it never ends.
    Device(File),
    /// A socket; it ends when the other side closes it.
    Socket(UnixStream),
}

impl Port {
    /// Opens the device, or connects to the socket, at `path`.
    ///
    /// # Errors
    /// It is not there, somebody else has it open, or nobody listens.
    pub fn open(path: &Path) -> io::Result<Self> {
        if fs::metadata(path)?.file_type().is_socket() {
            let stream = UnixStream::connect(path)?;
            stream.set_nonblocking(true)?;
            return Ok(Self::Socket(stream));
        }
        let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        Ok(Self::Device(device))
    }

    /// Waits for bytes, for ever, and answers how many came (at least one).
    ///
    /// # Errors
    /// The device was unplugged, or the socket's other side closed it.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.wait(PollFlags::POLLIN, PollTimeout::NONE)?;
            let outcome = match self {
                Self::Device(device) => device.read(buffer),
                Self::Socket(stream) => stream.read(buffer),
            };
            match (outcome, &self) {
                (Ok(0), Self::Socket(_)) => return Err(ErrorKind::UnexpectedEof.into()),
                (Ok(0), Self::Device(_)) => std::thread::sleep(LOOK_AGAIN),
                (Err(error), _) if error.kind() == ErrorKind::WouldBlock => self.breathe_if_hung_up()?,
                (Err(error), _) if error.kind() == ErrorKind::Interrupted => {}
                (outcome, _) => return outcome,
            }
        }
    }

    /// Writes a whole reply.
    ///
    /// # Errors
    /// `TimedOut` when nobody takes it for a second; otherwise as [`Port::read`].
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let deadline = Instant::now() + WRITE_LIMIT;
        while !bytes.is_empty() {
            let outcome = match self {
                Self::Device(device) => device.write(bytes),
                Self::Socket(stream) => stream.write(bytes),
            };
            match outcome {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait_to_write(deadline)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn wait_to_write(&self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        let milliseconds = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
        let events = self.wait(PollFlags::POLLOUT, PollTimeout::from(milliseconds))?;
        if !events.contains(PollFlags::POLLOUT) {
            std::thread::sleep(LOOK_AGAIN.min(left));
        }
        Ok(())
    }

    fn breathe_if_hung_up(&self) -> io::Result<()> {
        if self.wait(PollFlags::POLLIN, PollTimeout::ZERO)?.contains(PollFlags::POLLHUP) {
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    fn wait(&self, events: PollFlags, timeout: PollTimeout) -> io::Result<PollFlags> {
        let descriptor = match self {
            Self::Device(device) => device.as_fd(),
            Self::Socket(stream) => stream.as_fd(),
        };
        let mut polled = [PollFd::new(descriptor, events)];
        match poll(&mut polled, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(polled[0].revents().unwrap_or(PollFlags::empty())),
            Err(error) => Err(error.into()),
        }
    }
}

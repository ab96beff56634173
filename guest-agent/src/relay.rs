//! Requests of a host that has no port, but runs programs here: `unasnap-guest relay` hands them to the agent through a socket.
//!
//! The socket is the guest's root's. Whoever could use it could also load programs into the kernel.

use std::{
    fs::{self, DirBuilder},
    io::{self, Read, Write},
    os::{
        fd::AsFd,
        unix::{
            fs::DirBuilderExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use unasnap_protocol::{
    frame::{Decoder, Frame, MAX_GUEST_PAYLOAD},
    relay,
};

/// How long a request may take to come through the socket: it was whole before it was begun.
const READ_LIMIT: Duration = Duration::from_secs(1);
/// How long the agent may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// The agent's end of the socket.
#[derive(Debug)]
pub struct Door(UnixListener);

impl Door {
    /// Listens at [`relay::SOCKET`]; what an earlier agent has left there goes.
    ///
    /// # Errors
    /// The folder cannot be made or written.
    pub fn open() -> Result<Self> {
        let doing = || format!("cannot listen at {}", relay::SOCKET);
        // Systemd has made it already, if it is what has started the agent.
        DirBuilder::new().recursive(true).mode(0o700).create(relay::FOLDER).with_context(doing)?;
        match fs::remove_file(relay::SOCKET) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).with_context(doing),
            _ => {}
        }
        let listener = UnixListener::bind(relay::SOCKET).with_context(doing)?;
        listener.set_nonblocking(true).with_context(doing)?;
        Ok(Self(listener))
    }

    /// Waits for a request for so long, and gives it to `answer`.
    ///
    /// # Errors
    /// Whoever brought it has said something else, or has gone.
    pub fn attend(
        &self,
        wait: Duration,
        answer: impl FnOnce(&Frame) -> io::Result<Option<Vec<u8>>>,
    ) -> io::Result<()> {
        let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], wait)? == 0 {
            return Ok(());
        }
        let (mut stream, _) = self.0.accept()?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(READ_LIMIT))?;
        stream.set_write_timeout(Some(READ_LIMIT))?;
        let request = read(&mut stream)?;
        answer(&request)?.map_or(Ok(()), |reply| stream.write_all(&reply))
    }
}

/// What `unasnap-guest relay` prints to a request's word: the reply's.
///
/// # Errors
/// The request is none, or no agent answers.
pub fn hand_over(request: &str) -> Result<String> {
    let frame = relay::frame(request)?;
    let lost = || format!("no answer from {}: does unasnap-guest run, without --port?", relay::SOCKET);
    let mut stream = UnixStream::connect(relay::SOCKET).with_context(lost)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT)).with_context(lost)?;
    stream.write_all(&frame).with_context(lost)?;
    let reply = read(&mut stream).with_context(lost)?;
    Ok(relay::word(&unasnap_protocol::frame::encode(reply.number, &reply.payload)))
}

/// The word in the file, which goes.
///
/// # Errors
/// It cannot be read, or stays.
pub fn taken(file: &Path) -> Result<String> {
    let reading = || format!("cannot read {}", file.display());
    let mut text = String::new();
    let opened = fs::File::open(file).with_context(reading)?;
    fs::remove_file(file).with_context(|| format!("cannot delete {}", file.display()))?;
    // What is longer is no request.
    opened.take(relay::MAX_WORD as u64 + 1).read_to_string(&mut text).with_context(reading)?;
    Ok(text)
}

/// One whole frame.
fn read(stream: &mut UnixStream) -> io::Result<Frame> {
    let mut decoder = Decoder::strict(MAX_GUEST_PAYLOAD);
    let mut chunk = [0; 4096];
    loop {
        match decoder.next_frame() {
            Ok(Some(frame)) => return Ok(frame),
            Ok(None) => {}
            Err(error) => return Err(io::Error::other(error)),
        }
        match stream.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => decoder.push(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

//! Requests in, replies out, for as long as the guest runs.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use log::{info, warn};
use unasnap_fault_points::{after, before};
use unasnap_protocol::{
    frame::{Decoder, Frame, MAX_GUEST_PAYLOAD},
    guest::{GuestRequest, ReplyHead},
};

use crate::{
    agent::Agent,
    port::{self, Port},
    relay::Door,
};

const REOPEN_AFTER: Duration = Duration::from_millis(100);
const CHUNK_BYTES: usize = 4096;

/// Serves the port at `path`, or whichever the guest has. A port that is missing or goes away is waited for; while there is none, and
/// none was named, requests may come through the [`Door`].
pub fn serve(agent: &mut Agent, path: Option<&Path>) -> ! {
    let door = path.is_none().then(Door::open).and_then(|opened| {
        opened.inspect_err(|error| warn!("requests come through a port only: {error:#}")).ok()
    });
    let mut reported = String::new();
    loop {
        let problem = match open(path) {
            Ok((found, mut port)) => {
                info!("listening on {}", found.display());
                format!("{} ended: {}", found.display(), converse(agent, &mut port))
            }
            Err(problem) => problem,
        };
        if problem != reported {
            warn!("{problem}; waiting for it");
            reported = problem;
        }
        match &door {
            None => std::thread::sleep(REOPEN_AFTER),
            Some(door) => attend(agent, door),
        }
    }
}

/// Answers a request that comes through the door, if one comes soon.
fn attend(agent: &mut Agent, door: &Door) {
    if let Err(error) = door.attend(REOPEN_AFTER, |frame| reply(agent, frame)) {
        warn!("a request was dropped: {error}");
        std::thread::sleep(REOPEN_AFTER);
    }
}

fn open(path: Option<&Path>) -> Result<(PathBuf, Port), String> {
    let found = path.map(Path::to_owned).or_else(port::find).ok_or_else(|| {
        "this guest has no virtio-serial port org.unasnap.guest.0 (the host agent gives it one)".to_owned()
    })?;
    match Port::open(&found) {
        Ok(port) => Ok((found, port)),
        Err(error) => Err(format!("cannot open {}: {error}", found.display())),
    }
}

/// Until the port ends; answers why it did.
fn converse(agent: &mut Agent, port: &mut Port) -> io::Error {
    let mut decoder = Decoder::resync(MAX_GUEST_PAYLOAD);
    let mut chunk = [0; CHUNK_BYTES];
    loop {
        match port.read(&mut chunk) {
            Ok(count) => decoder.push(&chunk[..count]),
            Err(error) => return error,
        }
        // A decoder that resyncs has no errors.
        while let Ok(Some(frame)) = decoder.next_frame() {
            if let Err(error) = answer(agent, port, &frame) {
                return error;
            }
        }
    }
}

fn answer(agent: &mut Agent, port: &mut Port, frame: &Frame) -> io::Result<()> {
    let Some(reply) = reply(agent, frame)? else { return Ok(()) };
    match port.write(&reply) {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            warn!("nobody took a reply; dropped");
            Ok(())
        }
        outcome => outcome,
    }
}

/// The reply's frame; `None` to what is no request.
fn reply(agent: &mut Agent, frame: &Frame) -> io::Result<Option<Vec<u8>>> {
    let (head, request) = match GuestRequest::decode(frame) {
        Ok(decoded) => decoded,
        Err(error) => {
            warn!("a request was dropped: {error}");
            return Ok(None);
        }
    };
    let name = request.name();
    before("guest", name)?;
    let reply = agent.answer(head, request);
    after("guest", name)?;
    Ok(Some(reply.encode(&ReplyHead { sequence: head.sequence })))
}

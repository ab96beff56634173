//! A guest channel without a port: for every request, VirtualBox runs `unasnap-guest relay` in the guest.
//!
//! ```text
//! GuestChannel -- socket -- Relay -- VBoxManage guestcontrol run -- (guest) unasnap-guest relay -- socket -- the agent
//! ```
//!
//! It needs the Guest Additions in the guest, and the password of its root on the host. A call takes much longer than a message through a
//! port, also those two between which a cut lies: members lose packets meanwhile. What fails is the reply, in VirtualBox's words.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use unasnap_channel::IdentityError;
use unasnap_channel::identity::exposure;
use unasnap_protocol::frame::{Decoder, Frame, MAX_GUEST_PAYLOAD, encode};
use unasnap_protocol::guest::{GuestReply, GuestRequest, ReplyHead};
use unasnap_protocol::relay;

use super::super::HypervisorError;
use super::config::Login;
use super::manage::Manage;
use super::record::{VmFolder, socket_path};
use crate::guest_channel::Pace;
use crate::store::files::remove_if_there;
use crate::works::chain;

/// How long VirtualBox may take for a call: who asks is to hear what went wrong.
const CALL_LIMIT: Duration = Pace::CALLS.answer.saturating_sub(Duration::from_millis(500));
/// Pause after a connection that has failed.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// What is done, for errors.
const RUN: &str = "VBoxManage guestcontrol run unasnap-guest relay";
/// What is done before with what may not be seen, for errors.
const COPY: &str = "VBoxManage guestcontrol copyto";

/// Carries requests as long as this value lives.
pub(super) struct Relay(JoinHandle<()>);

/// What a request needs on its way.
struct Way {
    manage: Manage,
    login: Login,
    folder: VmFolder,
}

impl Relay {
    /// Listens at [`VmFolder::relay`].
    ///
    /// # Errors
    /// The socket cannot be made there.
    pub(super) fn listen(manage: Manage, login: Login, folder: VmFolder) -> Result<Self, HypervisorError> {
        let socket = folder.relay();
        socket_path(&socket)?;
        fs::create_dir_all(folder.path()).map_err(HypervisorError::file("create", folder.path()))?;
        remove_if_there(&socket).map_err(HypervisorError::file("delete", &socket))?;
        let listener = UnixListener::bind(&socket).map_err(HypervisorError::file("listen at", &socket))?;
        let way = Way { manage, login, folder };
        Ok(Self(tokio::spawn(async move {
            loop {
                // There is one channel, and it connects again when it has given up.
                let ended = match listener.accept().await {
                    Ok((stream, _)) => way.converse(stream).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = ended {
                    tracing::debug!(vm = way.manage.vm(), %error, "the guest channel was closed");
                    sleep(AGAIN_AFTER).await;
                }
            }
        })))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Way {
    /// Until the other side closes the stream. Whatever it sends, it has given up what it asked before: that call ends.
    async fn converse(&self, mut stream: UnixStream) -> io::Result<()> {
        let (mut reader, mut writer) = stream.split();
        let mut decoder = Decoder::resync(MAX_GUEST_PAYLOAD);
        let mut buffer = [0; 4096];
        let mut asked = None;
        loop {
            let carried = async {
                match &asked {
                    Some(frame) => self.answer(frame).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                count = reader.read(&mut buffer) => {
                    match count? {
                        0 => return Ok(()),
                        count => decoder.push(&buffer[..count]),
                    }
                    asked = None;
                    while let Ok(Some(frame)) = decoder.next_frame() {
                        asked = Some(frame);
                    }
                }
                reply = carried => {
                    asked = None;
                    if let Some(reply) = reply {
                        writer.write_all(&reply).await?;
                    }
                }
            }
        }
    }

    /// The reply's frame; `None` to what is no request.
    async fn answer(&self, frame: &Frame) -> Option<Vec<u8>> {
        let (head, request) = GuestRequest::decode(frame).ok()?;
        let word = relay::word(&encode(frame.number, &frame.payload));
        let reply = self.carry(&request, &word).await.unwrap_or_else(|error| {
            GuestReply::Failed(chain(&error)).encode(&ReplyHead { sequence: head.sequence })
        });
        Some(reply)
    }

    async fn carry(&self, request: &GuestRequest, word: &str) -> Result<Vec<u8>, HypervisorError> {
        self.check_password()?;
        let printed = if relay::may_be_seen(request, word) {
            self.run(&["relay", word]).await?
        } else {
            self.send(word).await?;
            self.run(&["relay", "--file", relay::REQUEST_FILE]).await?
        };
        relay::frame(&printed).map_err(|error| self.refused(RUN, error.to_string()))
    }

    /// What the agent's program prints in the guest.
    async fn run(&self, arguments: &[&str]) -> Result<String, HypervisorError> {
        let limit = CALL_LIMIT.as_millis().to_string();
        let how = ["--exe", relay::PROGRAM, "--timeout", &limit, "--wait-stdout", "--wait-stderr", "--"];
        self.call(RUN, "run", &[how.as_slice(), arguments].concat()).await
    }

    /// Puts a request into the guest that is not for the command line.
    async fn send(&self, word: &str) -> Result<(), HypervisorError> {
        let path = self.folder.request();
        let written = remove_if_there(&path).and_then(|()| {
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(word.as_bytes())
        });
        let sent = match written.map_err(HypervisorError::file("write", &path)) {
            Ok(()) => {
                self.call(COPY, "copyto", &[&path.to_string_lossy(), relay::REQUEST_FILE]).await.map(drop)
            }
            Err(error) => Err(error),
        };
        remove_if_there(&path).map_err(HypervisorError::file("delete", &path))?;
        sent
    }

    /// What one call prints. `what` stands for its arguments in errors: these are long.
    async fn call(
        &self,
        what: &'static str,
        verb: &str,
        arguments: &[&str],
    ) -> Result<String, HypervisorError> {
        let file = self.login.password_file.to_string_lossy();
        let login = ["--username", &self.login.user, "--passwordfile", &file];
        let call = [&["guestcontrol", self.manage.uuid(), verb], login.as_slice(), arguments].concat();
        let answer = match self.manage.ask(&call, CALL_LIMIT).await {
            Err(HypervisorError::TimedOut { vm, after, .. }) => {
                return Err(HypervisorError::TimedOut { vm, what: what.to_owned(), after });
            }
            Err(HypervisorError::Tool { reason, .. }) => {
                return Err(HypervisorError::Tool { command: what.to_owned(), reason });
            }
            other => other?,
        };
        answer.error().map_or(Ok(answer.stdout), |reason| Err(self.refused(what, reason)))
    }

    /// VirtualBox would say only that the user cannot log in.
    fn check_password(&self) -> Result<(), HypervisorError> {
        let path = &self.login.password_file;
        match exposure(path).map_err(HypervisorError::file("read", path))? {
            None => Ok(()),
            Some(mode) => {
                let what = IdentityError::KeyExposed { path: path.clone(), mode }.to_string();
                Err(HypervisorError::Unsupported { what })
            }
        }
    }

    fn refused(&self, command: &str, reason: String) -> HypervisorError {
        HypervisorError::Refused { vm: self.manage.vm().to_owned(), command: command.to_owned(), reason }
    }
}

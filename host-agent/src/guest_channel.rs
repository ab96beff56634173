//! Host agent -> guest agent: one request at a time over the VM's virtio-serial port.
//!
//! Every wait is bounded. A request that was given up may still be answered later: its sequence tells
//! that the answer is not the one waited for. Sequences begin at the clock's nanoseconds, so that the
//! answer to a request of an earlier host agent is not mistaken either.
//!
//! A guest may be hostile. It can answer wrongly, late or not at all, and that costs its own VM the snapshot; what it
//! costs the host is bounded: [`Pace::answer`] per request, [`MAX_ANSWER_BYTES`] to read and to search for frames in, and
//! [`MAX_WORDS`] characters of its words.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};
use unasnap_protocol::access::{Refusal, Said, Turn};
use unasnap_protocol::control::{Failure, FailureKind, Phase};
use unasnap_protocol::frame::{Decoder, HEADER_BYTES, MAX_GUEST_PAYLOAD};
use unasnap_protocol::guest::{
    Epoch, Flip, GuestReply, GuestRequest, Identity, Located, Prefix, ReplyHead, RequestHead, SetMembers,
    StartHooks, WordState,
};

use crate::clock::unix_ns;
use crate::fault_point;

/// What may be asked of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// How long an answer may take.
    pub answer: Duration,
    /// How long an answer holds good where it is only to be known whether somebody answers.
    pub holds: Duration,
}

impl Pace {
    /// Of a port. An emulated, busy guest needs some milliseconds.
    pub const PORT: Self = Self { answer: Duration::from_secs(2), holds: Duration::ZERO };
    /// Where the hypervisor runs a program in the guest for every request.
    pub const CALLS: Self = Self { answer: Duration::from_secs(6), holds: Duration::from_secs(10) };
}

/// Most bytes that are read until an answer must have been among them: a frame of the largest size, and what answers to
/// requests that were given up and a restored port may leave before it.
pub const MAX_ANSWER_BYTES: usize = 4 * (HEADER_BYTES + MAX_GUEST_PAYLOAD);
/// Most characters of what a guest says that are handed on.
pub const MAX_WORDS: usize = 300;

/// Why the guest agent did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The port cannot be opened.
    #[error("the guest channel {path} cannot be opened ({source}); is the VM's process alive?")]
    Unreachable {
        /// The socket of the port.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// No answer in time.
    #[error("the guest agent did not answer {request} in {} ms; is unasnap-guest running in the VM?", limit.as_millis())]
    Silent {
        /// Name of the request.
        request: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// Bytes without end.
    #[error(
        "the guest sent {MAX_ANSWER_BYTES} bytes and no answer to {request} among them; look at what writes to the port in the VM"
    )]
    Floods {
        /// Name of the request.
        request: &'static str,
    },
    /// The word stands elsewhere.
    #[error("the member's word stands at send {} receive {}: it has advanced by itself or was never prepared", .0.send, .0.receive)]
    Late(WordState),
    /// The guest says why not.
    #[error("the guest agent refused {request}: {why}")]
    Refused {
        /// Name of the request.
        request: &'static str,
        /// Its words.
        why: String,
    },
}

impl GuestError {
    /// As it goes to the coordinator.
    #[must_use]
    pub fn during(&self, phase: Phase) -> Failure {
        let kind = if matches!(self, Self::Late(_)) { FailureKind::LateCut } else { FailureKind::GuestAgent };
        Failure::new(kind, phase, self.to_string())
    }
}

/// The channel to one VM's guest agent. It opens itself when it is needed.
#[derive(Debug)]
pub struct GuestChannel {
    path: PathBuf,
    pace: Pace,
    incarnation: u64,
    sequence: u64,
    /// When the agent did last what it was asked.
    heard: Option<Instant>,
    stream: Option<UnixStream>,
    decoder: Decoder,
}

impl GuestChannel {
    /// A channel over the socket at `path`; nothing is opened yet.
    #[must_use]
    pub fn new(path: PathBuf, pace: Pace, incarnation: u64) -> Self {
        let decoder = Decoder::resync(MAX_GUEST_PAYLOAD);
        Self { path, pace, incarnation, sequence: unix_ns(), heard: None, stream: None, decoder }
    }

    /// Need nobody ask whether somebody answers, because somebody did a moment ago?
    #[must_use]
    pub fn was_heard(&self) -> bool {
        self.heard.is_some_and(|heard| heard.elapsed() < self.pace.holds)
    }

    /// Who is there?
    ///
    /// # Errors
    /// See [`GuestError`]; so for all requests.
    pub async fn identify(&mut self) -> Result<Identity, GuestError> {
        match self.ask(GuestRequest::Identify(())).await? {
            GuestReply::Identity(identity) => Ok(identity),
            other => Err(unexpected("Identify", &other)),
        }
    }

    /// Replaces the member table; the lease and the code points are protocol.md's defaults.
    pub async fn set_members(&mut self, members: SetMembers) -> Result<(), GuestError> {
        self.done(GuestRequest::SetMembers(members)).await
    }

    /// Sets the word, whatever it was.
    pub async fn set_word(&mut self, word: WordState) -> Result<(), GuestError> {
        self.done(GuestRequest::SetWord(word)).await
    }

    /// From now on uncoloured packets from members are dropped.
    pub async fn set_strict(&mut self, epoch: Epoch) -> Result<(), GuestError> {
        self.done(GuestRequest::SetStrict(epoch)).await
    }

    /// The send half.
    pub async fn flip_send(&mut self, from: Epoch) -> Result<(), GuestError> {
        self.done(GuestRequest::FlipSend(Flip { from, to: from + 1 })).await
    }

    /// The receive half.
    pub async fn flip_receive(&mut self, from: Epoch) -> Result<(), GuestError> {
        self.done(GuestRequest::FlipReceive(Flip { from, to: from + 1 })).await
    }

    /// Fails unless programs, maps and word are as they must be.
    pub async fn self_check(&mut self) -> Result<(), GuestError> {
        match self.ask(GuestRequest::SelfCheck(())).await? {
            GuestReply::Health(problems) if problems.is_empty() => Ok(()),
            GuestReply::Health(problems) => {
                Err(GuestError::Refused { request: "SelfCheck", why: words(&problems.join("; ")) })
            }
            other => Err(unexpected("SelfCheck", &other)),
        }
    }

    /// How many connections of this VM a restore will break.
    pub async fn count_outside(&mut self) -> Result<u32, GuestError> {
        match self.ask(GuestRequest::CountOutside(())).await? {
            GuestReply::Outside(connections) => Ok(connections),
            other => Err(unexpected("CountOutside", &other)),
        }
    }

    /// Where in its RAM the word is.
    pub async fn locate_word(&mut self) -> Result<Located, GuestError> {
        match self.ask(GuestRequest::LocateWord(())).await? {
            GuestReply::Located(located) => Ok(located),
            other => Err(unexpected("LocateWord", &other)),
        }
    }

    /// What a restored guest cannot know by itself.
    pub async fn start_hooks(&mut self, hooks: StartHooks) -> Result<(), GuestError> {
        self.done(GuestRequest::StartHooks(hooks)).await
    }

    /// A turn of an operator's conversation. What does not answer it is not believed.
    pub async fn access(&mut self, turn: &Turn) -> Result<Said, GuestError> {
        match self.ask(GuestRequest::Access(turn.clone())).await? {
            GuestReply::Access(Said::Refused(refusal)) => {
                Ok(Said::Refused(Refusal { text: words(&refusal.text), ..refusal }))
            }
            GuestReply::Access(said) if said.fits(&turn.ask) => Ok(said),
            other => Err(unexpected("Access", &other)),
        }
    }

    async fn done(&mut self, request: GuestRequest) -> Result<(), GuestError> {
        let name = request.name();
        match self.ask(request).await? {
            GuestReply::Done(()) | GuestReply::Word(_) => Ok(()),
            other => Err(unexpected(name, &other)),
        }
    }

    async fn ask(&mut self, request: GuestRequest) -> Result<GuestReply, GuestError> {
        let name = request.name();
        self.sequence += 1;
        let head = RequestHead { sequence: self.sequence, incarnation: self.incarnation };
        let deadline = Instant::now() + self.pace.answer;
        let answer = timeout_at(deadline, self.exchange_at_points(name, &request.encode(&head))).await;
        let reply = match answer {
            Ok(Ok(Some(reply))) => reply,
            Ok(Ok(None)) => {
                // What it has written meanwhile goes with the connection.
                self.stream = None;
                return Err(GuestError::Floods { request: name });
            }
            Ok(Err(source)) => {
                self.stream = None;
                return Err(GuestError::Unreachable { path: self.path.clone(), source });
            }
            Err(_) => return Err(GuestError::Silent { request: name, limit: self.pace.answer }),
        };
        match reply {
            GuestReply::Late(word) => Err(GuestError::Late(word)),
            GuestReply::Failed(why) => Err(GuestError::Refused { request: name, why: words(&why) }),
            GuestReply::OldIncarnation(newest) => {
                let why = format!("incarnation {} has ended; the guest has seen {newest}", self.incarnation);
                Err(GuestError::Refused { request: name, why })
            }
            reply => {
                self.heard = Some(Instant::now());
                Ok(reply)
            }
        }
    }

    async fn exchange_at_points(
        &mut self,
        name: &'static str,
        frame: &[u8],
    ) -> std::io::Result<Option<GuestReply>> {
        fault_point::before("ask", name).await?;
        let reply = self.exchange(frame).await?;
        fault_point::after("ask", name).await?;
        Ok(reply)
    }

    /// The answer; `None` when there is none among the bytes that it may be among.
    async fn exchange(&mut self, frame: &[u8]) -> std::io::Result<Option<GuestReply>> {
        if self.stream.is_none() {
            self.decoder = Decoder::resync(MAX_GUEST_PAYLOAD);
            self.stream = Some(UnixStream::connect(&self.path).await?);
        }
        let Self { stream: Some(stream), decoder, sequence, .. } = self else {
            return Err(std::io::ErrorKind::NotConnected.into());
        };
        stream.write_all(frame).await?;
        let mut buffer = [0; 4096];
        let (mut count, mut warned) = (0, false);
        while count < MAX_ANSWER_BYTES {
            while let Ok(Some(frame)) = decoder.next_frame() {
                match GuestReply::decode(&frame) {
                    Ok((ReplyHead { sequence: answered }, reply)) if answered == *sequence => {
                        return Ok(Some(reply));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        // One line of log per request: the guest decides how many such frames come.
                        if !std::mem::replace(&mut warned, true) {
                            tracing::warn!(%error, "the guest agent sent something else than a reply");
                        }
                    }
                }
            }
            match stream.read(&mut buffer).await? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                read => {
                    decoder.push(&buffer[..read]);
                    count += read;
                    // Searching for frames takes time, and other VMs are waiting.
                    tokio::task::yield_now().await;
                }
            }
        }
        Ok(None)
    }
}

/// What a guest says, fit for logs and terminals: one line, not long, nothing that moves a cursor.
fn words(text: &str) -> String {
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    text.chars().take(MAX_WORDS).map(plain).collect()
}

fn unexpected(request: &'static str, reply: &GuestReply) -> GuestError {
    GuestError::Refused { request, why: format!("it answered {}, which is no answer to that", reply.name()) }
}

/// Protocol.md's defaults around the members of a deployment.
#[must_use]
pub fn member_table(prefixes: Vec<Prefix>) -> SetMembers {
    SetMembers { prefixes, code_points: [3, 5, 7], future_lease_ms: 2000 }
}

//! The QEMU machine protocol: JSON lines over a unix socket.
//!
//! One task owns the socket; [`Qmp::execute`] hands it a command and waits for the answer with the same id.
//! So a future that is dropped in the middle of a command never leaves half a line on the wire. Of the events
//! only the last status of a migration is kept: whatever else matters is asked for.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

use self::line::{Line, Refusal};
use super::super::HypervisorError;

mod line;
use crate::fault_point;

/// Longest line that is accepted, bytes; `query-qmp-schema`, which nobody asks for, is the only longer answer.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// How long QEMU may take to answer one command.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection to the monitor of one QEMU. QEMU serves one client at a time.
#[derive(Debug)]
pub(super) struct Qmp {
    vm: String,
    log: PathBuf,
    requests: mpsc::Sender<Request>,
    migration: watch::Receiver<String>,
}

/// Commands that are being carried out.
pub(super) struct Begun<'a> {
    qmp: &'a Qmp,
    answers: VecDeque<(&'static str, oneshot::Receiver<Answer>)>,
}

impl Begun<'_> {
    /// When the next of them had been carried out; `None` behind the last.
    ///
    /// # Errors
    /// As of [`Qmp::execute`].
    pub(super) async fn next(&mut self) -> Result<Option<Instant>, HypervisorError> {
        let Some((command, answer)) = self.answers.pop_front() else { return Ok(None) };
        self.qmp.answer(command, Some(answer)).await.map(|(instant, _)| Some(instant))
    }
}

/// A command and its arguments.
pub(super) type Command = (&'static str, Value);

/// Commands that go out in one piece, and perhaps a descriptor with the first of them.
#[derive(Debug)]
struct Request {
    commands: Vec<Command>,
    descriptor: Option<OwnedFd>,
    answers: Vec<oneshot::Sender<Answer>>,
}

/// What became of a command, and when that was known.
type Answer = (Instant, Result<Value, Refusal>);

impl Qmp {
    /// Connects and leaves negotiation mode.
    pub(super) async fn connect(vm: &str, socket: &Path, log: &Path) -> Result<Self, HypervisorError> {
        let gone = |what: String| HypervisorError::Gone { vm: vm.to_owned(), what, log: log.to_owned() };
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|error| gone(format!("connecting to {}: {error}", socket.display())))?;
        let (reader, writer) = stream.into_split();
        let mut lines = BufReader::new(reader);
        match tokio::time::timeout(PATIENCE, read_line(&mut lines)).await {
            Ok(Ok(Some(_greeting))) => {}
            Ok(other) => return Err(gone(format!("no greeting from the monitor: {other:?}"))),
            Err(_) => {
                let what = "the greeting of the monitor (another program may be connected to it)".to_owned();
                return Err(HypervisorError::TimedOut { vm: vm.to_owned(), what, after: PATIENCE });
            }
        }
        let (requests, inbox) = mpsc::channel(4);
        let (status, migration) = watch::channel(String::new());
        tokio::spawn(serve(lines, writer, inbox, status));
        let qmp = Self { vm: vm.to_owned(), log: log.to_owned(), requests, migration };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs one command.
    ///
    /// # Errors
    /// `Refused` with QEMU's words, `TimedOut`, or `Gone` when the process ended.
    pub(super) async fn execute(
        &self,
        command: &'static str,
        arguments: Value,
    ) -> Result<Value, HypervisorError> {
        let mut answers = self.hand_over(vec![(command, arguments)], None).await;
        self.answer(command, answers.pop()).await.map(|(_, value)| value)
    }

    /// Runs one command that takes a descriptor.
    ///
    /// # Errors
    /// As of [`execute`](Self::execute).
    pub(super) async fn execute_with_fd(
        &self,
        command: &'static str,
        arguments: Value,
        descriptor: OwnedFd,
    ) -> Result<Value, HypervisorError> {
        let mut answers = self.hand_over(vec![(command, arguments)], Some(descriptor)).await;
        self.answer(command, answers.pop()).await.map(|(_, value)| value)
    }

    /// Begins commands one after the other without a round trip between them; QEMU does not leave one out because
    /// an earlier one failed.
    pub(super) async fn begin(&self, commands: Vec<Command>) -> Begun<'_> {
        let names: Vec<&'static str> = commands.iter().map(|(command, _)| *command).collect();
        let answers = self.hand_over(commands, None).await;
        Begun { qmp: self, answers: names.into_iter().zip(answers).collect() }
    }

    /// Waits until an event tells that the migration has this status; the caller bounds the wait.
    ///
    /// # Errors
    /// `Refused` when the migration ends instead, `Gone` when QEMU does.
    pub(super) async fn migration_status(&self, wanted: &str) -> Result<(), HypervisorError> {
        let mut migration = self.migration.clone();
        let settled = |status: &String| status == wanted || matches!(status.as_str(), "failed" | "completed");
        match migration.wait_for(settled).await.as_deref() {
            Ok(status) if status == wanted => Ok(()),
            Ok(status) => Err(HypervisorError::Refused {
                vm: self.vm.clone(),
                command: "migrate".to_owned(),
                reason: format!("the migration has {status}"),
            }),
            Err(_) => Err(self.gone("migrate")),
        }
    }

    async fn hand_over(
        &self,
        commands: Vec<Command>,
        descriptor: Option<OwnedFd>,
    ) -> Vec<oneshot::Receiver<Answer>> {
        for (command, _) in &commands {
            if let Err(error) = fault_point::before("qmp", command).await {
                return commands.iter().map(|_| refused(&error)).collect();
            }
        }
        let (answers, receivers) = commands.iter().map(|_| oneshot::channel()).unzip();
        // If nobody takes it, the answers' senders are dropped, and that is what the receivers tell.
        let _ = self.requests.send(Request { commands, descriptor, answers }).await;
        receivers
    }

    async fn answer(
        &self,
        command: &'static str,
        answer: Option<oneshot::Receiver<Answer>>,
    ) -> Result<(Instant, Value), HypervisorError> {
        let Some(answer) = answer else { return Err(self.gone(command)) };
        let vm = || self.vm.clone();
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok((instant, Ok(value)))) => match fault_point::after("qmp", command).await {
                Ok(()) => Ok((instant, value)),
                Err(error) => Err(HypervisorError::Refused {
                    vm: vm(),
                    command: command.to_owned(),
                    reason: error.to_string(),
                }),
            },
            Ok(Ok((_, Err(refusal)))) => {
                Err(HypervisorError::Refused { vm: vm(), command: command.to_owned(), reason: refusal.desc })
            }
            Ok(Err(_)) => Err(self.gone(command)),
            Err(_) => Err(HypervisorError::TimedOut { vm: vm(), what: command.to_owned(), after: PATIENCE }),
        }
    }

    fn gone(&self, command: &str) -> HypervisorError {
        HypervisorError::Gone {
            vm: self.vm.clone(),
            what: format!("during {command}"),
            log: self.log.clone(),
        }
    }

    /// Runs a command and picks one text out of its answer, empty when it is not there.
    pub(super) async fn text(&self, command: &'static str, field: &str) -> Result<String, HypervisorError> {
        let value = self.execute(command, json!({})).await?;
        Ok(value[field].as_str().unwrap_or_default().to_owned())
    }
}

/// The answer to a command that a test does not want to be carried out.
fn refused(error: &io::Error) -> oneshot::Receiver<Answer> {
    let (sender, receiver) = oneshot::channel();
    // The other end is still in our hands.
    let _ = sender.send((Instant::now(), Err(Refusal { desc: error.to_string() })));
    receiver
}

/// Owns the socket until either end is gone; then every waiting command learns it by its dropped sender.
async fn serve(
    mut lines: BufReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
    mut inbox: mpsc::Receiver<Request>,
    migration: watch::Sender<String>,
) {
    let (sender, mut received) = mpsc::channel(16);
    // Reading a line is not safe to cancel, so it has a task of its own.
    let reading = tokio::spawn(async move {
        while let Ok(Some(line)) = read_line(&mut lines).await {
            if sender.send(line).await.is_err() {
                break;
            }
        }
    });
    let mut waiting: HashMap<u64, oneshot::Sender<Answer>> = HashMap::new();
    let mut next_id = 0_u64;
    loop {
        tokio::select! {
            request = inbox.recv() => {
                let Some(Request { commands, descriptor, answers }) = request else { break };
                let mut text = String::new();
                for ((command, arguments), answer) in commands.into_iter().zip(answers) {
                    next_id += 1;
                    waiting.insert(next_id, answer);
                    text += &json!({"execute": command, "arguments": arguments, "id": next_id}).to_string();
                    text.push('\n');
                }
                if write(&mut writer, text.as_bytes(), descriptor).await.is_err() {
                    break;
                }
            }
            line = received.recv() => {
                let Some(line) = line else { break };
                if line.event.as_deref() == Some("MIGRATION") {
                    migration.send_replace(line.data["status"].as_str().unwrap_or_default().to_owned());
                }
                if let Some(answer) = line.id.and_then(|id| waiting.remove(&id)) {
                    // The one who asked may have gone away; that is his right.
                    let _ = answer.send((Instant::now(), line.error.map_or(Ok(line.value.unwrap_or_default()), Err)));
                }
            }
        }
    }
    reading.abort();
}

/// Writes everything, the descriptor with the first byte.
async fn write(writer: &mut OwnedWriteHalf, text: &[u8], descriptor: Option<OwnedFd>) -> io::Result<()> {
    let Some(descriptor) = descriptor else { return writer.write_all(text).await };
    let stream: &UnixStream = writer.as_ref();
    let descriptors = [descriptor.as_raw_fd()];
    let send = || {
        let messages = [ControlMessage::ScmRights(&descriptors)];
        let parts = [IoSlice::new(text)];
        Ok(sendmsg::<()>(stream.as_raw_fd(), &parts, &messages, MsgFlags::empty(), None)?)
    };
    let sent = stream.async_io(Interest::WRITABLE, send).await?;
    writer.write_all(&text[sent..]).await
}

/// `None` at the end of the stream.
async fn read_line(lines: &mut BufReader<OwnedReadHalf>) -> std::io::Result<Option<Line>> {
    let mut text = Vec::new();
    lines.take(MAX_LINE_BYTES).read_until(b'\n', &mut text).await?;
    match text.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(Line::read(&text)?)),
        Some(_) => Err(std::io::Error::other("the monitor's line is cut off or longer than 1 MiB")),
    }
}

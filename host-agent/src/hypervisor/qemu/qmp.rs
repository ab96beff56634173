//! The QEMU machine protocol: JSON lines over a unix socket.
//!
//! One task owns the socket; [`Qmp::execute`] hands it a command and waits for the answer with the same id.
//! So a future that is dropped in the middle of a command never leaves half a line on the wire. Events are
//! skipped: whatever matters is asked for.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use super::super::HypervisorError;

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
}

#[derive(Debug)]
struct Request {
    command: &'static str,
    arguments: Value,
    answer: oneshot::Sender<Result<Value, Refusal>>,
}

/// QEMU's own words about a command.
#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

/// Any line that QEMU sends after its greeting.
#[derive(Debug, Deserialize)]
struct Line {
    id: Option<u64>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
}

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
        tokio::spawn(serve(lines, writer, inbox));
        let qmp = Self { vm: vm.to_owned(), log: log.to_owned(), requests };
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
        let (answer, reply) = oneshot::channel();
        let exchange = async {
            self.requests.send(Request { command, arguments, answer }).await.ok()?;
            reply.await.ok()
        };
        let vm = || self.vm.clone();
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(Some(Ok(value))) => Ok(value),
            Ok(Some(Err(refusal))) => {
                Err(HypervisorError::Refused { vm: vm(), command: command.to_owned(), reason: refusal.desc })
            }
            Ok(None) => Err(HypervisorError::Gone {
                vm: vm(),
                what: format!("during {command}"),
                log: self.log.clone(),
            }),
            Err(_) => Err(HypervisorError::TimedOut { vm: vm(), what: command.to_owned(), after: PATIENCE }),
        }
    }

    /// Runs a command and picks one text out of its answer, empty when it is not there.
    pub(super) async fn text(&self, command: &'static str, field: &str) -> Result<String, HypervisorError> {
        let value = self.execute(command, json!({})).await?;
        Ok(value[field].as_str().unwrap_or_default().to_owned())
    }
}

/// Owns the socket until either end is gone; then every waiting command learns it by its dropped sender.
async fn serve(
    mut lines: BufReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
    mut inbox: mpsc::Receiver<Request>,
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
    let mut waiting: HashMap<u64, oneshot::Sender<Result<Value, Refusal>>> = HashMap::new();
    let mut next_id = 0_u64;
    loop {
        tokio::select! {
            request = inbox.recv() => {
                let Some(Request { command, arguments, answer }) = request else { break };
                next_id += 1;
                waiting.insert(next_id, answer);
                let mut line = json!({"execute": command, "arguments": arguments, "id": next_id}).to_string();
                line.push('\n');
                if writer.write_all(line.as_bytes()).await.is_err() {
                    break;
                }
            }
            line = received.recv() => {
                let Some(line) = line else { break };
                if let Some(answer) = line.id.and_then(|id| waiting.remove(&id)) {
                    // The one who asked may have gone away; that is his right.
                    let _ = answer.send(line.error.map_or(Ok(line.value.unwrap_or_default()), Err));
                }
            }
        }
    }
    reading.abort();
}

/// `None` at the end of the stream.
async fn read_line(lines: &mut BufReader<OwnedReadHalf>) -> std::io::Result<Option<Line>> {
    let mut text = Vec::new();
    lines.take(MAX_LINE_BYTES).read_until(b'\n', &mut text).await?;
    match text.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(serde_json::from_slice(&text)?)),
        Some(_) => Err(std::io::Error::other("the monitor's line is cut off or longer than 1 MiB")),
    }
}

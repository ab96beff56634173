//! `unasnap vm exec`: a command in one guest or in many.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Stderr, Stdout, stderr, stdout};
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::time::timeout;
use unasnap_protocol::access::{Ask, CommandLine, Exit, Said, Stream};
use unasnap_protocol::control::{Failure, FailureKind, Phase};
use unasnap_protocol::name::Name;
use unasnap_protocol::power::{Pattern, Patterns};

use super::sink::Sink;
use super::{Conversations, kind};
use crate::cli::output;
use crate::config::ClientConfig;
use crate::failure::{CliError, Kind, Result};

/// What comes before the codes of our own errors.
pub const OUR_CODES: u8 = 200;
/// How long an operator waits beyond the command's time.
const GRACE: Duration = Duration::from_secs(20);
/// Most bytes of a stream in `--json`.
const MAX_KEPT: usize = 1 << 20;
/// As of a program that writes to a pipe that nobody reads: 128 and SIGPIPE.
const NOBODY_READS: u8 = 141;

/// What became of a command in one guest.
#[derive(Debug, Serialize)]
struct Outcome {
    vm: Name,
    host: Name,
    exit_code: Option<i32>,
    signal: Option<i32>,
    timed_out: bool,
    stdout: String,
    stderr: String,
    stdout_truncated: bool,
    stderr_truncated: bool,
    problem: Option<String>,
    ms: f64,
}

#[derive(Serialize)]
struct Report {
    exec: Outcomes,
}

#[derive(Serialize)]
struct Outcomes {
    vms: Vec<Outcome>,
}

/// Where the streams of a guest go.
enum Output {
    Shown { out: Sink<Stdout>, err: Sink<Stderr> },
    Kept { out: Vec<u8>, err: Vec<u8> },
}

impl Output {
    fn take(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        match (self, stream) {
            (Self::Shown { out, .. }, Stream::Out) => out.take(bytes),
            (Self::Shown { err, .. }, Stream::Err) => err.take(bytes),
            (Self::Kept { out, .. }, Stream::Out) => keep(out, bytes),
            (Self::Kept { err, .. }, Stream::Err) => keep(err, bytes),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Shown { out, err } => out.finish().and_then(|()| err.finish()),
            Self::Kept { .. } => Ok(()),
        }
    }
}

/// One byte more than is shown tells that there was more.
fn keep(kept: &mut Vec<u8>, bytes: &[u8]) -> io::Result<()> {
    let room = (MAX_KEPT + 1).saturating_sub(kept.len());
    kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    Ok(())
}

/// A command under way.
struct Exec {
    conversations: Conversations,
    /// Most bytes of a turn, of each guest.
    chunks: BTreeMap<Name, u16>,
    outputs: BTreeMap<Name, Output>,
    ends: BTreeMap<Name, (std::result::Result<Exit, Failure>, Duration)>,
    begun: Instant,
}

/// `vm exec`; answers the exit code.
pub async fn exec(
    config: &ClientConfig,
    vms: Pattern,
    words: Vec<OsString>,
    limit_s: u32,
    json: bool,
) -> Result<u8> {
    let words: Vec<Vec<u8>> = words.into_iter().map(OsString::into_vec).collect();
    let command = CommandLine::try_from(words).map_err(|error| CliError::usage(error.to_string()))?;
    let is_for_many = vms.to_string().contains(['*', '?']);
    let vms = Patterns::try_from(vec![vms]).map_err(|error| CliError::usage(error.to_string()))?;
    let begun = Instant::now();
    let conversations = Conversations::open(config, vms, Ask::Exec(command, limit_s)).await?;
    let output = |vm: &Name| {
        let prefix = is_for_many.then(|| format!("{vm}: "));
        if json {
            Output::Kept { out: Vec::new(), err: Vec::new() }
        } else {
            Output::Shown { out: Sink::new(stdout(), prefix.clone()), err: Sink::new(stderr(), prefix) }
        }
    };
    let outputs = conversations.places.iter().map(|place| (place.vm.clone(), output(&place.vm))).collect();
    let mut exec = Exec { conversations, chunks: BTreeMap::new(), outputs, ends: BTreeMap::new(), begun };
    let limit = Duration::from_secs(u64::from(limit_s)) + GRACE;
    match timeout(limit, exec.converse()).await {
        Ok(Err(Stopped::NobodyReads)) => return Ok(NOBODY_READS),
        Ok(Err(Stopped::Error(error))) => return Err(error),
        Ok(Ok(())) => {}
        Err(_) => exec.give_up(),
    }
    exec.report(limit_s, json)
}

/// Why not all guests were heard to their end.
enum Stopped {
    NobodyReads,
    Error(CliError),
}

impl From<CliError> for Stopped {
    fn from(error: CliError) -> Self {
        Self::Error(error)
    }
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Self::NobodyReads,
            _ => Self::Error(CliError::internal(format!("cannot write the command's output: {error}"))),
        }
    }
}

impl Exec {
    async fn converse(&mut self) -> std::result::Result<(), Stopped> {
        while !self.conversations.is_over() {
            let (vm, said) = self.conversations.next().await?;
            match said {
                Ok(Said::Opened(opened)) => {
                    self.chunks.insert(vm.clone(), opened.chunk);
                    self.go_on(&vm).await?;
                }
                Ok(Said::Output(stream, chunk)) => {
                    if let Some(output) = self.outputs.get_mut(&vm) {
                        output.take(stream, chunk.bytes())?;
                    }
                    self.go_on(&vm).await?;
                }
                Ok(Said::Exited(exit)) => self.end(vm, Ok(exit))?,
                Ok(_) => {
                    let text = "its guest agent answered something else than was asked";
                    self.end(vm, Err(Failure::new(FailureKind::GuestAgent, Phase::Access, text)))?;
                }
                Err(failure) => self.end(vm, Err(failure))?,
            }
        }
        Ok(())
    }

    async fn go_on(&mut self, vm: &Name) -> Result<()> {
        let room = self.chunks.get(vm).copied().unwrap_or(1);
        self.conversations.ask(vm, Ask::More(room)).await
    }

    fn end(&mut self, vm: Name, how: std::result::Result<Exit, Failure>) -> io::Result<()> {
        self.conversations.end(&vm);
        let finished = self.outputs.get_mut(&vm).map_or(Ok(()), Output::finish);
        self.ends.insert(vm, (how, self.begun.elapsed()));
        finished
    }

    /// Those who have not ended are not waited for any more.
    fn give_up(&mut self) {
        for place in &self.conversations.places {
            let text =
                format!("it has not ended {} s after its time; its guest does not obey", GRACE.as_secs());
            let failure = Failure::new(FailureKind::TimedOut, Phase::Access, text);
            self.ends.entry(place.vm.clone()).or_insert((Err(failure), self.begun.elapsed()));
        }
    }

    /// The worst exit code; errors of ours in words.
    fn report(mut self, limit_s: u32, json: bool) -> Result<u8> {
        let (mut worst, mut kinds, mut problems, mut outcomes) = (0, Vec::new(), Vec::new(), Vec::new());
        for place in &self.conversations.places {
            let Some((how, took)) = self.ends.remove(&place.vm) else { continue };
            let mut outcome = Outcome {
                vm: place.vm.clone(),
                host: place.host.clone(),
                exit_code: None,
                signal: None,
                timed_out: false,
                stdout: String::new(),
                stderr: String::new(),
                stdout_truncated: false,
                stderr_truncated: false,
                problem: None,
                ms: took.as_secs_f64() * 1e3,
            };
            let (code, kind) = match &how {
                Ok(Exit::Code(code)) => {
                    outcome.exit_code = Some(*code);
                    (u8::try_from(*code & 0xff).unwrap_or(u8::MAX), None)
                }
                Ok(Exit::Signal(signal)) => {
                    outcome.signal = Some(*signal);
                    (u8::try_from(128 + (*signal & 0x7f)).unwrap_or(u8::MAX), None)
                }
                Ok(Exit::TimedOut) => {
                    outcome.timed_out = true;
                    outcome.problem = Some(format!("it was killed after {limit_s} s (--timeout)"));
                    (OUR_CODES + Kind::TimedOut.code(), Some(Kind::TimedOut))
                }
                Err(failure) => {
                    let kind = kind(failure);
                    outcome.timed_out = kind == Kind::TimedOut;
                    outcome.problem = Some(failure.text.clone());
                    (OUR_CODES + kind.code(), Some(kind))
                }
            };
            worst = worst.max(code);
            kinds.extend(kind);
            if let Some(problem) = &outcome.problem {
                problems.push(format!("{} on {}: {problem}", outcome.vm, outcome.host));
            }
            if let Some(Output::Kept { out, err }) = self.outputs.remove(&place.vm) {
                (outcome.stdout, outcome.stdout_truncated) = text(out);
                (outcome.stderr, outcome.stderr_truncated) = text(err);
            }
            outcomes.push(outcome);
        }
        if json {
            output::json(&Report { exec: Outcomes { vms: outcomes } })?;
        }
        match kinds.into_iter().max_by_key(|kind| kind.code()) {
            None => Ok(worst),
            Some(kind) => Err(CliError::new(kind, problems.join("; ")).exiting(worst)),
        }
    }
}

fn text(mut bytes: Vec<u8>) -> (String, bool) {
    let is_truncated = bytes.len() > MAX_KEPT;
    bytes.truncate(MAX_KEPT);
    (String::from_utf8_lossy(&bytes).into_owned(), is_truncated)
}

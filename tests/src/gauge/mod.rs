//! What the benchmark does and asks inside a guest: a load that shows how long it stood still, counters of the kernel, the
//! guest agent's size, and commands. Outside, the same program observes what guests show.
//!
//! One JSON line each way on a TCP connection; any number of connections. It takes part in no snapshot: the address of
//! who asks is no member's.

pub mod load;
pub mod server;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::net::connect;
use load::Load;

/// Longest line either way, bytes.
const MAX_LINE: u64 = 64 * 1024;

/// What is asked of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Bear this load from now on. Answered by [`Answer::Done`].
    Load(Load),
    /// How long did whoever shows you events stand still at most since this was last asked? [`Answer::Gap`]
    Gap,
    /// What happened to TCP since boot? [`Answer::Tcp`]
    Tcp,
    /// How large and busy is the guest agent? [`Answer::Agent`]
    Agent,
    /// Run a shell command to its end. [`Answer::Ran`]
    Run(String),
}

/// The answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is so.
    Done,
    /// Milliseconds of the observer's clock; `None` when nobody has shown an event.
    Gap(Option<f64>),
    /// Counters of the guest's kernel.
    Tcp(Tcp),
    /// The guest agent.
    Agent(Agent),
    /// A command ended with this code.
    Ran(i32),
    /// It could not be done.
    Failed(String),
}

/// TCP's counters of a kernel, all connections together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tcp {
    /// Segments sent again (`RetransSegs`).
    pub retransmissions: u64,
    /// Retransmission time-outs (`TCPTimeouts`).
    pub timeouts: u64,
}

/// Size and processor time of the guest agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Resident memory, KiB.
    pub rss_kib: u64,
    /// The same with what is shared divided among those who share it, KiB.
    pub pss_kib: u64,
    /// Processor time since it started, milliseconds.
    pub cpu_ms: u64,
}

/// A connection to a guest's gauge.
#[derive(Debug)]
pub struct Gauge {
    stream: BufReader<TcpStream>,
}

impl Gauge {
    /// Connects, trying again until `patience` is over; an answer may then take as long again.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn connect(address: SocketAddr, patience: Duration) -> Result<Self> {
        let stream = connect("the guest's gauge", address, patience)?;
        stream.set_read_timeout(Some(patience)).context("setting a time limit")?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Asks and returns the answer, and how long it took.
    ///
    /// # Errors
    /// The connection broke, or the guest could not do it.
    pub fn ask(&mut self, request: &Request) -> Result<(Answer, Duration)> {
        let start = Instant::now();
        write_line(self.stream.get_mut(), request).context("asking the guest's gauge")?;
        match read_line(&mut self.stream).context("waiting for the guest's gauge")? {
            Some(Answer::Failed(reason)) => bail!("the guest could not {request:?}: {reason}"),
            Some(answer) => Ok((answer, start.elapsed())),
            None => bail!("the guest's gauge closed the connection instead of answering {request:?}"),
        }
    }

    /// Sets the load.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn load(&mut self, load: Load) -> Result<()> {
        self.ask(&Request::Load(load)).map(drop)
    }

    /// Runs a shell command, and says how long it took, the question's way included.
    ///
    /// # Errors
    /// As [`Self::ask`], or the command failed.
    pub fn run(&mut self, command: &str) -> Result<Duration> {
        match self.ask(&Request::Run(command.to_owned()))? {
            (Answer::Ran(0), took) => Ok(took),
            (other, _) => bail!("`{command}` in the guest: {other:?}"),
        }
    }
}

fn write_line(to: &mut impl Write, value: &impl Serialize) -> Result<()> {
    let line = serde_json::to_string(value)? + "\n";
    Ok(to.write_all(line.as_bytes())?)
}

/// The next line; `None` at the end.
fn read_line<T: for<'de> Deserialize<'de>>(from: &mut impl BufRead) -> Result<Option<T>> {
    let mut line = String::new();
    if from.take(MAX_LINE).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    serde_json::from_str(&line).with_context(|| format!("unexpected line {line:?}")).map(Some)
}

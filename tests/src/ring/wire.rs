//! What goes over the ring's two kinds of connection.
//!
//! Between neighbours: frames of exactly 24 bytes, little endian: kind (u64), number (u64), value (bits of an f64).
//! To the manager: one JSON object a line, at most [`MAX_LINE`] bytes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest accepted line on the manager's connection, in bytes.
pub const MAX_LINE: u64 = 16 * 1024;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// First frame of a connection: `number` is the sender's position.
    Hello,
    /// The token.
    Token,
    /// The exit round; `number` is that of the last token.
    Exit,
}

/// One frame between neighbours.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Token number, or the sender's position in a greeting.
    pub number: u64,
    /// State of the computation.
    pub value: f64,
}

impl Frame {
    /// Writes the frame in one piece.
    ///
    /// # Errors
    /// Whatever the connection met.
    pub fn write(&self, to: &mut impl Write) -> Result<()> {
        let kind: u64 = match self.kind {
            Kind::Hello => 0x5249_4e47,
            Kind::Token => 1,
            Kind::Exit => 2,
        };
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..].copy_from_slice(&self.value.to_bits().to_le_bytes());
        to.write_all(&bytes).context("sending to the successor")
    }

    /// Reads one frame.
    ///
    /// # Errors
    /// The connection's error, its end, or a kind that does not exist.
    pub fn read(from: &mut impl Read) -> Result<Self> {
        let mut words = [[0; 8]; 3];
        from.read_exact(words.as_flattened_mut()).context("receiving from the predecessor")?;
        let [kind, number, value] = words.map(u64::from_le_bytes);
        let kind = match kind {
            0x5249_4e47 => Kind::Hello,
            1 => Kind::Token,
            2 => Kind::Exit,
            other => {
                bail!("unknown frame kind {other:#x}: the stream lost its place or the peer is no ring node")
            }
        };
        Ok(Self { kind, number, value: f64::from_bits(value) })
    }
}

/// Node to manager.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromNode {
    /// I exist; my neighbours reach me at the address this comes from, on this port.
    Register {
        /// Name, unique in the ring.
        name: String,
        /// TCP port of the ring.
        port: u16,
    },
    /// Both neighbours are connected.
    Ready,
    /// The run ended well.
    Done(NodeStatistics),
    /// The run broke here.
    Failed {
        /// What was wrong.
        reason: String,
    },
}

/// What a node measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatistics {
    /// The node's name.
    pub name: String,
    /// Tokens received.
    pub received: u64,
    /// Longest time between two tokens, in milliseconds of the node's monotonic clock. That clock stands still
    /// while the node's own VM does, so this is what an application in the VM can notice.
    pub longest_gap_ms: f64,
    /// Number of the last token, from the exit round.
    pub last: u64,
    /// Bits of the value that came with it. A string, since JSON numbers are no 64-bit integers everywhere.
    pub value: String,
}

/// Manager to node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromManager {
    /// Your place in the ring.
    Assign {
        /// 0-based position.
        position: u64,
        /// Nodes in the ring.
        nodes: u64,
        /// Number of the last token.
        tokens: u64,
        /// Steps of work per token.
        work: u32,
        /// Name of the next node.
        successor: String,
        /// Its address.
        address: SocketAddr,
    },
    /// Go.
    Start,
}

/// A connection between node and manager.
#[derive(Debug)]
pub struct Lines {
    who: String,
    reader: BufReader<TcpStream>,
}

impl Lines {
    /// Wraps a connected stream; `who` is the peer's name in errors.
    pub fn new(who: impl Into<String>, stream: TcpStream) -> Self {
        Self { who: who.into(), reader: BufReader::new(stream) }
    }

    /// The peer's name in errors.
    pub fn who(&self) -> &str {
        &self.who
    }

    /// Names the peer, once it said who it is.
    pub fn rename(&mut self, who: impl Into<String>) {
        self.who = who.into();
    }

    /// The stream below, for time limits.
    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    /// Sends one message.
    ///
    /// # Errors
    /// Names the peer and what the connection met.
    pub fn send(&mut self, message: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(message).context("encoding")?;
        line.push(b'\n');
        self.reader.get_mut().write_all(&line).with_context(|| format!("sending to {}", self.who))
    }

    /// Receives one message.
    ///
    /// # Errors
    /// Names the peer: connection lost or closed, line too long, not a message.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = Vec::new();
        let mut limited = (&mut self.reader).take(MAX_LINE);
        limited.read_until(b'\n', &mut line).with_context(|| format!("receiving from {}", self.who))?;
        if line.is_empty() {
            bail!("{} closed the connection", self.who);
        }
        if line.last() != Some(&b'\n') {
            bail!("{} sent a line that is cut off or longer than {MAX_LINE} bytes", self.who);
        }
        serde_json::from_slice(&line)
            .with_context(|| format!("{} sent something that is no message", self.who))
    }
}

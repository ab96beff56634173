//! Commands run and files moved in guests, and the serial console read, for an operator.
//!
//! One conversation per VM, which the operator's command drives turn by turn. Coordinator and host agent hand turns on and
//! add what they know: who may, where the VM is, whether a snapshot needs the guest's port now.
//!
//! ```text
//! operator's command      coordinator          host agent                      guest agent
//!   Open {vms, ask} --------->|-- Turn 1 ---------->|-- Access (until answered) --->|  a worker begins
//!        <-- Said Opened -----|<------ Said --------|<------ NotYet ... Opened -----|
//!   Turn 2 {More} ----------->|-------------------->|------------------------------>|
//!        <-- Said Output -----|<--------------------|<------------------------------|  at most one chunk
//! ```
//!
//! | begins with | then | ends with |
//! |---|---|---|
//! | [`Ask::Exec`] | [`Ask::More`] for each [`Said::Output`] | [`Said::Exited`] |
//! | [`Ask::Put`] | [`Ask::Data`] for each [`Said::Taken`], [`Ask::End`] | [`Said::Done`] |
//! | [`Ask::Get`] | [`Ask::More`] for each [`Said::Data`] | [`Said::Done`] |
//!
//! A turn may be repeated any number of times and is carried out once. There is never more than one of a conversation under
//! way, and none carries more than [`CHUNK_BYTES`]: so little may stand before a message on which a snapshot waits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::control::{Envelope, Failure};
use crate::name::Name;
use crate::operator::Place;
use crate::power::Patterns;

/// Most bytes of a file or of output in one turn, and of a command line.
pub const CHUNK_BYTES: usize = 16 << 10;
/// The same where the guest's port is a serial line: a tenth of a second at 115200 baud.
pub const SLOW_CHUNK_BYTES: usize = 1 << 10;
/// Longest path, bytes: the kernel's limit without its NUL.
pub const MAX_PATH_BYTES: usize = 4095;
/// Longest time that a command or a file may be given, seconds.
pub const MAX_LIMIT_S: u32 = 86_400;
/// Most of a console that is shown, bytes.
pub const MAX_CONSOLE_BYTES: usize = 64 << 10;
/// Most VMs in which one command is run at once.
pub const MAX_VMS: usize = 256;

/// What a guest may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Run commands.
    Exec,
    /// Read and write files.
    Files,
}

impl Right {
    /// As in definitions and on command lines.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Files => "files",
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.label())
    }
}

impl FromStr for Right {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let known = [Self::Exec, Self::Files].into_iter().find(|right| right.label() == text);
        known.ok_or(Invalid("use exec or files"))
    }
}

/// What cannot be asked of a guest; the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(&'static str);

/// At most [`CHUNK_BYTES`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Chunk(Vec<u8>);

impl Chunk {
    /// What it holds.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for Chunk {
    type Error = Invalid;
    fn try_from(bytes: Vec<u8>) -> Result<Self, Invalid> {
        if bytes.len() <= CHUNK_BYTES { Ok(Self(bytes)) } else { Err(Invalid("a chunk has at most 16 KiB")) }
    }
}

impl From<Chunk> for Vec<u8> {
    fn from(chunk: Chunk) -> Self {
        chunk.0
    }
}

/// Content is nobody's business.
impl fmt::Debug for Chunk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes", self.0.len())
    }
}

/// A program and its arguments, as they are: no shell reads them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Vec<u8>>", into = "Vec<Vec<u8>>")]
pub struct CommandLine(Vec<Vec<u8>>);

impl CommandLine {
    /// The program.
    #[must_use]
    pub fn program(&self) -> &[u8] {
        self.0.first().map_or(&[], Vec::as_slice)
    }

    /// Its arguments.
    #[must_use]
    pub fn arguments(&self) -> &[Vec<u8>] {
        self.0.get(1..).unwrap_or_default()
    }
}

impl TryFrom<Vec<Vec<u8>>> for CommandLine {
    type Error = Invalid;
    fn try_from(words: Vec<Vec<u8>>) -> Result<Self, Invalid> {
        let bytes: usize = words.iter().map(|word| word.len() + 1).sum();
        if words.first().is_none_or(Vec::is_empty) {
            Err(Invalid("a command needs a program"))
        } else if bytes > CHUNK_BYTES {
            Err(Invalid(
                "a command line has at most 16 KiB; bring longer ones into the guest as a file (`unasnap vm put`)",
            ))
        } else if words.iter().any(|word| word.contains(&0)) {
            Err(Invalid("a command line has no NUL"))
        } else {
            Ok(Self(words))
        }
    }
}

impl From<CommandLine> for Vec<Vec<u8>> {
    fn from(command: CommandLine) -> Self {
        command.0
    }
}

/// Arguments may be secret, so that no log shows them.
impl fmt::Debug for CommandLine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = String::from_utf8_lossy(self.program());
        write!(formatter, "{program:?} with {} arguments", self.arguments().len())
    }
}

/// An absolute path of a file in a guest.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GuestPath(String);

impl GuestPath {
    /// As it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for GuestPath {
    type Error = Invalid;
    fn try_from(path: String) -> Result<Self, Invalid> {
        let names_a_file = path.rsplit('/').next().is_some_and(|name| !matches!(name, "" | "." | ".."));
        if !path.starts_with('/') || !names_a_file {
            Err(Invalid("a path in a guest is absolute and names a file, e.g. /etc/motd"))
        } else if path.len() > MAX_PATH_BYTES || path.contains('\0') {
            Err(Invalid("a path has at most 4095 bytes and no NUL"))
        } else {
            Ok(Self(path))
        }
    }
}

impl FromStr for GuestPath {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        text.to_owned().try_into()
    }
}

impl From<GuestPath> for String {
    fn from(path: GuestPath) -> Self {
        path.0
    }
}

impl fmt::Debug for GuestPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a path")
    }
}

/// What is kept of a file besides its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Permission bits, as of chmod(2).
    pub mode: u32,
    /// Its length.
    pub bytes: u64,
}

/// blake3.
pub type Digest = [u8; 32];

/// What an operator wants of a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Ask {
    /// Run this, for so many seconds at most. Answered by `Opened`.
    Exec(CommandLine, u32),
    /// Make or replace this file. Answered by `Opened`.
    Put(GuestPath, File),
    /// Read this file. Answered by `Opened` with what it is.
    Get(GuestPath),
    /// So many bytes at most. Answered by `Output` or `Exited`, or by `Data` or `Done`.
    More(u16),
    /// The next bytes of the file. Answered by `Taken`.
    Data(Chunk),
    /// That was all of the file, and this is its digest. Answered by `Done`.
    End(Digest),
    /// Nothing more is wanted: what runs is killed, what was half written goes. Answered by `Closed`.
    Close,
}

impl Ask {
    /// What has to be allowed, if this begins a conversation.
    #[must_use]
    pub fn right(&self) -> Option<Right> {
        match self {
            Self::Exec(..) => Some(Right::Exec),
            Self::Put(..) | Self::Get(_) => Some(Right::Files),
            Self::More(_) | Self::Data(_) | Self::End(_) | Self::Close => None,
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// The conversation, unique for all of a guest's incarnation.
    pub session: u64,
    /// Counts up from 1. The same number again is the same turn.
    pub number: u32,
    /// What is wanted.
    pub ask: Ask,
}

/// Where a command writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It was killed because its time was over.
    TimedOut,
}

/// A conversation that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Most bytes of one turn here.
    pub chunk: u16,
    /// Of [`Ask::Get`].
    pub file: Option<File>,
}

/// Why a guest does not do it: stable over releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// Its agent was not started with this right.
    NotAllowed,
    /// No such file or program, or none that can be used so.
    NotFound,
    /// The guest's disk is full.
    NoSpace,
    /// It does not know the conversation (any more).
    Gone,
    /// It has as many conversations as it may.
    Busy,
    /// Anything else.
    Failed,
}

/// Why a guest does not do it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Stable code.
    pub kind: RefusalKind,
    /// What failed, why, what to do.
    pub text: String,
}

/// What a guest says to a turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Said {
    /// It is being carried out: ask the same again.
    NotYet,
    /// It has begun.
    Opened(Opened),
    /// What the command wrote.
    Output(Stream, Chunk),
    /// The command has ended, and all its output was told.
    Exited(Exit),
    /// The next bytes of the file.
    Data(Chunk),
    /// The bytes are written.
    Taken,
    /// The file is whole and in its place, or was read to its end; its digest.
    Done(Digest),
    /// Nothing is left of the conversation.
    Closed,
    /// It is not carried out, and the conversation is over.
    Refused(Refusal),
}

impl Said {
    /// Can this be the answer to `ask`? What a guest says is not believed otherwise.
    #[must_use]
    pub fn fits(&self, ask: &Ask) -> bool {
        match (ask, self) {
            (_, Self::NotYet | Self::Refused(_)) => true,
            (Ask::Exec(..) | Ask::Put(..), Self::Opened(opened)) => opened.chunk > 0 && opened.file.is_none(),
            (Ask::Get(_), Self::Opened(opened)) => opened.chunk > 0 && opened.file.is_some(),
            (Ask::More(room), Self::Output(_, chunk) | Self::Data(chunk)) => {
                chunk.bytes().len() <= usize::from(*room)
            }
            (Ask::More(_), Self::Exited(_) | Self::Done(_)) => true,
            (Ask::Data(_), Self::Taken) | (Ask::End(_), Self::Done(_)) | (Ask::Close, Self::Closed) => true,
            _ => false,
        }
    }
}

messages! {
    /// What the coordinator hands on to a VM's host. Nothing of a snapshot depends on it.
    pub enum AccessOrder with Envelope {
        /// To the guest. Answered by `Said` or `Failed`.
        52 => Turn(Turn),
        /// The last so many lines of the serial console. Answered by `Console` or `Failed`.
        53 => Console(u32),
    }
}

messages! {
    /// What comes back.
    pub enum AccessAnswer with Envelope {
        /// What the guest says.
        92 => Said(Said),
        /// The end of the console, at most [`MAX_CONSOLE_BYTES`].
        93 => Console(Vec<u8>),
        /// The host could not do it, or may not; the conversation is over.
        94 => Failed(Failure),
    }
}

/// What an operator sends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AccessRequest {
    /// First, and once: a conversation with each of these VMs begins with this. Answered by `Begun`, then by one `Said` or
    /// `Failed` of each VM.
    Open(Patterns, Ask),
    /// The next turn with one VM whose last one was answered, or the same one after `NotYet`. `Said` or `Failed`.
    Turn(Name, u32, Ask),
}

/// What an operator hears.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AccessReply {
    /// These VMs are meant.
    Begun(Vec<Place>),
    /// A VM's guest says this.
    Said(Name, Said),
    /// It could not be told, or may not; the conversation with this VM is over.
    Failed(Name, Failure),
}

/// Which console is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleRequest {
    /// The VM.
    pub vm: Name,
    /// So many of its last lines.
    pub lines: u32,
}

/// The end of a console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleReport {
    /// Whose.
    pub place: Place,
    /// At most [`MAX_CONSOLE_BYTES`].
    pub bytes: Vec<u8>,
}

#[cfg(test)]
mod tests;

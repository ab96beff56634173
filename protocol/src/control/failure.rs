//! What failed, in which step: stable codes for programs, words for people.

use std::fmt;
use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};

/// Step of the protocol, for reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Phase {
    /// Verification; epochs set; colouring on.
    Prepare,
    /// Strict.
    Arm,
    /// The straddling cut.
    Take,
    /// RAM and disks become durable behind the running VM.
    Save,
    /// Colouring off.
    Clear,
    /// The snapshot is usable.
    Commit,
    /// Everything is undone.
    Abort,
    /// Restore: files complete?
    Poll,
    /// Restore: old instance dead, new one loaded and paused.
    Restore,
    /// Restore: resumed.
    Start,
    /// A snapshot's files are removed.
    Delete,
    /// A snapshot's files, and the images below them, are compared with their digests.
    Verify,
    /// A single VM is started, stopped, paused, resumed or reset.
    Control,
    /// A guest is asked to run a command or to move a file, or its console is read.
    Access,
    /// Restore elsewhere: the files come from another host.
    Fetch,
    /// Restore elsewhere: the instance on the host that a VM leaves is ended.
    Evict,
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Prepare => "PREPARE",
            Self::Arm => "ARM",
            Self::Take => "TAKE",
            Self::Save => "SAVE",
            Self::Clear => "CLEAR",
            Self::Commit => "COMMIT",
            Self::Abort => "ABORT",
            Self::Poll => "POLL",
            Self::Restore => "RESTORE",
            Self::Start => "START",
            Self::Delete => "DELETE",
            Self::Verify => "VERIFY",
            Self::Control => "CONTROL",
            Self::Access => "ACCESS",
            Self::Fetch => "FETCH",
            Self::Evict => "EVICT",
        })
    }
}

/// Kind of a failure: stable over releases, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The VM does not run, or is not known.
    VmNotRunning,
    /// The guest agent does not answer or is not healthy.
    GuestAgent,
    /// Not enough space.
    NoSpace,
    /// The hypervisor refused or died.
    Hypervisor,
    /// The member had advanced by itself: the cut came too late.
    LateCut,
    /// Files missing, truncated, damaged or foreign.
    Files,
    /// A lower term or incarnation, or an order that does not fit the state.
    Stale,
    /// A wait ran out.
    TimedOut,
    /// The host is not connected, or its connection broke.
    HostLost,
    /// The operator asked for something that does not exist or cannot be.
    BadRequest,
    /// A defect or an error of the program's own machine (disk, memory).
    Internal,
    /// The VM's packets cannot be coloured as its definition says.
    Colouring,
    /// Host or guest were not told to allow it.
    NotAllowed,
}

/// What failed, on the wire: stable kind, step, and words (what, why, what to do).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{phase}: {text}")]
pub struct Failure {
    /// Stable code.
    pub kind: FailureKind,
    /// The step that failed.
    pub phase: Phase,
    /// For people.
    pub text: String,
}

/// Failures that differ in their words only are the same to every machine, hence to whoever counts states.
impl Hash for Failure {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.kind, self.phase).hash(state);
    }
}

impl Failure {
    /// A failure with its words.
    pub fn new(kind: FailureKind, phase: Phase, text: impl Into<String>) -> Self {
        Self { kind, phase, text: text.into() }
    }
}

//! What can go wrong at a host for tests.

use unasnap_protocol::control::{Failure, FailureKind, Phase};

/// What goes wrong when an order reaches a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is refused.
    Refuse,
    /// It is refused in words that drive a terminal.
    RefuseRudely,
    /// It is refused: what came was damaged where it came from.
    Damage,
    /// It is lost.
    Ignore,
    /// The connection breaks, and the host stays away.
    GoAway,
    /// The connection breaks, and the host comes back.
    Reconnect,
    /// The connection breaks, and the host comes back having forgotten everything.
    Forget,
}

impl Fault {
    /// As the host words it, where it is a refusal.
    pub fn failure(self, phase: Phase) -> Failure {
        let (kind, words) = match self {
            Self::Damage => (FailureKind::Files, "ram is damaged"),
            Self::RefuseRudely => (FailureKind::Hypervisor, "\x1b]0;owned\x07\x1b[2J\r"),
            _ => (FailureKind::Hypervisor, "QEMU died"),
        };
        Failure::new(kind, phase, words)
    }
}

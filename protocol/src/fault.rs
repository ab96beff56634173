//! The mistakes of the published protocol (protocol.md section 6), which tests put back to see that they are noticed.
//!
//! A fault is configuration of the machine or of the host agent that it concerns, and nothing else knows of it. Nobody
//! sets one outside of tests: the programs read it from an environment variable, [`Fault::SWITCH`].

use std::time::Duration;

/// One mistake, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Fault {
    /// The protocol as it should be.
    #[default]
    None,
    /// Mistake 1. The coordinator leads each member through PREPARE, ARM and TAKE as fast as that member answers. So one
    /// may cut before another is prepared; where the members' epochs differed before (after a restore, a boot, or an
    /// ABORT that was missed), the other one takes a POSTSNAPSHOT packet for one of before its own cut.
    NoBarrier,
    /// Mistake 2. There is no strict, and the coordinator sends each member CLEAR as soon as that member has cut, so that
    /// plain POSTSNAPSHOT packets reach members that have not cut.
    UncolouredTooEarly,
    /// Mistake 3. The host agent flips the send half of the word only [`Fault::LATENESS`] after the VM was resumed.
    SendFlippedLate,
    /// The mirror of mistake 3. The host agent flips the receive half [`Fault::LATENESS`] before the VM is stopped.
    ReceiveFlippedEarly,
    /// Mistake 4. There is no strict: where the network clears the marks, whatever comes is accepted.
    BleachedWithoutStrict,
}

impl Fault {
    /// Environment variable of coordinator and host agent that holds a fault's label.
    pub const SWITCH: &'static str = "UNASNAP_TEST_FAULT";

    /// How late or early a flip is that comes at the wrong time. In the published measurements the colour was changed by a
    /// command in the guest, 550 to 640 ms after the resume.
    pub const LATENESS: Duration = Duration::from_millis(100);

    /// Every fault with its label.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::NoBarrier, "no-barrier"),
        (Self::UncolouredTooEarly, "uncoloured-too-early"),
        (Self::SendFlippedLate, "send-flipped-late"),
        (Self::ReceiveFlippedEarly, "receive-flipped-early"),
        (Self::BleachedWithoutStrict, "bleached-without-strict"),
    ];

    /// The fault of this label; `None` if there is no such label.
    #[must_use]
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == label).map(|(fault, _)| *fault)
    }

    /// Does ARM make members refuse uncoloured packets?
    #[must_use]
    pub fn is_strict(self) -> bool {
        !matches!(self, Self::UncolouredTooEarly | Self::BleachedWithoutStrict)
    }
}

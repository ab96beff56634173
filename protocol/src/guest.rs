//! Host agent <-> guest agent, over the virtio-serial port [`PORT_NAME`].
//!
//! Strict request and reply: the host sends one request at a time and the reply repeats its
//! sequence, so a reply to a request that was given up is recognised and dropped. Requests are
//! idempotent. A request of an older incarnation than the highest seen is refused: after a restore
//! the guest may still find the old host's last request in its port.

use core::net::IpAddr;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::access::{Said, Turn};

/// Name of the virtio-serial port inside the VM.
pub const PORT_NAME: &str = "org.unasnap.guest.0";

/// Epochs count from 0 and never wrap in practice; the packed state word has 31 bits for each.
pub type Epoch = u32;
/// Largest epoch that fits the packed state word.
pub const MAX_EPOCH: Epoch = (1 << 31) - 1;

/// The member's state, unpacked (protocol.md section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WordState {
    /// Epoch whose colour outgoing packets carry.
    pub send: Epoch,
    /// Epoch by which incoming packets are judged.
    pub receive: Epoch,
    /// Are outgoing packets coloured?
    pub colouring: bool,
    /// Are uncoloured packets from members dropped?
    pub strict: bool,
}

impl WordState {
    /// Both halves at `epoch`, colouring off: a member outside a snapshot.
    #[must_use]
    pub fn idle(epoch: Epoch) -> Self {
        Self { send: epoch, receive: epoch, colouring: false, strict: false }
    }

    /// Both halves at `epoch`, colouring on: a member that is PREPARED.
    #[must_use]
    pub fn colouring(epoch: Epoch) -> Self {
        Self { send: epoch, receive: epoch, colouring: true, strict: false }
    }

    /// Both halves at `epoch`, colouring on, strict: a restored member that may still find frames in its card that arrived
    /// before the cut and were not judged. As it was when they came, uncoloured ones are from anywhere in time.
    #[must_use]
    pub fn waking(epoch: Epoch) -> Self {
        Self { send: epoch, receive: epoch, colouring: true, strict: true }
    }
}

/// An address or prefix by which members are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Prefix {
    /// IPv4 address and prefix length 0-32.
    V4([u8; 4], u8),
    /// IPv6 address and prefix length 0-128.
    V6([u8; 16], u8),
}

/// A text that is not a [`Prefix`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address: use an IP address or a prefix such as 10.77.1.0/24")]
pub struct BadPrefix(String);

impl FromStr for Prefix {
    type Err = BadPrefix;

    /// `10.77.1.1` or `10.77.1.0/24`; an address alone stands for itself.
    fn from_str(text: &str) -> Result<Self, BadPrefix> {
        let bad = || BadPrefix(text.chars().take(64).collect());
        let (address, length) =
            text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let address = address.parse::<IpAddr>().map_err(|_| bad())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let length = length.map_or(Ok(longest), |length| length.parse::<u8>().map_err(|_| bad()))?;
        if length > longest {
            return Err(bad());
        }
        Ok(match address {
            IpAddr::V4(address) => Self::V4(address.octets(), length),
            IpAddr::V6(address) => Self::V6(address.octets(), length),
        })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, length, longest) = match *self {
            Self::V4(address, length) => (IpAddr::from(address), length, 32),
            Self::V6(address, length) => (IpAddr::from(address), length, 128),
        };
        if length == longest {
            write!(formatter, "{address}")
        } else {
            write!(formatter, "{address}/{length}")
        }
    }
}

/// What stands before the body of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestHead {
    /// Counts up per channel; the reply repeats it.
    pub sequence: u64,
    /// Counts up with every restore of the deployment.
    pub incarnation: u64,
}

/// What stands before the body of every reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyHead {
    /// Of the request that this answers.
    pub sequence: u64,
}

/// Whose packets are coloured and judged, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetMembers {
    /// Addresses of all members, this one's included; at most [`MAX_MEMBER_PREFIXES`].
    pub prefixes: Vec<Prefix>,
    /// DSCP values 1-63 of epochs 0, 1, 2 mod 3; distinct.
    pub code_points: [u8; 3],
    /// After how long of dropping a member advances by itself, milliseconds (protocol.md section 4).
    pub future_lease_ms: u32,
}

/// Most prefixes of one deployment.
pub const MAX_MEMBER_PREFIXES: usize = 4096;

/// A change of one half of the word from `from` to `to`, valid only if it still stands at `from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flip {
    /// Epoch before.
    pub from: Epoch,
    /// Epoch after, `from + 1`.
    pub to: Epoch,
}

/// What a restored guest cannot know by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartHooks {
    /// Wall clock of the host, nanoseconds since 1970.
    pub unix_ns: u64,
    /// Fresh randomness: two VMs restored from one snapshot must not draw the same keys.
    pub entropy: [u8; 32],
}

messages! {
    /// What the host agent asks; every request may be repeated.
    pub enum GuestRequest with RequestHead {
        /// Who are you? Answered by `Identity`.
        1 => Identify(()),
        /// Replaces the member table. Answered by `Done`.
        2 => SetMembers(SetMembers),
        /// Sets the word, whatever it was: PREPARE and ABORT are authoritative. Answered by `Word`.
        3 => SetWord(WordState),
        /// Drop uncoloured packets from members, if both halves stand at this epoch and colouring is
        /// on. Answered by `Word` or `Late`.
        4 => SetStrict(Epoch),
        /// The send half, before the snapshot instant; needs both halves at `from`. `Word` or `Late`.
        5 => FlipSend(Flip),
        /// The receive half, after the snapshot instant; needs receive at `from` and send at `to`, and
        /// clears strict: whoever has cut may accept anything. `Word` or `Late`.
        6 => FlipReceive(Flip),
        /// Answered by `Counters`.
        7 => ReadCounters(()),
        /// Answered by `Health`.
        8 => SelfCheck(()),
        /// After a restore: wall clock, entropy, neighbour announcement. Answered by `Done`.
        9 => StartHooks(StartHooks),
        /// How many established TCP connections lead to addresses that are not members? Answered by
        /// `Outside`.
        10 => CountOutside(()),
        /// Where in RAM is the word? A fresh nonce is put beside it. Answered by `Located`.
        11 => LocateWord(()),
        /// A turn of a conversation with an operator. Answered by `Access`, at once: what takes time is asked for again.
        12 => Access(Turn),
    }
}

messages! {
    /// What the guest agent answers.
    pub enum GuestReply with ReplyHead {
        /// To `Identify`.
        129 => Identity(Identity),
        /// The request was carried out.
        130 => Done(()),
        /// The word after the change.
        131 => Word(WordState),
        /// The word did not stand where the request needs it (the member advanced by itself, or a
        /// `PREPARE` is missing); it is unchanged and stands at this.
        132 => Late(WordState),
        /// Name and value of every counter, in the order of the kernel's table.
        133 => Counters(Vec<(String, u64)>),
        /// Problems in words; none means healthy.
        134 => Health(Vec<String>),
        /// The request could not be carried out, in words.
        135 => Failed(String),
        /// The request carries an older incarnation than this one, which the guest has seen.
        136 => OldIncarnation(u64),
        /// To `CountOutside`.
        137 => Outside(u32),
        /// To `LocateWord`.
        138 => Located(Located),
        /// To `Access`.
        139 => Access(Said),
    }
}

/// Where the state word is in the guest's RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Located {
    /// Guest-physical address of the word, the start of a page.
    pub guest_physical: u64,
    /// Stands in the eight bytes behind the word, little-endian.
    pub nonce: u64,
}

/// How the programs hang on the interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttachKind {
    /// TCX links (Linux 6.6 and later).
    Tcx,
    /// Filters on the clsact qdisc.
    Clsact,
}

/// One Ethernet interface of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// As in `ip link`.
    pub name: String,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Addresses at full prefix length (/32, /128), link-local ones included.
    pub addresses: Vec<Prefix>,
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of the guest agent's package.
    pub agent_version: String,
    /// As `uname -r`.
    pub kernel: String,
    /// `/proc/sys/kernel/random/boot_id`: the same boot before and after a restore.
    pub boot_id: String,
    /// As `uname -n`.
    pub hostname: String,
    /// Interfaces with the programs attached.
    pub interfaces: Vec<Interface>,
    /// How they are attached.
    pub attach: AttachKind,
    /// The word as it stands.
    pub word: WordState,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_read_as_they_are_written() {
        for text in ["10.77.1.1", "10.77.1.0/24", "0.0.0.0/0", "fd00::1", "fd00:77::/64"] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
        assert_eq!("10.0.0.1/32".parse::<Prefix>(), "10.0.0.1".parse());
        for bad in ["", "10.0.0", "10.0.0.1/33", "10.0.0.1/", "fd00::/129", "10.0.0.1/-1", "10.0.0.1 "] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad:?}");
        }
    }
}

//! A transfer as bytes, the same for a stream and for a datagram, and the digests by which both ends compare them.

use std::hash::{DefaultHasher, Hasher};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Bytes of a transfer.
pub const LENGTH: usize = 256;

/// A transfer as it travels.
pub type Bytes = [u8; LENGTH];

/// Who pays whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Sender's number among the members, from 1.
    pub from: u32,
    /// Receiver's number.
    pub to: u32,
    /// Of this channel and transport, from 1 without gaps.
    pub number: u64,
    /// What no other transfer has.
    pub nonce: u64,
}

impl Record {
    /// Units that change hands, 1 to 100.
    #[must_use]
    pub fn amount(&self) -> i64 {
        i64::from((self.nonce % 100) as u8) + 1
    }

    /// Head, then the nonce again and again.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = [0; LENGTH];
        for chunk in bytes.chunks_exact_mut(8) {
            chunk.copy_from_slice(&self.nonce.to_le_bytes());
        }
        bytes[..4].copy_from_slice(&self.from.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.to.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes
    }

    /// Reads whatever bytes came: the checker judges, not the receiver.
    #[must_use]
    pub fn decode(bytes: &Bytes) -> Self {
        let word =
            |at: usize| bytes[at..at + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let (ends, number, nonce) = (word(0), word(8), word(16));
        Self { from: ends as u32, to: (ends >> 32) as u32, number, nonce }
    }
}

/// 64 bits that stand for bytes. Nobody here forges anything, and both ends run the same program, so that the standard
/// library's hash is good enough and cheap in an emulated guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest(u64);

impl Digest {
    /// The next link of a chain that stands at `self`. A chain begins at the default.
    #[must_use]
    pub fn then(self, bytes: &Bytes) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.0);
        hasher.write(bytes);
        Self(hasher.finish())
    }

    /// Of these bytes alone.
    #[must_use]
    pub fn of(bytes: &Bytes) -> Self {
        Self::default().then(bytes)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        format!("{:016x}", digest.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        if text.len() != 16 {
            bail!("a digest has 16 hexadecimal digits, not {text:?}");
        }
        u64::from_str_radix(&text, 16).map(Self).with_context(|| format!("digest {text:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_what_it_was_and_every_byte_counts() {
        let record = Record { from: 3, to: 0x0102_0304, number: u64::MAX - 1, nonce: 0x1122_3344_5566_7788 };
        let bytes = record.encode();
        assert_eq!(Record::decode(&bytes), record);
        assert!((1..=100).contains(&record.amount()));
        for at in 0..LENGTH {
            let mut other = bytes;
            other[at] ^= 1;
            assert_ne!(Digest::of(&other), Digest::of(&bytes), "byte {at}");
        }
        assert_ne!(Digest::of(&bytes).then(&bytes), Digest::of(&bytes));
    }

    #[test]
    fn digests_are_read_back() {
        let digest = Digest(0xab);
        let text = serde_json::to_string(&digest).unwrap();
        assert_eq!(text, "\"00000000000000ab\"");
        assert_eq!(serde_json::from_str::<Digest>(&text).unwrap(), digest);
        assert!(serde_json::from_str::<Digest>("\"ab\"").is_err());
    }
}

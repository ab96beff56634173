//! The fixed header around every message, on every channel.
//!
//! ```text
//!  0        4         6         8          12         16
//!  | magic  | version | number  | length   | crc32    | payload (length bytes)
//!  | "USNP" | u16 LE  | u16 LE  | u32 LE   | u32 LE   | postcard
//! ```
//!
//! The checksum covers the first 12 header bytes and the payload. On a TLS channel a bad frame is the
//! end of the connection ([`Decoder::strict`]). The guest channel has no connection to end: a restored
//! guest agent wakes in the middle of whatever it was doing at the cut, so either direction may hold
//! half a frame, and the decoder finds the next whole one by itself ([`Decoder::resync`]).

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use crate::PROTOCOL_VERSION;

/// First four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"USNP";
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 16;
/// Largest payload on a control channel, bytes.
pub const MAX_CONTROL_PAYLOAD: usize = 1 << 20;
/// Largest payload on a guest channel, bytes.
pub const MAX_GUEST_PAYLOAD: usize = 1 << 16;

/// Message number and payload of one frame whose checksum was right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Which message the payload is; the table stands with each message set.
    pub number: u16,
    /// The postcard bytes.
    pub payload: Bytes,
}

/// Why bytes are not a frame. On a TLS channel each of these ends the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The bytes do not begin with [`MAGIC`].
    #[error("the peer does not speak unasnap's protocol (its bytes begin with {found:02x?}, not \"USNP\")")]
    BadMagic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// The header names a version that this build does not speak.
    #[error(
        "the peer speaks protocol version {found}, this program version {PROTOCOL_VERSION}: install the same release on both"
    )]
    UnknownVersion {
        /// The version in the header.
        found: u16,
    },
    /// The header claims more bytes than this channel allows.
    #[error("a frame of {length} bytes is larger than the {cap} bytes that this channel allows")]
    TooLong {
        /// Bytes claimed.
        length: usize,
        /// Bytes allowed.
        cap: usize,
    },
    /// The checksum does not fit the bytes.
    #[error("a frame arrived damaged (message {number}, checksum does not fit)")]
    BadChecksum {
        /// The message number in the header.
        number: u16,
    },
}

/// Header and payload as one buffer, ready to be written.
#[must_use]
pub fn encode(number: u16, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("payloads are capped far below 4 GiB");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&checksum(&bytes[..12], payload).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}

/// Cuts a byte stream into frames; it owns the bytes not yet understood and nothing else.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    cap: usize,
    resync: bool,
    /// With `resync`: no frame begins before this offset, but perhaps at one of `pending`. So nothing is judged twice.
    searched: usize,
    /// Offsets of what may be a frame when more has come.
    pending: VecDeque<usize>,
}

impl Decoder {
    /// For TLS channels: the first bad byte is an error. `cap` is the largest payload in bytes.
    #[must_use]
    pub fn strict(cap: usize) -> Self {
        Self::new(cap, false)
    }

    /// For guest channels: garbage and torn frames are skipped.
    #[must_use]
    pub fn resync(cap: usize) -> Self {
        Self::new(cap, true)
    }

    fn new(cap: usize, resync: bool) -> Self {
        Self { buffer: BytesMut::new(), cap, resync, searched: 0, pending: VecDeque::new() }
    }

    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Are bytes held that do not make a whole frame yet? Meaningful after [`next_frame`](Self::next_frame)
    /// has returned `None`.
    #[must_use]
    pub fn is_mid_frame(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The next whole frame; `None` until more bytes are pushed.
    ///
    /// # Errors
    /// A strict decoder reports what is wrong with the stream; one that resyncs never fails.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.resync {
            return Ok(self.next_whole());
        }
        match parse(&self.buffer, self.cap)? {
            Some(found) => Ok(Some(self.take(found))),
            None => Ok(None),
        }
    }

    /// The first whole frame at any offset: what stands before it was torn. A torn frame's length
    /// may claim bytes that will never come, so the search does not wait for them.
    fn next_whole(&mut self) -> Option<Frame> {
        for _ in 0..self.pending.len() {
            let offset = self.pending.pop_front()?;
            if let Some(frame) = self.judge(offset) {
                return Some(frame);
            }
        }
        while self.searched < self.buffer.len() {
            let offset = self.searched;
            self.searched += 1;
            if let Some(frame) = self.judge(offset) {
                return Some(frame);
            }
        }
        self.forget(self.pending.front().copied().unwrap_or(self.buffer.len()));
        None
    }

    /// The frame at `offset`, if it is whole; the offset is kept if it may become one.
    fn judge(&mut self, offset: usize) -> Option<Frame> {
        match parse(&self.buffer[offset..], self.cap) {
            Ok(Some(found)) => {
                let payload = offset + HEADER_BYTES..offset + HEADER_BYTES + found.length;
                let frame = Frame {
                    number: found.number,
                    payload: Bytes::copy_from_slice(&self.buffer[payload.clone()]),
                };
                self.forget(payload.end);
                Some(frame)
            }
            Ok(None) => {
                self.pending.push_back(offset);
                None
            }
            Err(_) => None,
        }
    }

    /// Drops what stands before `offset`.
    fn forget(&mut self, offset: usize) {
        self.buffer.advance(offset);
        self.searched = self.searched.saturating_sub(offset);
        self.pending.retain(|pending| *pending >= offset);
        self.pending.iter_mut().for_each(|pending| *pending -= offset);
    }

    fn take(&mut self, found: Found) -> Frame {
        self.buffer.advance(HEADER_BYTES);
        Frame { number: found.number, payload: self.buffer.split_to(found.length).freeze() }
    }
}

#[derive(Clone, Copy)]
struct Found {
    number: u16,
    length: usize,
}

/// Looks for a frame at the very start of `bytes`; `None` when it may become one.
fn parse(bytes: &[u8], cap: usize) -> Result<Option<Found>, FrameError> {
    let seen = bytes.len().min(MAGIC.len());
    if bytes[..seen] != MAGIC[..seen] {
        let mut found = [0; 4];
        found[..seen].copy_from_slice(&bytes[..seen]);
        return Err(FrameError::BadMagic { found });
    }
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let version = u16::from_le_bytes([header[4], header[5]]);
    if version != PROTOCOL_VERSION {
        return Err(FrameError::UnknownVersion { found: version });
    }
    let number = u16::from_le_bytes([header[6], header[7]]);
    let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
    if length > cap {
        return Err(FrameError::TooLong { length, cap });
    }
    let Some(payload) = bytes.get(HEADER_BYTES..HEADER_BYTES + length) else {
        return Ok(None);
    };
    let expected = u32::from_le_bytes([header[12], header[13], header[14], header[15]]);
    if checksum(&header[..12], payload) != expected {
        return Err(FrameError::BadChecksum { number });
    }
    Ok(Some(Found { number, length }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(decoder: &mut Decoder) -> Vec<u16> {
        std::iter::from_fn(|| decoder.next_frame().unwrap().map(|frame| frame.number)).collect()
    }

    #[test]
    fn frames_survive_any_fragmentation() {
        let stream = [encode(1, b"one"), encode(2, b""), encode(3, &[7; 300])].concat();
        for step in 1..stream.len() {
            let mut decoder = Decoder::strict(1024);
            let mut numbers = Vec::new();
            for piece in stream.chunks(step) {
                decoder.push(piece);
                numbers.extend(drain(&mut decoder));
            }
            assert_eq!(numbers, [1, 2, 3], "in pieces of {step}");
        }
    }

    #[test]
    fn a_strict_channel_names_what_is_wrong() {
        let damage = |at: usize, value: u8| {
            let mut bytes = encode(9, b"payload");
            bytes[at] = value;
            let mut decoder = Decoder::strict(64);
            decoder.push(&bytes);
            decoder.next_frame().unwrap_err()
        };
        assert!(matches!(damage(0, b'X'), FrameError::BadMagic { .. }));
        assert_eq!(damage(4, 77), FrameError::UnknownVersion { found: 77 });
        assert_eq!(damage(9, 1), FrameError::TooLong { length: 263, cap: 64 });
        assert_eq!(damage(18, b'Q'), FrameError::BadChecksum { number: 9 });
    }

    #[test]
    fn a_guest_channel_finds_the_next_frame_after_a_torn_one() {
        let torn = encode(4, &[9; 200]);
        for kept in 0..torn.len() {
            let mut decoder = Decoder::resync(MAX_GUEST_PAYLOAD);
            decoder.push(&torn[..kept]);
            decoder.push(&encode(5, b"whole"));
            assert_eq!(drain(&mut decoder), [5], "after {kept} bytes of a torn frame");
        }
    }

    /// What a decoder costs must not depend on how often it is asked, or a guest that floods has its host's processor.
    #[test]
    fn a_flood_of_headers_is_judged_once() {
        let mut liar = encode(7, &[0; 60_000]);
        liar.truncate(HEADER_BYTES);
        let mut decoder = Decoder::resync(MAX_GUEST_PAYLOAD);
        for _ in 0..16 * 1024 / 16 {
            decoder.push(&liar.repeat(16));
            assert_eq!(drain(&mut decoder), []);
            assert!(decoder.buffer.len() <= HEADER_BYTES + MAX_GUEST_PAYLOAD);
            assert_eq!(decoder.searched, decoder.buffer.len(), "what was looked at is not looked at again");
        }
        decoder.push(&[1; 60_000]);
        decoder.push(&encode(8, b"at last"));
        assert_eq!(drain(&mut decoder), [8]);
    }

    #[test]
    fn frames_among_torn_ones_come_in_order_and_once() {
        let torn = |length: usize, kept: usize| encode(4, &vec![9; length])[..HEADER_BYTES + kept].to_vec();
        let stream =
            [torn(600, 3), encode(1, b"one"), torn(50, 0), encode(2, b""), torn(3, 2), encode(3, &[7; 300])];
        let stream = stream.concat();
        for step in 1..stream.len() {
            let mut decoder = Decoder::resync(MAX_GUEST_PAYLOAD);
            let mut numbers = Vec::new();
            for piece in stream.chunks(step) {
                decoder.push(piece);
                numbers.extend(drain(&mut decoder));
            }
            assert_eq!(numbers, [1, 2, 3], "in pieces of {step}");
        }
    }

    #[test]
    fn a_guest_channel_keeps_the_start_of_a_frame_behind_garbage() {
        let mut decoder = Decoder::resync(MAX_GUEST_PAYLOAD);
        let frame = encode(6, b"late");
        decoder.push(b"garbage USN USNP");
        decoder.push(&frame[..10]);
        assert_eq!(drain(&mut decoder), []);
        decoder.push(&frame[10..]);
        assert_eq!(drain(&mut decoder), [6]);
    }
}

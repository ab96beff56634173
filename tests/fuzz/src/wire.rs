//! What comes through sockets and ports.

use bytes::Bytes;
use unasnap_protocol::access::{AccessAnswer, AccessOrder};
use unasnap_protocol::control::{Answer, CoordinatorSession, FromHost, HostSession, Order, ToHost};
use unasnap_protocol::frame::{Decoder, Frame, HEADER_BYTES, encode};
use unasnap_protocol::guest::{GuestReply, GuestRequest};
use unasnap_protocol::name::{MAX_NAME_BYTES, Name};
use unasnap_protocol::operator::{Reply, Request};
use unasnap_protocol::relay;
use unasnap_protocol::role::Role;

/// Small, so that the fuzzer reaches it.
const CAP: usize = 512;

/// The first byte says in pieces of which size the rest arrives.
fn pieces(input: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (size, rest) = input.split_first().map_or((1, input), |(size, rest)| (usize::from(*size) + 1, rest));
    rest.chunks(size)
}

pub fn frames(input: &[u8]) {
    let mut decoder = Decoder::strict(CAP);
    let mut encoded = Vec::new();
    for piece in pieces(input) {
        decoder.push(piece);
        while let Some(frame) = match decoder.next_frame() {
            Ok(frame) => frame,
            Err(_) => return,
        } {
            encoded.extend(encode(frame.number, &frame.payload));
        }
    }
    // A strict decoder leaves nothing out.
    let stream: Vec<u8> = pieces(input).flatten().copied().collect();
    assert!(stream.starts_with(&encoded));
}

pub fn guest_frames(input: &[u8]) {
    let mut decoder = Decoder::resync(CAP);
    for piece in pieces(input) {
        decoder.push(piece);
        while let Ok(Some(frame)) = decoder.next_frame() {
            assert!(frame.payload.len() <= CAP);
        }
    }
    // Whatever was torn before: behind a quiet stretch the next frame is found, and only that.
    decoder.push(&[0; HEADER_BYTES + CAP]);
    while let Ok(Some(_)) = decoder.next_frame() {}
    decoder.push(&encode(5, b"whole"));
    let found = decoder.next_frame().ok().flatten();
    assert_eq!(found, Some(Frame { number: 5, payload: Bytes::from_static(b"whole") }));
    assert_eq!(decoder.next_frame(), Ok(None));
}

/// What a program prints that runs in a guest.
pub fn relay(input: &[u8]) {
    let Ok(printed) = std::str::from_utf8(input) else { return };
    if let Ok(frame) = relay::frame(printed) {
        assert_eq!(relay::frame(&relay::word(&frame)), Ok(frame));
    }
}

/// The first two bytes are the number of the message, the rest is its payload.
fn frame(input: &[u8]) -> Option<Frame> {
    let (number, payload) = input.split_first_chunk()?;
    Some(Frame { number: u16::from_le_bytes(*number), payload: Bytes::copy_from_slice(payload) })
}

/// What was decoded is found again. Compared are bytes: a time that is no number is not equal to itself.
macro_rules! round_trip {
    ($set:ty, $frame:expr) => {
        if let Ok((head, message)) = <$set>::decode($frame) {
            let encoded = message.encode(&head);
            let payload = Bytes::copy_from_slice(&encoded[HEADER_BYTES..]);
            let again = Frame { number: message.number(), payload };
            let (head, message) = <$set>::decode(&again).expect("what was encoded decodes");
            assert_eq!(message.encode(&head), encoded, "{message:?}");
        }
    };
}

pub fn control(input: &[u8]) {
    let Some(frame) = frame(input) else { return };
    // Errors are right, too; what matters is that they are no panics.
    let _ = (FromHost::decode(&frame), ToHost::decode(&frame));
    round_trip!(HostSession, &frame);
    round_trip!(CoordinatorSession, &frame);
    round_trip!(Order, &frame);
    round_trip!(Answer, &frame);
    round_trip!(AccessOrder, &frame);
    round_trip!(AccessAnswer, &frame);
}

pub fn operator(input: &[u8]) {
    let Some(frame) = frame(input) else { return };
    round_trip!(Request, &frame);
    round_trip!(Reply, &frame);
}

pub fn guest(input: &[u8]) {
    let Some(frame) = frame(input) else { return };
    round_trip!(GuestRequest, &frame);
    round_trip!(GuestReply, &frame);
}

pub fn names(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(name) = Name::new(text) {
        assert!(name.as_str() == text && (1..=MAX_NAME_BYTES).contains(&text.len()));
        assert!(text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'));
    }
    if let Ok(role) = text.parse::<Role>() {
        assert_eq!(role.label(), text);
    }
}

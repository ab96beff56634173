//! Host agent <-> guest agent where no port leads into the guest, but its hypervisor runs programs there (VirtualBox: `guestcontrol`).
//!
//! For every request the host has `unasnap-guest relay WORD` run in the guest. That hands the request to the agent, through
//! [`SOCKET`], and prints the reply, as a word again. A request that is secret or long goes into [`REQUEST_FILE`] before, and
//! the program is run as `unasnap-guest relay --file FILE`: words of a command line can be read by every user of the host.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::frame::{Decoder, HEADER_BYTES, MAX_GUEST_PAYLOAD};
use crate::guest::GuestRequest;

/// The program, in the guest.
pub const PROGRAM: &str = "/usr/bin/unasnap-guest";
/// Folder of both that follow; only for the guest's root.
pub const FOLDER: &str = "/run/unasnap-guest";
/// Where the agent listens.
pub const SOCKET: &str = "/run/unasnap-guest/agent.sock";
/// Where a request lies that is not on the command line. Whoever reads it deletes it.
pub const REQUEST_FILE: &str = "/run/unasnap-guest/request";
/// Longest word, characters: a frame of the largest size.
pub const MAX_WORD: usize = (HEADER_BYTES + MAX_GUEST_PAYLOAD).div_ceil(3) * 4;
/// Longest word of a command line, characters; the hypervisor has its own limit, and so has the guest's kernel.
pub const MAX_ARGUMENT: usize = 16 << 10;

/// A text that is not the word of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no message of unasnap's; is the same release in host and guest?")]
pub struct BadWord;

/// A frame as a word.
#[must_use]
pub fn word(frame: &[u8]) -> String {
    STANDARD.encode(frame)
}

/// The frame of a word, whole and with a checksum that fits.
///
/// # Errors
/// It is something else.
pub fn frame(word: &str) -> Result<Vec<u8>, BadWord> {
    let word = word.trim_ascii();
    if word.len() > MAX_WORD {
        return Err(BadWord);
    }
    let bytes = STANDARD.decode(word).map_err(|_| BadWord)?;
    let mut decoder = Decoder::strict(MAX_GUEST_PAYLOAD);
    decoder.push(&bytes);
    match decoder.next_frame() {
        Ok(Some(_)) if !decoder.is_mid_frame() => Ok(bytes),
        _ => Err(BadWord),
    }
}

/// May the word of this request stand on a command line?
#[must_use]
pub fn may_be_seen(request: &GuestRequest, word: &str) -> bool {
    let is_secret = matches!(request, GuestRequest::StartHooks(_) | GuestRequest::Access(_));
    !is_secret && word.len() <= MAX_ARGUMENT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::encode;
    use crate::guest::{RequestHead, StartHooks};

    #[test]
    fn a_frame_comes_back_from_its_word() {
        for payload in [vec![], vec![7; 1], vec![9; MAX_GUEST_PAYLOAD]] {
            let bytes = encode(1, &payload);
            assert_eq!(frame(&(word(&bytes) + "\n")), Ok(bytes));
        }
    }

    #[test]
    fn anything_else_is_no_word() {
        let mut damaged = encode(1, b"hello");
        damaged[17] ^= 1;
        let two = [encode(1, b"a"), encode(1, b"b")].concat();
        let long = word(&encode(1, &vec![0; MAX_GUEST_PAYLOAD + 1]));
        for text in [String::new(), "%".to_owned(), word(b"USNP"), word(&damaged), word(&two), long] {
            assert_eq!(frame(&text), Err(BadWord), "{text:.20}");
        }
    }

    #[test]
    fn what_is_secret_or_long_is_not_for_a_command_line() {
        let hooks = GuestRequest::StartHooks(StartHooks { unix_ns: 0, entropy: [7; 32] });
        let seen = |request: &GuestRequest| {
            may_be_seen(request, &word(&request.encode(&RequestHead { sequence: 1, incarnation: 1 })))
        };
        assert!(!seen(&hooks) && seen(&GuestRequest::Identify(())));
        assert!(!may_be_seen(&GuestRequest::Identify(()), &"x".repeat(MAX_ARGUMENT + 1)));
    }
}

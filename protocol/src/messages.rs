//! One table per message set: number, name and payload stand in one line, once.
//!
//! A payload is `postcard(head) ++ postcard(body)`. The head is what every message of the set
//! carries (sequence and incarnation on a guest channel, the [`Envelope`](crate::control::Envelope)
//! on a control channel); sets without one use `()`, which takes no bytes.

use serde::Deserialize;

use crate::frame::Frame;

/// Why the payload of a good frame is not a message of this channel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The number stands in no table of this direction.
    #[error("message number {0} is not one that this channel carries")]
    UnknownNumber(u16),
    /// The payload does not hold the fields that the number promises.
    #[error("message {number} ({name}) does not decode: {why}")]
    BadPayload {
        /// The message number.
        number: u16,
        /// The message's name in the table.
        name: &'static str,
        /// What the decoder of the payload says.
        why: String,
    },
}

/// Writes an enum of messages from a table `number => Variant(Body)`, all sharing one head.
macro_rules! messages {
    ($(#[$outer:meta])* pub enum $set:ident with $head:ty {
        $($(#[$inner:meta])* $number:literal => $variant:ident($body:ty),)+
    }) => {
        $(#[$outer])*
        #[derive(Debug, Clone, PartialEq)]
        pub enum $set {
            $($(#[$inner])* $variant($body),)+
        }

        impl $set {
            /// Every number of this set, in the order of the table.
            pub const NUMBERS: &'static [u16] = &[$($number),+];

            /// The names of this set, in the order of the table.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($variant)),+];

            /// The number that stands in the frame header.
            #[must_use]
            pub fn number(&self) -> u16 {
                match self { $(Self::$variant(_) => $number,)+ }
            }

            /// The message's name in the table.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self { $(Self::$variant(_) => stringify!($variant),)+ }
            }

            /// The message as one frame, ready to be written.
            #[must_use]
            pub fn encode(&self, head: &$head) -> Vec<u8> {
                let payload = match self { $(Self::$variant(body) => postcard::to_allocvec(&(head, body)),)+ };
                $crate::frame::encode(self.number(), &payload.expect("serialising into memory cannot fail"))
            }

            /// Reads the payload of a frame.
            ///
            /// # Errors
            /// The number is in no table of this direction, or the payload does not fit it.
            pub fn decode(frame: &$crate::frame::Frame) -> Result<($head, Self), $crate::DecodeError> {
                match frame.number {
                    $($number => {
                        let (head, body) = $crate::messages::payload(frame, stringify!($variant))?;
                        Ok((head, Self::$variant(body)))
                    })+
                    other => Err($crate::DecodeError::UnknownNumber(other)),
                }
            }
        }
    };
}

/// Head and body of a frame, with not a byte left over.
pub(crate) fn payload<'a, T: Deserialize<'a>>(
    frame: &'a Frame,
    name: &'static str,
) -> Result<T, DecodeError> {
    let bad = |why: String| DecodeError::BadPayload { number: frame.number, name, why };
    match postcard::take_from_bytes(&frame.payload) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(bad(format!("{} bytes too many", rest.len()))),
        Err(error) => Err(bad(error.to_string())),
    }
}

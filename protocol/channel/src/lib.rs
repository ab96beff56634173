//! The control channel: TLS 1.3 with mutual authentication around the framed protocol.
//!
//! Whoever speaks is known by its certificate ([`Peer`]); there is no way to switch that off. Every
//! handshake, every write and every frame once begun is bounded, and no frame is larger than
//! [`MAX_CONTROL_PAYLOAD`](unasnap_protocol::frame::MAX_CONTROL_PAYLOAD), so a peer that is slow, hostile
//! or of another release costs one connection and a bounded piece of memory.
//!
//! | module | what is in it |
//! |---|---|
//! | [`identity`] | certificate, key and CA of this program, from files |
//! | [`peer`] | who the other end is, from its certificate |
//! | [`connection`] | frames in both directions |
//! | [`trust`] | an identity that follows its files, and ends connections of peers that lose it |
//! | [`endpoint`] | how connections come to be |
//! | [`between_hosts`] | how one host connects to another |
//! | [`mod@clock`] | the clock that both ends report by |
//! | [`error`] | why there is no connection any more, and what to do |

pub mod between_hosts;
pub mod clock;
pub mod connection;
pub mod endpoint;
pub mod error;
pub mod identity;
pub mod peer;
pub mod trust;

pub use between_hosts::connect_to_host;
pub use clock::steady_ns;
pub use connection::{Connection, Reader, Writer};
pub use endpoint::{Arrival, Listener, connect};
pub use error::ChannelError;
pub use identity::{Identity, IdentityError, TlsFiles};
pub use peer::{Peer, PeerCertificate};
pub use trust::Trust;

use std::time::Duration;

/// How long connecting, and then the TLS handshake, may last.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// How long a frame may take from its first byte to its last, in either direction.
pub const FRAME_LIMIT: Duration = Duration::from_secs(10);

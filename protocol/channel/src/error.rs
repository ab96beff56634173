//! Why there is no connection (any more), and what to do about it.

use std::io;

use rustls::{AlertDescription, CertificateError};
use unasnap_protocol::frame::FrameError;

use crate::{FRAME_LIMIT, HANDSHAKE_LIMIT};

/// What ended a connection, or kept it from being made. After any of them the connection is dead.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Nobody answers at the address.
    #[error(
        "cannot reach {address}: {source}; check that the coordinator runs there and that the address is right"
    )]
    Unreachable {
        /// As it was given.
        address: String,
        /// What the network says.
        source: io::Error,
    },
    /// No host agent answers at the address.
    #[error(
        "cannot reach host {host} at {address}: {source}; check that its agent runs, that its host.toml has `[transfer] listen`, and that this host may connect there"
    )]
    HostUnreachable {
        /// Who should be there.
        host: String,
        /// Where.
        address: String,
        /// What the network says.
        source: io::Error,
    },
    /// Another peer answers than was asked for.
    #[error(
        "the peer is {found}, not host {wanted}; check the address in its host.toml (`[transfer] listen`)"
    )]
    OtherHost {
        /// Who should be there.
        wanted: String,
        /// Who is.
        found: String,
    },
    /// The peer did not finish the handshake.
    #[error("the peer did not finish the TLS handshake in {} s; check that the address is the coordinator's", HANDSHAKE_LIMIT.as_secs())]
    HandshakeTimedOut,
    /// The peer speaks something else.
    #[error(
        "the peer does not speak TLS; check address and port, and that no plain-text client connects here"
    )]
    NotTls,
    /// The peer speaks an older TLS.
    #[error("the peer does not speak TLS 1.3: {0}; use the programs of this release on both sides")]
    NotTls13(String),
    /// The peer's certificate was issued elsewhere.
    #[error(
        "the peer's certificate was issued by another CA than ours; use certificates of one `unasnap pki init` on both sides"
    )]
    ForeignCa,
    /// The peer's certificate is not valid today.
    #[error(
        "the peer's certificate has expired or is not valid yet; issue a new one, and check the clocks of both machines"
    )]
    Expired,
    /// The CA has taken the peer's certificate back.
    #[error(
        "the peer's certificate has been revoked; if that was a mistake, issue a new one with `unasnap pki`"
    )]
    Revoked,
    /// The peer is not the coordinator.
    #[error(
        "the peer's certificate is not the coordinator's; check the address, and give coordinator.pem only to the coordinator"
    )]
    NotCoordinator,
    /// The peer is none of the hosts.
    #[error("the peer's certificate is not a host's; hosts give files of snapshots to hosts only")]
    NotHost,
    /// The peer showed no certificate.
    #[error("the peer shows no certificate; its configuration needs `ca`, `cert` and `key` of the cluster")]
    NoCertificate,
    /// The peer's certificate carries no role of the cluster.
    #[error("the peer's certificate names no role; use one that `unasnap pki` issued")]
    NoRole,
    /// The peer does not accept our certificate.
    #[error(
        "the peer does not trust our certificate ({0}); use certificates of one `unasnap pki init` on both sides"
    )]
    NotTrusted(String),
    /// The peer sent bytes that are not frames.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The peer began a frame and did not end it.
    #[error("the peer began a message and did not end it in {} s", FRAME_LIMIT.as_secs())]
    Stalled,
    /// The peer does not read.
    #[error("the peer did not take a message in {} s", FRAME_LIMIT.as_secs())]
    NotReading,
    /// The peer's end of the connection is gone.
    #[error("the peer went away without a word: it was stopped, crashed or lost its network")]
    Vanished,
    /// The connection broke, or another rule of TLS did.
    #[error("the connection broke: {0}")]
    Broken(io::Error),
}

impl ChannelError {
    /// Is this about who may speak to whom (certificates), rather than about the network?
    #[must_use]
    pub fn is_distrust(&self) -> bool {
        matches!(
            self,
            Self::ForeignCa
                | Self::Expired
                | Self::Revoked
                | Self::NotCoordinator
                | Self::OtherHost { .. }
                | Self::NotHost
                | Self::NoCertificate
                | Self::NoRole
                | Self::NotTrusted(_)
        )
    }
}

impl From<io::Error> for ChannelError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        if matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe) {
            return Self::Vanished;
        }
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        tls.and_then(from_tls).unwrap_or(Self::Broken(error))
    }
}

fn from_tls(error: &rustls::Error) -> Option<ChannelError> {
    use rustls::Error::{
        AlertReceived, InvalidCertificate, InvalidMessage, NoCertificatesPresented, PeerIncompatible,
    };
    Some(match error {
        InvalidMessage(_) => ChannelError::NotTls,
        NoCertificatesPresented => ChannelError::NoCertificate,
        PeerIncompatible(why) => ChannelError::NotTls13(format!("{why:?}")),
        AlertReceived(AlertDescription::ProtocolVersion) => {
            ChannelError::NotTls13("it refuses ours".to_owned())
        }
        AlertReceived(alert) if is_about_certificates(*alert) => {
            ChannelError::NotTrusted(format!("{alert:?}"))
        }
        InvalidCertificate(why) => from_certificate(why)?,
        _ => return None,
    })
}

fn from_certificate(error: &CertificateError) -> Option<ChannelError> {
    use CertificateError::{
        ApplicationVerificationFailure, BadSignature, Expired, ExpiredContext, NotValidForName,
        NotValidForNameContext, NotValidYet, NotValidYetContext, Revoked, UnknownIssuer,
    };
    Some(match error {
        // All CAs of `unasnap pki init` are called alike: a foreign one shows by its signature.
        UnknownIssuer | BadSignature => ChannelError::ForeignCa,
        Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. } => ChannelError::Expired,
        Revoked => ChannelError::Revoked,
        NotValidForName | NotValidForNameContext { .. } => ChannelError::NotCoordinator,
        ApplicationVerificationFailure => ChannelError::NotHost,
        _ => return None,
    })
}

fn is_about_certificates(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied
    )
}

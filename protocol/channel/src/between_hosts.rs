//! How one host connects to another: the certificate that it is shown has to be a host's.
//!
//! Hosts have certificates of clients. The one that listens shows its own all the same, and it is judged as it would be if
//! it had connected: same CA, same list of revoked ones.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, TlsStream};
use unasnap_protocol::name::Name;

use crate::HANDSHAKE_LIMIT;
use crate::connection::Connection;
use crate::endpoint::dial;
use crate::error::ChannelError;
use crate::identity::{Identity, coordinator_name};
use crate::peer::Peer;

/// Connects to the agent of `host` at `address` (`host:port`).
///
/// # Errors
/// [`ChannelError`] says whether nobody is there or who is not trusted; [`ChannelError::OtherHost`] whose certificate it is
/// instead.
pub async fn connect_to_host(
    address: &str,
    host: &Name,
    identity: &Identity,
) -> Result<Connection, ChannelError> {
    let unreachable = |source| ChannelError::HostUnreachable {
        host: host.to_string(),
        address: address.to_owned(),
        source,
    };
    let stream = timeout(HANDSHAKE_LIMIT, dial(address))
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        .map_err(unreachable)?;
    // The name goes into the handshake and decides nothing: whose certificate it is, is looked at below.
    let handshake = TlsConnector::from(identity.between_hosts.clone()).connect(coordinator_name(), stream);
    let stream = timeout(HANDSHAKE_LIMIT, handshake).await.map_err(|_| ChannelError::HandshakeTimedOut)??;
    let connection = Connection::new(TlsStream::Client(stream))?;
    if *connection.peer() == Peer::Host(host.clone()) {
        return Ok(connection);
    }
    let (wanted, found) = (host.to_string(), connection.peer().to_string());
    Err(ChannelError::OtherHost { wanted, found })
}

/// Judges whoever listens as a host that connects.
pub(crate) struct HostVerifier(pub(crate) Arc<dyn ClientCertVerifier>);

impl fmt::Debug for HostVerifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("HostVerifier")
    }
}

impl ServerCertVerifier for HostVerifier {
    fn verify_server_cert(
        &self,
        first: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // Before the rest, for the words: the coordinator's would fail as being no client's.
        if !matches!(Peer::of(first), Some(Peer::Host(_))) {
            return Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
        }
        self.0.verify_client_cert(first, rest, now).map(|_| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

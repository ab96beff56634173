//! Who this program is to the others: its certificate, its key, and the CA that it trusts.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::ring;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use serde::Deserialize;
use webpki::EndEntityCert;

use crate::between_hosts::HostVerifier;
use crate::error::ChannelError;
use crate::peer::{COORDINATOR_NAME, Peer, PeerCertificate};

/// Largest PEM file that is read, bytes.
const MAX_PEM_BYTES: u64 = 1 << 20;

/// The files of an identity, as `unasnap pki` wrote them and as configurations name them under `[tls]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The cluster's CA.
    pub ca: PathBuf,
    /// Our certificate.
    pub cert: PathBuf,
    /// Our private key; readable by its owner only.
    pub key: PathBuf,
    /// The CA's list of revoked certificates.
    pub crl: Option<PathBuf>,
}

impl TlsFiles {
    /// Makes relative paths relative to `folder`.
    pub fn resolve(&mut self, folder: &Path) {
        for path in [&mut self.ca, &mut self.cert, &mut self.key].into_iter().chain(&mut self.crl) {
            *path = folder.join(&*path);
        }
    }

    /// All that are named.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.ca, &self.cert, &self.key].into_iter().chain(&self.crl).map(PathBuf::as_path)
    }
}

/// Certificate, key, CA and its list of revoked certificates, checked against each other and ready for use in both
/// directions.
#[derive(Debug, Clone)]
pub struct Identity {
    peer: Peer,
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) between_hosts: Arc<ClientConfig>,
    verifiers: Verifiers,
}

/// Why files do not make an [`Identity`].
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read.
    #[error(
        "cannot read {path}: {source}; `unasnap pki init` writes such files, and the configuration's [tls] names them"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{path} holds no {wanted} in PEM form; give the file that `unasnap pki` wrote")]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
    },
    /// Others than the owner may read the key, or another secret.
    #[error("{path} can be read by other users (mode {mode:04o}); run `chmod 600 {path}`")]
    KeyExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The certificate states no role, or several.
    #[error("{path} names no role of the cluster; give a certificate that `unasnap pki` issued")]
    NoRole {
        /// The file.
        path: PathBuf,
    },
    /// Certificate, key and CA do not belong together.
    #[error("{cert}, {key} and {ca} do not belong together: {source}")]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The CA's file.
        ca: PathBuf,
        /// What does not fit.
        source: Box<rustls::Error>,
    },
    /// Our own certificate stands in the list of revoked ones.
    #[error("{path} has been revoked; issue a new one with `unasnap pki`")]
    Revoked {
        /// The certificate's file.
        path: PathBuf,
    },
    /// The list of revoked certificates is none of this CA.
    #[error(
        "{path} is not a list of revoked certificates of our CA ({source}); copy the crl.pem that `unasnap pki` wrote"
    )]
    BadCrl {
        /// The list's file.
        path: PathBuf,
        /// What does not fit.
        source: Box<rustls::Error>,
    },
}

impl Identity {
    /// Reads the PEM files.
    ///
    /// # Errors
    /// [`IdentityError`] names the file and says what to do. A key that others may read is refused, and so is a list
    /// of revoked certificates that another CA signed.
    pub fn load(files: &TlsFiles) -> Result<Self, IdentityError> {
        let authorities = certificates(&files.ca)?;
        let chain = certificates(&files.cert)?;
        let secret = private_key(&files.key)?;
        let revoked = files.crl.as_deref().map(revocations).transpose()?;
        let peer = chain
            .first()
            .and_then(Peer::of)
            .ok_or_else(|| IdentityError::NoRole { path: files.cert.clone() })?;
        let mismatch = |source| IdentityError::Mismatch {
            cert: files.cert.clone(),
            key: files.key.clone(),
            ca: files.ca.clone(),
            source: Box::new(source),
        };
        let verifiers = Verifiers::new(authorities, revoked).map_err(mismatch)?;
        if let Some(path) = &files.crl {
            let own = PeerCertificate { peer: peer.clone(), chain: chain.clone() };
            check_revocation(&verifiers, &own, files, path)?;
        }
        let Configs { client, server, between_hosts } =
            configs(&verifiers, chain, secret).map_err(mismatch)?;
        Ok(Self { peer, client, server, between_hosts, verifiers })
    }

    /// Would a handshake with this peer succeed now?
    ///
    /// # Errors
    /// As the handshake's: expired, revoked, of another CA.
    pub fn trusts(&self, shown: &PeerCertificate) -> Result<(), ChannelError> {
        self.verifiers.verify(shown).map_err(|error| io::Error::other(error).into())
    }

    /// The role that our own certificate states.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

/// Whose the certificate in this file is, and its serial number.
///
/// # Errors
/// There is none, or it names no role of the cluster.
pub fn issued(path: &Path) -> Result<(Peer, Vec<u8>), IdentityError> {
    let chain = certificates(path)?;
    let first = chain.first().and_then(|first| {
        let serial = EndEntityCert::try_from(first).ok()?.serial().to_vec();
        Some((Peer::of(first)?, serial))
    });
    first.ok_or_else(|| IdentityError::NoRole { path: path.to_owned() })
}

/// Permission bits of a secret's file, if others than its owner may read it: see [`IdentityError::KeyExposed`].
///
/// # Errors
/// It is not there, or cannot be looked at.
pub fn exposure(path: &Path) -> io::Result<Option<u32>> {
    let mode = fs::metadata(path)?.permissions().mode() & 0o777;
    Ok(Some(mode).filter(|mode| mode & 0o077 != 0))
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let unreadable = |source| IdentityError::Unreadable { path: path.to_owned(), source };
    let length = fs::metadata(path).map_err(unreadable)?.len();
    if length > MAX_PEM_BYTES {
        return Err(unreadable(io::Error::other("it is too large for a PEM file")));
    }
    fs::read(path).map_err(unreadable)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    found
        .ok()
        .filter(|chain| !chain.is_empty())
        .ok_or_else(|| IdentityError::NotPem { path: path.to_owned(), wanted: "certificate" })
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let bytes = read(path)?;
    let unreadable = |source| IdentityError::Unreadable { path: path.to_owned(), source };
    if let Some(mode) = exposure(path).map_err(unreadable)? {
        return Err(IdentityError::KeyExposed { path: path.to_owned(), mode });
    }
    PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|_| IdentityError::NotPem { path: path.to_owned(), wanted: "private key" })
}

/// The list or lists in a PEM file.
fn revocations(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, IdentityError> {
    let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&read(path)?).collect();
    found.ok().filter(|lists| !lists.is_empty()).ok_or_else(|| IdentityError::NotPem {
        path: path.to_owned(),
        wanted: "list of revoked certificates",
    })
}

/// Our own certificate must pass a list that we believe. What else may be wrong with it the peer will say.
fn check_revocation(
    verifiers: &Verifiers,
    own: &PeerCertificate,
    files: &TlsFiles,
    crl: &Path,
) -> Result<(), IdentityError> {
    match verifiers.verify(own) {
        Err(rustls::Error::InvalidCertificate(CertificateError::Revoked)) => {
            Err(IdentityError::Revoked { path: files.cert.clone() })
        }
        Err(
            source @ (rustls::Error::InvalidCertRevocationList(_)
            | rustls::Error::InvalidCertificate(CertificateError::UnknownRevocationStatus)),
        ) => Err(IdentityError::BadCrl { path: crl.to_owned(), source: Box::new(source) }),
        _ => Ok(()),
    }
}

/// Who judges certificates: the coordinator's, and those of hosts and operators.
#[derive(Debug, Clone)]
struct Verifiers {
    of_coordinator: Arc<WebPkiServerVerifier>,
    of_clients: Arc<dyn ClientCertVerifier>,
}

impl Verifiers {
    fn new(
        authorities: Vec<CertificateDer<'static>>,
        revoked: Option<Vec<CertificateRevocationListDer<'static>>>,
    ) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority)?;
        }
        let (roots, provider) = (Arc::new(roots), Arc::new(ring::default_provider()));
        let unusable =
            |error: rustls::client::VerifierBuilderError| rustls::Error::General(error.to_string());
        let revoked = revoked.unwrap_or_default();
        let of_coordinator =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .with_crls(revoked.clone())
                .build()
                .map_err(unusable)?;
        let of_clients = WebPkiClientVerifier::builder_with_provider(roots, provider)
            .with_crls(revoked)
            .build()
            .map_err(unusable)?;
        Ok(Self { of_coordinator, of_clients })
    }

    fn verify(&self, shown: &PeerCertificate) -> Result<(), rustls::Error> {
        let Some((first, rest)) = shown.chain.split_first() else {
            return Err(rustls::Error::NoCertificatesPresented);
        };
        let now = UnixTime::now();
        match shown.peer {
            Peer::Coordinator => {
                self.of_coordinator.verify_server_cert(first, rest, &coordinator_name(), &[], now).map(drop)
            }
            Peer::Host(_) | Peer::Operator(..) => {
                self.of_clients.verify_client_cert(first, rest, now).map(drop)
            }
        }
    }
}

/// Whom everybody else connects to.
pub(crate) fn coordinator_name() -> ServerName<'static> {
    ServerName::try_from(COORDINATOR_NAME).expect("a constant that is a valid DNS name")
}

/// What each kind of connection is made with.
struct Configs {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    between_hosts: Arc<ClientConfig>,
}

/// Sessions are never resumed: a resumed one does not show its certificate again, so it would outlive that.
fn configs(
    verifiers: &Verifiers,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Configs, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_webpki_verifier(Arc::clone(&verifiers.of_coordinator))
        .with_client_auth_cert(chain.clone(), key.clone_key())?;
    client.resumption = Resumption::disabled();
    let mut between_hosts = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(HostVerifier(Arc::clone(&verifiers.of_clients))))
        .with_client_auth_cert(chain.clone(), key.clone_key())?;
    between_hosts.resumption = Resumption::disabled();
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::clone(&verifiers.of_clients))
        .with_single_cert(chain, key)?;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    let (client, server, between_hosts) = (Arc::new(client), Arc::new(server), Arc::new(between_hosts));
    Ok(Configs { client, server, between_hosts })
}

//! Who this program is to the others: its certificate, its key, and the CA that it trusts.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::peer::Peer;

/// Largest PEM file that is read, bytes.
const MAX_PEM_BYTES: u64 = 1 << 20;

/// Certificate, key and CA, checked against each other and ready for use in both directions.
#[derive(Debug, Clone)]
pub struct Identity {
    peer: Peer,
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
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
    /// Others than the owner may read the key.
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
}

impl Identity {
    /// Reads the three PEM files.
    ///
    /// # Errors
    /// [`IdentityError`] names the file and says what to do. A key that others may read is refused.
    pub fn load(ca: &Path, cert: &Path, key: &Path) -> Result<Self, IdentityError> {
        let authorities = certificates(ca)?;
        let chain = certificates(cert)?;
        let secret = private_key(key)?;
        let peer = chain
            .first()
            .and_then(Peer::of)
            .ok_or_else(|| IdentityError::NoRole { path: cert.to_owned() })?;
        let (client, server) =
            configs(authorities, chain, secret).map_err(|source| IdentityError::Mismatch {
                cert: cert.to_owned(),
                key: key.to_owned(),
                ca: ca.to_owned(),
                source: Box::new(source),
            })?;
        Ok(Self { peer, client: Arc::new(client), server: Arc::new(server) })
    }

    /// The role that our own certificate states.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
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
    let metadata = fs::metadata(path);
    let mode = metadata
        .map_err(|source| IdentityError::Unreadable { path: path.to_owned(), source })?
        .permissions()
        .mode()
        & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::KeyExposed { path: path.to_owned(), mode });
    }
    PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|_| IdentityError::NotPem { path: path.to_owned(), wanted: "private key" })
}

fn configs(
    authorities: Vec<CertificateDer<'static>>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<(ClientConfig, ServerConfig), rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority)?;
    }
    let roots = Arc::new(roots);
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(Arc::clone(&roots))
        .with_client_auth_cert(chain.clone(), key.clone_key())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    Ok((client, server))
}

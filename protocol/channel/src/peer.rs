//! Who the other end is: the role and the name that its certificate carries.
//!
//! It is one DNS name in the certificate's subject alternative names: `coordinator.unasnap`,
//! `<host>.host.unasnap` or `<user>.<role>.operator.unasnap`, where the role is `view`, `operate` or `admin`.

use std::fmt;

use rustls_pki_types::CertificateDer;
use unasnap_protocol::name::Name;
use unasnap_protocol::role::Role;
use webpki::EndEntityCert;

/// DNS name in the certificate of the coordinator.
pub const COORDINATOR_NAME: &str = "coordinator.unasnap";
const HOST_SUFFIX: &str = ".host.unasnap";
const OPERATOR_SUFFIX: &str = ".operator.unasnap";

/// Who the other end is, and what it showed for that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    pub(crate) peer: Peer,
    /// Its certificate comes first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
}

impl PeerCertificate {
    /// Of a chain; `None` unless its first certificate states one role.
    #[must_use]
    pub(crate) fn new(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let peer = Peer::of(chain.first()?)?;
        Some(Self { peer, chain: chain.iter().map(|one| one.clone().into_owned()).collect() })
    }
}

/// A role in the cluster, as a certificate of the cluster's CA states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// The coordinator.
    Coordinator,
    /// The agent of this host.
    Host(Name),
    /// This operator, who may do this.
    Operator(Name, Role),
}

impl Peer {
    /// The DNS name that states this role.
    #[must_use]
    pub fn dns_name(&self) -> String {
        match self {
            Self::Coordinator => COORDINATOR_NAME.to_owned(),
            Self::Host(name) => format!("{name}{HOST_SUFFIX}"),
            Self::Operator(name, role) => format!("{name}.{role}{OPERATOR_SUFFIX}"),
        }
    }

    /// Reads the role from a certificate; `None` unless it states exactly one.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let certificate = EndEntityCert::try_from(certificate).ok()?;
        let mut roles = certificate.valid_dns_names().filter_map(Self::from_dns_name);
        let role = roles.next()?;
        roles.next().is_none().then_some(role)
    }

    fn from_dns_name(text: &str) -> Option<Self> {
        if text == COORDINATOR_NAME {
            Some(Self::Coordinator)
        } else if let Some(host) = text.strip_suffix(HOST_SUFFIX) {
            Name::new(host).ok().map(Self::Host)
        } else {
            let (name, role) = text.strip_suffix(OPERATOR_SUFFIX)?.split_once('.')?;
            Some(Self::Operator(Name::new(name).ok()?, role.parse().ok()?))
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator => formatter.write_str("the coordinator"),
            Self::Host(name) => write!(formatter, "host {name}"),
            Self::Operator(name, role) => write!(formatter, "operator {name} (role {role})"),
        }
    }
}

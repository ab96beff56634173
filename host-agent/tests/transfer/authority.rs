//! Certificates for tests.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use unasnap_channel::{Identity, TlsFiles, Trust};

/// A CA that makes certificates.
pub struct Authority(Issuer<'static, KeyPair>, String);

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self(Issuer::new(params, key), pem)
    }

    /// As `unasnap pki` makes them: whoever connects has a client's.
    pub fn trust(&self, dns_name: &str) -> Trust {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![dns_name.to_owned()]).unwrap();
        params.extended_key_usages = vec![match dns_name {
            "coordinator.unasnap" => ExtendedKeyUsagePurpose::ServerAuth,
            _ => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        let certificate = params.signed_by(&key, &self.0).unwrap();
        fs::write(folder.path().join("ca.pem"), &self.1).unwrap();
        fs::write(folder.path().join("cert.pem"), certificate.pem()).unwrap();
        fs::write(folder.path().join("key.pem"), key.serialize_pem()).unwrap();
        fs::set_permissions(folder.path().join("key.pem"), PermissionsExt::from_mode(0o600)).unwrap();
        let mut files =
            TlsFiles { ca: "ca.pem".into(), cert: "cert.pem".into(), key: "key.pem".into(), crl: None };
        files.resolve(folder.path());
        Identity::load(&files).unwrap().into()
    }
}

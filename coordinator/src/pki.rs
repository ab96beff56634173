//! The cluster's certificates: one CA, and one key pair per program that speaks.
//!
//! The CA's certificate is wholly decided by its key and the constants here, so that a host can be
//! added later from `ca.key` alone.

mod revocation;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use unasnap_channel::Peer;
use unasnap_protocol::name::Name;
use unasnap_protocol::role::Role;

use crate::failure::{CliError, Result};
pub use revocation::revoke;

/// How long certificates are valid; the cluster is closed, and a CA that is no longer trusted is replaced whole.
const VALID_YEARS: i32 = 10;
const CA_NAME: &str = "unasnap cluster CA";

/// Writes a new CA, and key pairs of the coordinator, of these hosts and of one operator who may do everything.
pub fn init(dir: &Path, hosts: &[Name], operator: &Name) -> Result<Vec<PathBuf>> {
    let ca_key = new_key()?;
    let ca = ca_params()?.self_signed(&ca_key).map_err(internal)?;
    let secret = ca_key.serialize_pem();
    let issuer = Issuer::new(ca_params()?, ca_key);
    let mut files = vec![
        (dir.join("ca.pem"), ca.pem(), 0o644),
        (dir.join("ca.key"), secret, 0o600),
        (dir.join(revocation::LIST), revocation::empty_list(&issuer)?, 0o644),
    ];
    files.extend(pair(dir, "coordinator", &Peer::Coordinator, &issuer)?);
    for host in hosts {
        files.extend(pair(dir, &format!("host-{host}"), &Peer::Host(host.clone()), &issuer)?);
    }
    files.extend(pair(dir, "operator", &Peer::Operator(operator.clone(), Role::Admin), &issuer)?);
    write_all(dir, &files)
}

/// Writes the key pair of one more host, signed by the CA in `dir`.
pub fn add_host(dir: &Path, host: &Name) -> Result<Vec<PathBuf>> {
    write_all(dir, &pair(dir, &format!("host-{host}"), &Peer::Host(host.clone()), &issuer(dir)?)?)
}

/// Writes the key pair of one more operator, signed by the CA in `dir`.
pub fn add_operator(dir: &Path, name: &Name, role: Role) -> Result<Vec<PathBuf>> {
    let peer = Peer::Operator(name.clone(), role);
    write_all(dir, &pair(dir, &format!("operator-{name}"), &peer, &issuer(dir)?)?)
}

/// The CA in `dir`.
fn issuer(dir: &Path) -> Result<Issuer<'static, KeyPair>> {
    let path = dir.join("ca.key");
    let pem = fs::read_to_string(&path).map_err(|error| {
        CliError::usage(format!(
            "cannot read {}: {error}; give the folder that `unasnap pki init` wrote with --dir",
            path.display()
        ))
    })?;
    let key = KeyPair::from_pem(&pem).map_err(|error| {
        CliError::usage(format!("{} is not a private key: {error}; restore it from a copy", path.display()))
    })?;
    Ok(Issuer::new(ca_params()?, key))
}

/// Path, content, permission bits.
type NewFile = (PathBuf, String, u32);

fn new_key() -> Result<KeyPair> {
    KeyPair::generate().map_err(internal)
}

fn internal(error: rcgen::Error) -> CliError {
    CliError::internal(format!("cannot make a certificate: {error}"))
}

fn ca_params() -> Result<CertificateParams> {
    let mut params = params(Vec::new(), CA_NAME)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn params(dns_names: Vec<String>, common_name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(dns_names).map_err(internal)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = day(0);
    params.not_after = day(VALID_YEARS);
    Ok(params)
}

/// Midnight of yesterday, for the clocks of a cluster differ, so many years later.
fn day(years: i32) -> time::OffsetDateTime {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let first = today.yesterday().unwrap_or(today);
    let month = u8::try_from(first.month()).unwrap_or(1);
    // The 29th of February has no tenth birthday.
    let day = u8::try_from(first.day().min(28)).unwrap_or(1);
    rcgen::date_time_ymd(i32::from(first.year()) + years, month, day)
}

fn pair(
    dir: &Path,
    stem: &str,
    role: &Peer,
    issuer: &Issuer<'_, impl rcgen::SigningKey>,
) -> Result<[NewFile; 2]> {
    let key = new_key()?;
    let mut params = params(vec![role.dns_name()], &role.to_string())?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match role {
        Peer::Coordinator => ExtendedKeyUsagePurpose::ServerAuth,
        Peer::Host(_) | Peer::Operator(..) => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, issuer).map_err(internal)?;
    Ok([
        (dir.join(format!("{stem}.pem")), certificate.pem(), 0o644),
        (dir.join(format!("{stem}.key")), key.serialize_pem(), 0o600),
    ])
}

/// Puts a new file in the place of an old one, so that whoever reads it sees one or the other.
fn replace(path: &Path, content: &str) -> Result<()> {
    let new = path.with_extension("new");
    let written = fs::write(&new, content).and_then(|()| fs::rename(&new, path));
    written.map_err(|error| CliError::internal(format!("cannot write {}: {error}", path.display())))
}

/// All or nothing as far as existing files go: none is ever overwritten.
fn write_all(dir: &Path, files: &[NewFile]) -> Result<Vec<PathBuf>> {
    if let Some((path, ..)) = files.iter().find(|(path, ..)| path.exists()) {
        return Err(CliError::usage(format!(
            "{} exists already and is not overwritten; choose another --dir, or remove it if nothing uses it any more",
            path.display()
        )));
    }
    let failed = |path: &Path, error| CliError::internal(format!("cannot write {}: {error}", path.display()));
    fs::create_dir_all(dir).map_err(|error| failed(dir, error))?;
    for (path, content, mode) in files {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(*mode);
        let mut file = options.open(path).map_err(|error| failed(path, error))?;
        file.write_all(content.as_bytes()).map_err(|error| failed(path, error))?;
    }
    Ok(files.iter().map(|(path, ..)| path.clone()).collect())
}

//! Certificates that were taken back: `revoked.json` remembers them, `crl.pem` is what programs believe.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber};
use serde::{Deserialize, Serialize};
use unasnap_channel::identity::issued;

use super::{day, internal, issuer, replace};
use crate::failure::{CliError, Result};

const MEMORY: &str = "revoked.json";
/// The list as it is given to all programs.
pub const LIST: &str = "crl.pem";

/// One certificate of [`MEMORY`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Revoked {
    /// Whose it was, for people.
    peer: String,
    /// Its serial number, hexadecimal.
    serial: String,
    /// When, RFC 3339, UTC.
    time: String,
}

/// Revokes the certificate `name` (as in its file name, or the path of one that lies elsewhere); returns what was written,
/// and whose it was.
pub fn revoke(dir: &Path, name: &str) -> Result<(Vec<PathBuf>, String)> {
    let issuer = issuer(dir)?;
    let file = if name.contains(['/', '.']) { PathBuf::from(name) } else { dir.join(format!("{name}.pem")) };
    let (peer, serial) = issued(&file).map_err(|error| {
        CliError::usage(format!("{error}. Give its file name without .pem, e.g. host-alpha, or its path"))
    })?;
    let mut revoked = load(dir)?;
    let serial: String = serial.iter().map(|byte| format!("{byte:02x}")).collect();
    if !revoked.iter().any(|entry| entry.serial == serial) {
        let time = jiff::Timestamp::now().to_string();
        revoked.push(Revoked { peer: peer.to_string(), serial, time });
    }
    let memory = serde_json::to_string_pretty(&revoked)
        .map_err(|error| CliError::internal(format!("cannot write {MEMORY}: {error}")))?;
    let list = list(&revoked, &issuer)?;
    let files = [(dir.join(MEMORY), memory), (dir.join(LIST), list)];
    for (path, content) in &files {
        replace(path, content)?;
    }
    Ok((files.into_iter().map(|(path, _)| path).collect(), peer.to_string()))
}

/// A list that names nobody.
pub fn empty_list(issuer: &Issuer<'_, KeyPair>) -> Result<String> {
    list(&[], issuer)
}

fn load(dir: &Path) -> Result<Vec<Revoked>> {
    let path = dir.join(MEMORY);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => {
            other.map_err(|error| CliError::usage(format!("cannot read {}: {error}", path.display())))?
        }
    };
    serde_json::from_str(&text).map_err(|error| {
        CliError::usage(format!("{} is damaged: {error}; restore it from a copy", path.display()))
    })
}

fn list(revoked: &[Revoked], issuer: &Issuer<'_, KeyPair>) -> Result<String> {
    let entry = |entry: &Revoked| {
        let digits = entry.serial.as_bytes().chunks(2);
        let bytes = digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
        let serial = bytes.collect::<Option<Vec<u8>>>().ok_or_else(|| {
            let text = format!("{MEMORY}: {:?} is no serial number; restore it from a copy", entry.serial);
            CliError::usage(text)
        })?;
        Ok(RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: day(0),
            reason_code: None,
            invalidity_date: None,
        })
    };
    let params = CertificateRevocationListParams {
        this_update: day(0),
        next_update: day(super::VALID_YEARS),
        crl_number: SerialNumber::from(jiff::Timestamp::now().as_millisecond().unsigned_abs()),
        issuing_distribution_point: None,
        revoked_certs: revoked.iter().map(entry).collect::<Result<_>>()?,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(issuer).and_then(|list| list.pem()).map_err(internal)
}

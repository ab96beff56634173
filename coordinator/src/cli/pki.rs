//! `unasnap pki`.

use std::path::{Path, PathBuf};

use serde::Serialize;
use unasnap_protocol::name::Name;
use unasnap_protocol::role::Role;

use super::output;
use crate::failure::{CliError, Result};
use crate::pki;

#[derive(Serialize)]
struct Written {
    files: Vec<PathBuf>,
}

/// `pki init`.
pub fn init(dir: &Path, hosts: &[Name], operator: &Name, json: bool) -> Result<()> {
    hosts.iter().chain([operator]).try_for_each(check)?;
    let files = pki::init(dir, hosts, operator)?;
    report(files, json)?;
    eprintln!(
        "give each host ca.pem and its own host-*.pem and host-*.key; keep ca.key where nobody else reads it"
    );
    Ok(())
}

/// `pki add-host`.
pub fn add_host(dir: &Path, host: &Name, json: bool) -> Result<()> {
    check(host)?;
    report(pki::add_host(dir, host)?, json)
}

/// `pki operator`.
pub fn add_operator(dir: &Path, name: &Name, role: Role, json: bool) -> Result<()> {
    check(name)?;
    report(pki::add_operator(dir, name, role)?, json)
}

/// `pki revoke`.
pub fn revoke(dir: &Path, name: &str, json: bool) -> Result<()> {
    let (files, peer) = pki::revoke(dir, name)?;
    report(files, json)?;
    eprintln!(
        "revoked the certificate of {peer}; copy crl.pem to every machine, running programs read it within a second"
    );
    Ok(())
}

/// Labels of DNS names do not end in a dash, names of unasnap may.
fn check(name: &Name) -> Result<()> {
    if name.as_str().ends_with('-') {
        return Err(CliError::usage(format!(
            "{name} ends in '-', which certificates cannot carry; rename it"
        )));
    }
    Ok(())
}

fn report(files: Vec<PathBuf>, json: bool) -> Result<()> {
    if json {
        return output::json(&Written { files });
    }
    for file in files {
        output::line(&file.display().to_string())?;
    }
    Ok(())
}

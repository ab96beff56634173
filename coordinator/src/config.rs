//! The two configuration files: the coordinator's and the operator's.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use unasnap_channel::{Identity, Peer};

use crate::failure::{CliError, Result};

/// Where the operator's configuration is looked for.
pub const CLIENT_PATH: &str = "/etc/unasnap/client.toml";
/// Where the coordinator's configuration is looked for.
pub const COORDINATOR_PATH: &str = "/etc/unasnap/coordinator.toml";

/// `coordinator.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoordinatorConfig {
    /// Address and port for hosts and operators.
    pub listen: SocketAddr,
    /// Folder of the journal; created when missing.
    pub state_dir: PathBuf,
    /// Who this program is.
    pub tls: Tls,
}

/// `client.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// `host:port` of the coordinator.
    pub coordinator: String,
    /// Who this operator is.
    pub tls: Tls,
}

/// Files that `unasnap pki` wrote.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The cluster's CA.
    pub ca: PathBuf,
    /// Our certificate.
    pub cert: PathBuf,
    /// Our key; readable by its owner only.
    pub key: PathBuf,
}

impl CoordinatorConfig {
    /// Reads the file; relative paths in it are relative to its folder.
    pub fn load(path: &Path) -> Result<Self> {
        let mut config: Self = read(path)?;
        let folder = folder_of(path);
        config.state_dir = folder.join(&config.state_dir);
        config.tls.resolve(folder);
        Ok(config)
    }

    /// Certificate and key, checked to be the coordinator's.
    pub fn identity(&self) -> Result<Identity> {
        let identity = self.tls.identity()?;
        match identity.peer() {
            Peer::Coordinator => Ok(identity),
            other => Err(CliError::usage(format!(
                "{} belongs to {other}, not to the coordinator; set tls.cert and tls.key to coordinator.pem and coordinator.key",
                self.tls.cert.display()
            ))),
        }
    }
}

impl ClientConfig {
    /// Reads the file; relative paths in it are relative to its folder.
    pub fn load(path: &Path) -> Result<Self> {
        let mut config: Self = read(path)?;
        config.tls.resolve(folder_of(path));
        Ok(config)
    }
}

impl Tls {
    /// Certificate and key.
    pub fn identity(&self) -> Result<Identity> {
        Identity::load(&self.ca, &self.cert, &self.key).map_err(|error| CliError::usage(error.to_string()))
    }

    fn resolve(&mut self, folder: &Path) {
        for path in [&mut self.ca, &mut self.cert, &mut self.key] {
            *path = folder.join(&*path);
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let advice = "give its path with --config";
        CliError::usage(format!("cannot read the configuration {}: {error}; {advice}", path.display()))
    })?;
    toml::from_str(&text).map_err(|error| {
        CliError::usage(
            format!("the configuration {} is wrong: {error}", path.display()).trim_end().to_owned(),
        )
    })
}

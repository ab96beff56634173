//! The two configuration files: the coordinator's and the operator's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use unasnap_channel::{Identity, Peer, TlsFiles, Trust};
use unasnap_protocol::name::Name;

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
    pub tls: TlsFiles,
    /// On how many hosts the files of each snapshot are to lie, the one where they were taken among them.
    #[serde(default = "one")]
    pub replicas: NonZeroU8,
    /// What holds for single deployments.
    #[serde(default)]
    pub deployment: BTreeMap<Name, DeploymentConfig>,
}

/// `[deployment.NAME]` of `coordinator.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeploymentConfig {
    /// Instead of the cluster's.
    pub replicas: NonZeroU8,
}

fn one() -> NonZeroU8 {
    NonZeroU8::MIN
}

/// On how many hosts files of snapshots are to lie.
#[derive(Debug, Clone)]
pub struct Replicas {
    every: usize,
    single: BTreeMap<Name, usize>,
}

impl Replicas {
    /// Of this deployment's snapshots; 1 or more.
    pub fn of(&self, deployment: &Name) -> usize {
        self.single.get(deployment).copied().unwrap_or(self.every)
    }
}

/// `client.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// `host:port` of the coordinator.
    pub coordinator: String,
    /// Who this operator is.
    pub tls: TlsFiles,
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

    /// On how many hosts files of snapshots are to lie.
    pub fn replicas(&self) -> Replicas {
        let number = |replicas: NonZeroU8| usize::from(replicas.get());
        let single = self.deployment.iter().map(|(name, one)| (name.clone(), number(one.replicas))).collect();
        Replicas { every: number(self.replicas), single }
    }

    /// Certificate and key, checked to be the coordinator's.
    pub fn trust(&self) -> Result<Trust> {
        let trust = Trust::follow(self.tls.clone()).map_err(unusable)?;
        match trust.identity().peer() {
            Peer::Coordinator => Ok(trust),
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

    /// Certificate and key.
    pub fn identity(&self) -> Result<Identity> {
        Identity::load(&self.tls).map_err(unusable)
    }
}

fn unusable(error: impl std::fmt::Display) -> CliError {
    CliError::usage(error.to_string())
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

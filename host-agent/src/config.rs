//! `host.toml`: what the host agent needs to know about its host.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use unasnap_channel::TlsFiles;
use unasnap_protocol::control::TransferAddress;
use unasnap_protocol::name::Name;

use crate::hypervisor::qemu::QemuConfig;
use crate::hypervisor::virtualbox::VirtualBoxConfig;
use crate::store::space::Limits;

/// The file as the operator writes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of this host; its certificate says the same.
    pub name: Name,
    /// Address and port of the coordinator.
    pub coordinator: String,
    /// Where VM instances and snapshots are kept; created when missing.
    pub state_dir: PathBuf,
    /// Folder of VM definitions, one TOML file each.
    pub vm_dir: PathBuf,
    /// Folders of the images, kernels and initial RAM disks of which operators may make VMs.
    #[serde(default = "default_image_dirs")]
    pub image_dirs: Vec<PathBuf>,
    /// Certificates.
    pub tls: TlsFiles,
    /// How QEMU is used.
    #[serde(default)]
    pub qemu: QemuConfig,
    /// How VirtualBox is used.
    #[serde(default)]
    pub virtualbox: VirtualBoxConfig,
    /// MiB that snapshots leave free on their file system.
    #[serde(default = "default_reserve")]
    pub reserve_mb: u64,
    /// MiB that all snapshots of this host may take together; without it, whatever the disk has.
    #[serde(default)]
    pub quota_mb: Option<u64>,
    /// Seconds without a word from the coordinator after which all VMs are stopped; without it, they run on for ever.
    #[serde(default)]
    pub self_fence_s: Option<NonZeroU64>,
    /// Where other hosts get files of this host's snapshots; without it, they do not.
    #[serde(default)]
    pub transfer: Option<TransferConfig>,
    /// How this agent knows that somebody sits at the host; without it, nobody does.
    #[serde(default)]
    pub user: Option<UserConfig>,
}

/// The `[transfer]` part.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferConfig {
    /// Address and port. With `0.0.0.0` or `[::]` other hosts are told the address from which this host has connected to
    /// the coordinator.
    pub listen: SocketAddr,
    /// MB per second that all transfers may take together; without it, whatever the network gives.
    #[serde(default)]
    pub rate_mb_s: Option<NonZeroU64>,
}

impl TransferConfig {
    /// Bytes per second.
    #[must_use]
    pub fn per_second(&self) -> Option<u64> {
        self.rate_mb_s.map(|rate| rate.get().saturating_mul(1_000_000))
    }

    /// What the coordinator is told.
    #[must_use]
    pub fn address(&self) -> TransferAddress {
        let ip = Some(self.listen.ip()).filter(|ip| !ip.is_unspecified());
        TransferAddress { ip, port: self.listen.port() }
    }
}

/// The `[user]` part.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserConfig {
    /// There while somebody sits at the host; a hook of the desktop makes and removes it.
    pub file: PathBuf,
    /// Seconds for which it has to be gone until nobody does.
    #[serde(default = "default_away")]
    pub away_after_s: u64,
}

fn default_away() -> u64 {
    60
}

fn default_reserve() -> u64 {
    256
}

fn default_image_dirs() -> Vec<PathBuf> {
    vec!["/srv/images".into()]
}

impl Config {
    /// How much of the disk snapshots may take.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let bytes = |mb: u64| mb.saturating_mul(1 << 20);
        Limits { reserve: bytes(self.reserve_mb), quota: self.quota_mb.map(bytes) }
    }

    /// Reads and checks the file; relative paths in it are relative to its folder.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, or names something that does not exist.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("the configuration {} cannot be read", path.display()))?;
        let mut config: Self = toml::from_str(&text)
            .with_context(|| format!("the configuration {} is wrong", path.display()))?;
        let folder = std::path::absolute(folder_of(path))?;
        for entry in [&mut config.state_dir, &mut config.vm_dir].into_iter().chain(&mut config.image_dirs) {
            *entry = std::path::absolute(folder.join(&*entry))?;
        }
        config.tls.resolve(&folder);
        for login in config.virtualbox.guestcontrol.values_mut() {
            login.password_file = std::path::absolute(folder.join(&login.password_file))?;
        }
        if let Some(user) = &mut config.user {
            user.file = std::path::absolute(folder.join(&user.file))?;
        }
        if !config.vm_dir.is_dir() {
            bail!(
                "vm_dir {} is not a folder: create it and put one TOML file per VM in it",
                config.vm_dir.display()
            );
        }
        std::fs::create_dir_all(&config.state_dir)
            .with_context(|| format!("state_dir {} cannot be created", config.state_dir.display()))?;
        config.qemu.state_dir.clone_from(&config.state_dir);
        config.virtualbox.state_dir.clone_from(&config.state_dir);
        Ok(config)
    }
}

/// The folder in which a file lies; `.` for a bare name.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_may_be_named_without_its_folder() {
        for (path, folder) in
            [("host.toml", "."), ("./host.toml", "."), ("/etc/unasnap/host.toml", "/etc/unasnap")]
        {
            assert_eq!(folder_of(Path::new(path)), Path::new(folder));
            assert!(std::path::absolute(folder_of(Path::new(path))).is_ok());
        }
    }
}

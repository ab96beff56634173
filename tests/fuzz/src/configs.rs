//! What the operator writes into configuration files.

use std::path::Path;

use serde::de::DeserializeOwned;
use unasnap_channel::TlsFiles;

use crate::cluster_config::{ClientConfig, CoordinatorConfig};
use crate::host_config::Config;

fn toml<T: DeserializeOwned>(input: &[u8]) -> Option<T> {
    toml::from_str(std::str::from_utf8(input).ok()?).ok()
}

pub fn host(input: &[u8]) {
    let Some(mut config) = toml::<Config>(input) else { return };
    let (limits, mib) = (config.limits(), 1 << 20);
    assert!(limits.reserve / mib == config.reserve_mb || limits.reserve == u64::MAX);
    assert_eq!(limits.quota.is_some(), config.quota_mb.is_some());
    assert!(config.qemu.state_dir.as_os_str().is_empty(), "it is not the operator's to set");
    found(&mut config.tls);
}

pub fn cluster(input: &[u8]) {
    for mut tls in [
        toml::<CoordinatorConfig>(input).map(|config| config.tls),
        toml::<ClientConfig>(input).map(|config| config.tls),
    ]
    .into_iter()
    .flatten()
    {
        found(&mut tls);
    }
}

/// Wherever the program was started, its files are the same.
fn found(tls: &mut TlsFiles) {
    tls.resolve(Path::new("/etc/unasnap"));
    let all = [Some(&tls.ca), Some(&tls.cert), Some(&tls.key), tls.crl.as_ref()];
    assert!(all.into_iter().flatten().all(|path| path.is_absolute()), "{tls:?}");
}

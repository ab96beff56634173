//! The `[qemu]` part of `host.toml`.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer};

use crate::store::manifest::{Accel, RamWay};

/// The `[qemu]` part of the host agent's configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QemuConfig {
    /// The host agent's state folder; set by the program, not in the table.
    #[serde(skip)]
    pub state_dir: PathBuf,
    /// `"auto"` (KVM if it really boots a guest here, else TCG), `"kvm"` or `"tcg"`.
    #[serde(default, deserialize_with = "auto_or")]
    pub accel: Option<Accel>,
    /// `"auto"` (the best that QEMU can do here), `"live"` or `"stop-and-save"`.
    #[serde(default, deserialize_with = "auto_or")]
    pub ram_way: Option<RamWay>,
}

/// `"auto"` is `None`.
fn auto_or<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == "auto" {
        return Ok(None);
    }
    T::deserialize(serde::de::value::StringDeserializer::new(text)).map(Some)
}

//! Which network interfaces there are, and their addresses.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use nix::ifaddrs::getifaddrs;
use unasnap_protocol::guest::{Interface, Prefix};

const SYS_NET: &str = "/sys/class/net";
/// `ARPHRD_ETHER` of the kernel, as `/sys/class/net/*/type` shows it.
const ETHERNET: &str = "1";

/// Which interfaces the programs hang on.
#[derive(Debug, Clone)]
pub enum Choice {
    /// Every network card, those that are plugged in later included.
    EveryCard,
    /// These.
    Named(Vec<String>),
}

impl Choice {
    /// Those that were named; every card if none was.
    #[must_use]
    pub fn new(named: Vec<String>) -> Self {
        if named.is_empty() { Self::EveryCard } else { Self::Named(named) }
    }

    /// The interfaces as they are now.
    ///
    /// # Errors
    /// There is no card, or sysfs cannot be read.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        match self {
            Self::EveryCard => nics(),
            Self::Named(names) => Ok(names.clone()),
        }
    }
}

/// The interfaces to attach to when nobody names them: every Ethernet interface with a device behind it.
///
/// Bridges, VLAN interfaces and the like are left out. A frame passes through the NIC below them too, and
/// judged a second time it would look uncoloured, since the first time took its colour off.
fn nics() -> Result<Vec<String>> {
    let entries =
        fs::read_dir(SYS_NET).with_context(|| format!("cannot list {SYS_NET}: is sysfs mounted?"))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if is_nic(&entry.path()) {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    if names.is_empty() {
        bail!(
            "no network card found in {SYS_NET}: load its driver first, or name interfaces with --interface"
        );
    }
    names.sort();
    Ok(names)
}

fn is_nic(path: &Path) -> bool {
    let ethernet = fs::read_to_string(path.join("type")).is_ok_and(|kind| kind.trim() == ETHERNET);
    ethernet && path.join("device").exists()
}

/// Hardware address and addresses of the named interfaces, as they are now.
///
/// # Errors
/// The kernel does not list its addresses.
pub fn describe(names: &[String]) -> Result<Vec<Interface>> {
    let empty = |name: &String| Interface { name: name.clone(), mac: [0; 6], addresses: Vec::new() };
    let mut interfaces: Vec<Interface> = names.iter().map(empty).collect();
    for found in getifaddrs().context("cannot list the interfaces' addresses")? {
        let known = interfaces.iter_mut().find(|interface| interface.name == found.interface_name);
        let (Some(interface), Some(address)) = (known, found.address) else { continue };
        if let Some(v4) = address.as_sockaddr_in() {
            interface.addresses.push(Prefix::V4(v4.ip().octets(), 32));
        } else if let Some(v6) = address.as_sockaddr_in6() {
            interface.addresses.push(Prefix::V6(v6.ip().octets(), 128));
        } else if let Some(mac) = address.as_link_addr().and_then(nix::sys::socket::LinkAddr::addr) {
            interface.mac = mac;
        }
    }
    Ok(interfaces)
}

//! The file that describes a deployment.
//!
//! ```toml
//! deployment = "shop"
//! algorithm = "best-fit"
//!
//! [[vms]]
//! name = "web"             # web-1 to web-4
//! count = 4
//! base = "debian-12"
//! profile = "small"
//! disk_mb = 2048
//! hypervisor = "virtualbox"   # then the base is a VDI; may be left out: "qemu"
//!
//! [[vms.nic]]
//! bridge = "br0"
//! addresses = ["10.0.0.10"]   # of web-1; the next ones count up
//!
//! [[bases]]                # may be left out: then hosts that have not preloaded it are no places
//! name = "debian-12"
//! path = "/srv/images/debian-12.qcow2"
//!
//! [limits]                 # may be left out: these are the defaults
//! transmitting_s = 1200
//! configuring_s = 480
//! deploying_s = 240
//! reconnecting_s = 600
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use unasnap_protocol::guest::Prefix;
use unasnap_protocol::household::{NewNic, NewVm, Runner};
use unasnap_protocol::name::Name;
use unasnap_protocol::placement::Algorithm;

use super::super::create::{colouring, several};
use super::course::Limits;
use crate::failure::{CliError, Result};

/// Longest file that is read, bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Most VMs of one deployment.
const MAX_VMS: usize = 1024;

/// All of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeploymentFile {
    /// Its name.
    pub deployment: Name,
    /// How hosts are chosen.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// How long each state may last.
    #[serde(default)]
    pub limits: Limits,
    vms: Vec<Group>,
    #[serde(default)]
    bases: Vec<Source>,
}

/// A base that hosts which lack it can read.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    name: Name,
    path: String,
}

/// A VM that the file asks for.
#[derive(Debug)]
pub struct Wanted {
    /// As its host is to make it.
    pub vm: NewVm,
    /// What its disk may grow by, bytes.
    pub disk_bytes: u64,
}

/// VMs of one kind.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: Name,
    #[serde(default)]
    count: Option<u32>,
    base: Name,
    #[serde(default)]
    hypervisor: Runner,
    #[serde(default)]
    profile: Option<Profile>,
    #[serde(default)]
    cores: Option<u32>,
    #[serde(default)]
    memory_mb: Option<u64>,
    /// What its disk may grow by.
    #[serde(default = "one_gib")]
    disk_mb: u64,
    #[serde(default = "auto")]
    colouring: String,
    #[serde(default)]
    kernel: Option<String>,
    #[serde(default)]
    initrd: Option<String>,
    #[serde(default)]
    append: String,
    #[serde(default)]
    nic: Vec<Card>,
}

/// The hardware profiles of the published system.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Profile {
    Small,
    Medium,
    Large,
    ExtraLarge,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Card {
    bridge: String,
    #[serde(default)]
    addresses: Vec<String>,
}

fn one_gib() -> u64 {
    1024
}

fn auto() -> String {
    "auto".to_owned()
}

impl Profile {
    /// Cores and RAM in MiB.
    fn size(self) -> (u32, u64) {
        match self {
            Self::Small => (1, 1024),
            Self::Medium => (2, 2048),
            Self::Large => (3, 4096),
            Self::ExtraLarge => (4, 8192),
        }
    }
}

impl DeploymentFile {
    /// Reads it.
    ///
    /// # Errors
    /// It cannot be read, or says something that is not understood, with line and column.
    pub fn load(path: &Path) -> Result<Self> {
        let shown = path.display();
        let length = std::fs::metadata(path).map(|about| about.len());
        let text = match length {
            Ok(length) if length > MAX_BYTES => {
                return Err(CliError::usage(format!("{shown} is larger than 1 MiB: that is no deployment")));
            }
            Ok(_) => std::fs::read_to_string(path),
            Err(error) => Err(error),
        };
        let text = text.map_err(|error| CliError::usage(format!("cannot read {shown}: {error}")))?;
        Self::parse(&text).map_err(|error| CliError::usage(format!("{shown}: {error}")))
    }

    fn parse(text: &str) -> std::result::Result<Self, String> {
        let file: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        if file.vms.is_empty() {
            return Err("it has no [[vms]]".to_owned());
        }
        let unused = |source: &&Source| file.vms.iter().all(|group| group.base != source.name);
        match file.bases.iter().find(unused) {
            Some(source) => Err(format!("no [[vms]] has the base {}", source.name)),
            None => Ok(file),
        }
    }

    /// Where hosts that lack a base find it.
    #[must_use]
    pub fn sources(&self) -> BTreeMap<Name, String> {
        self.bases.iter().map(|source| (source.name.clone(), source.path.clone())).collect()
    }

    /// Every VM, in the order of the file.
    ///
    /// # Errors
    /// A group says too much, too little or something wrong; two VMs have one name or address; there are too many.
    pub fn wanted(&self) -> Result<Vec<Wanted>> {
        let mut all = Vec::new();
        for group in &self.vms {
            let one = group.one(&self.deployment)?;
            let vms = match group.count {
                Some(0) => return Err(group.wrong("count is 0; use 1 or more, or leave it out")),
                Some(count) if count as usize > MAX_VMS => {
                    return Err(group.wrong(&format!("count is {count}; use {MAX_VMS} at most")));
                }
                Some(count) => several(&one, count)?,
                None => vec![one],
            };
            let disk_bytes = group.disk_mb.saturating_mul(1 << 20);
            all.extend(vms.into_iter().map(|vm| Wanted { vm, disk_bytes }));
        }
        if all.len() > MAX_VMS {
            return Err(CliError::usage(format!("these are {} VMs; use {MAX_VMS} at most", all.len())));
        }
        are_different(&all)?;
        Ok(all)
    }
}

/// Names are unique, and so are addresses.
fn are_different(all: &[Wanted]) -> Result<()> {
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeMap::new());
    for Wanted { vm, .. } in all {
        if !names.insert(&vm.name) {
            return Err(CliError::usage(format!("two VMs are called {}", vm.name)));
        }
        for address in vm.nics.iter().flat_map(|nic| &nic.addresses) {
            if let Some(other) = addresses.insert(address.to_string(), &vm.name) {
                let text = format!("{other} and {} have the same address, {address}", vm.name);
                return Err(CliError::usage(text));
            }
        }
    }
    Ok(())
}

impl Group {
    fn wrong(&self, words: &str) -> CliError {
        CliError::usage(format!("vms {}: {words}", self.name))
    }

    fn one(&self, deployment: &Name) -> Result<NewVm> {
        let (cpus, memory_mb) = match (self.profile, self.cores, self.memory_mb) {
            (Some(profile), None, None) => profile.size(),
            (None, Some(cores), Some(memory_mb)) => (cores, memory_mb),
            _ => return Err(self.wrong("give either a profile, or cores and memory_mb")),
        };
        if cpus == 0 || memory_mb == 0 {
            return Err(self.wrong("cores or memory_mb is 0"));
        }
        let nic = |card: &Card| {
            let addresses: std::result::Result<Vec<Prefix>, _> =
                card.addresses.iter().map(|address| address.parse()).collect();
            let addresses = addresses.map_err(|error| self.wrong(&format!("{error}")))?;
            Ok(NewNic { bridge: card.bridge.clone(), mac: None, addresses })
        };
        Ok(NewVm {
            name: self.name.clone(),
            deployment: deployment.clone(),
            base: self.base.clone(),
            memory_mb,
            cpus,
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            append: self.append.clone(),
            colouring: colouring(&self.colouring).map_err(|error| self.wrong(&error))?,
            nics: self.nic.iter().map(nic).collect::<Result<_>>()?,
            hypervisor: self.hypervisor,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: &str = "
        deployment = 'shop'
        algorithm = 'best-fit'
        [[vms]]
        name = 'web'
        count = 3
        base = 'debian-12'
        profile = 'medium'
        disk_mb = 2048
        [[vms.nic]]
        bridge = 'br0'
        addresses = ['10.0.0.254']
        [[vms]]
        name = 'db'
        base = 'debian-12'
        hypervisor = 'virtualbox'
        cores = 3
        memory_mb = 700
        [[vms.nic]]
        bridge = 'br0'
        addresses = ['10.0.9.1']
        [[bases]]
        name = 'debian-12'
        path = '/srv/images/debian-12.qcow2'
        [limits]
        deploying_s = 60
    ";

    #[test]
    fn groups_become_vms() {
        let file = DeploymentFile::parse(SHOP).unwrap();
        let all = file.wanted().unwrap();
        let names: Vec<_> = all.iter().map(|one| one.vm.name.as_str()).collect();
        assert_eq!(names, ["web-1", "web-2", "web-3", "db"]);
        let size = |at: usize| (all[at].vm.cpus, all[at].vm.memory_mb, all[at].disk_bytes >> 20);
        assert_eq!((size(0), size(3)), ((2, 2048, 2048), (3, 700, 1024)));
        assert_eq!(all[2].vm.nics[0].addresses, ["10.0.1.0".parse().unwrap()]);
        assert_eq!((all[0].vm.hypervisor, all[3].vm.hypervisor), (Runner::Qemu, Runner::Virtualbox));
        assert_eq!(file.algorithm, Algorithm::BestFit);
        assert_eq!(file.sources().len(), 1);
    }

    #[test]
    fn profiles_are_those_that_were_published() {
        for (profile, size) in
            [("small", (1, 1024)), ("medium", (2, 2048)), ("large", (3, 4096)), ("extralarge", (4, 8192))]
        {
            let file = DeploymentFile::parse(&SHOP.replace("medium", profile)).unwrap();
            let vm = &file.wanted().unwrap()[0].vm;
            assert_eq!((vm.cpus, vm.memory_mb), size, "{profile}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (from, to, words) in [
            ("profile = 'medium'", "profile = 'huge'", "unknown variant `huge`, expected one of `small`"),
            ("profile = 'medium'", "cores = 1", "web: give either a profile, or cores and memory_mb"),
            ("cores = 3", "cores = 0", "db: cores or memory_mb is 0"),
            ("count = 3", "count = 0", "web: count is 0"),
            ("count = 3", "count = -1", "invalid value"),
            ("count = 3", "count = 2000", "web: count is 2000; use 1024 at most"),
            ("count = 3", "count = 1024", "these are 1025 VMs"),
            ("10.0.0.254", "10.0.0.256", "web: "),
            ("10.0.9.1", "10.0.1.0", "web-3 and db have the same address, 10.0.1.0"),
            ("'db'", "'web-2'", "two VMs are called web-2"),
            ("'db'", "'../db'", "not a valid name"),
            ("best-fit", "worst-fit", "unknown variant `worst-fit`"),
            ("'virtualbox'", "'bochs'", "unknown variant `bochs`, expected `qemu` or `virtualbox`"),
            ("disk_mb", "disc_mb", "unknown field `disc_mb`"),
            ("deploying_s", "deploying_m", "unknown field `deploying_m`"),
            ("deployment = 'shop'", "", "missing field `deployment`"),
            ("bridge = 'br0'", "bridge = 'br0'\nmac = '52:54:00:00:00:01'", "unknown field `mac`"),
            ("[[bases]]\n        name = 'debian-12'", "[[bases]]\nname = 'x'", "no [[vms]] has the base x"),
        ] {
            let text = SHOP.replacen(from, to, 1);
            assert_ne!(text, SHOP, "{from}");
            let error = match DeploymentFile::parse(&text) {
                Err(error) => error,
                Ok(file) => file.wanted().unwrap_err().to_string(),
            };
            assert!(error.contains(words), "{from} -> {to}: {error}");
        }
        assert!(DeploymentFile::parse("deployment = 'shop'\nvms = []").unwrap_err().contains("[[vms]]"));
    }
}

//! VM definitions: one TOML file per VM.
//!
//! ```toml
//! name = "node-1"
//! deployment = "ring"
//! memory_mb = 128
//! cpus = 1
//! kernel = "images/vmlinux"
//! initrd = "images/node.cpio"
//! append = "console=ttyS0"
//!
//! [[disk]]
//! image = "images/node-1.qcow2"
//!
//! [[nic]]
//! bridge = "br0"
//! mac = "52:54:00:00:00:01"
//! addresses = ["10.77.1.1", "fd00:77::/64"]
//! ```
//!
//! or a machine of VirtualBox, which knows itself what it consists of:
//!
//! ```toml
//! name = "node-2"
//! deployment = "ring"
//! memory_mb = 128
//! machine = "/vms/node-2/node-2.vbox"
//! colouring = "guest"
//!
//! [[nic]]
//! addresses = ["10.77.2.1"]
//! ```
//!
//! Of one that unasnap has made, each card has a bridge and a hardware address, too.
//!
//! Relative paths are relative to the file's folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use unasnap_protocol::access::Right;
use unasnap_protocol::control;
use unasnap_protocol::guest::Prefix;
use unasnap_protocol::name::Name;

/// Least memory of a VM, MiB; most distribution kernels do not boot below it.
pub const MIN_MEMORY_MB: u64 = 32;
/// Most memory of a VM, MiB (1 TiB).
pub const MAX_MEMORY_MB: u64 = 1 << 20;
/// Most virtual CPUs of a VM.
pub const MAX_CPUS: u32 = 64;
/// Most disks, and most network cards, of a VM: both are PCI devices of one bus.
pub const MAX_DEVICES: usize = 8;
/// Largest definition file that is read, bytes.
pub const MAX_FILE_BYTES: u64 = 64 * 1024;

/// One VM as its operator describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmDefinition {
    /// Unique on the host and in the deployment.
    pub name: Name,
    /// The set of VMs that is snapshotted together with this one.
    pub deployment: Name,
    /// RAM, MiB.
    pub memory_mb: u64,
    /// Virtual CPUs.
    #[serde(default = "one")]
    pub cpus: u32,
    /// The `.vbox` of a machine of VirtualBox; without it, the VM is QEMU's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<PathBuf>,
    /// Kernel to boot directly; without it the VM boots from its first disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk of `kernel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// Command line of `kernel`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub append: String,
    /// How packets to other members get their colour.
    #[serde(default)]
    pub colouring: Colouring,
    /// What operators may do in the guest; nothing, if it is not said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guest_access: Vec<Right>,
    /// Disks, in the order in which the guest sees them.
    #[serde(default, rename = "disk", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// Network cards, in the order in which the guest sees them.
    #[serde(default, rename = "nic", skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<Nic>,
}

/// A disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The image it starts from. It is never written: the VM writes to overlays of it.
    pub image: PathBuf,
    /// What the image is.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub format: ImageFormat,
}

/// What a disk's image is. It is never guessed: a raw image may begin with anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// QEMU's.
    #[default]
    Qcow2,
    /// The disk byte by byte.
    Raw,
    /// VirtualBox's.
    Vdi,
}

impl ImageFormat {
    /// As `qemu-img` calls it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
            Self::Vdi => "vdi",
        }
    }
}

fn is_usual<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A network card of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Bridge of the host on which its tap device is put. A machine of VirtualBox is given it when unasnap makes it; one that the
    /// operator made has its own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub bridge: String,
    /// Hardware address, `52:54:00:12:34:56`; as for the bridge.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Addresses (`10.77.1.1`) and prefixes (`10.77.1.0/24`) by which other members know this VM.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// How a VM's packets are to be coloured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Colouring {
    /// The best way that works: host, else memory, else guest.
    #[default]
    Auto,
    /// By programs on the VM's taps; nothing else.
    Host,
    /// By the guest agent's programs, whose word the host changes in the guest's RAM; else guest.
    Memory,
    /// By the guest agent's programs, driven through the straddle.
    Guest,
    /// By nobody: the cuts of this VM are **not** consistent with the other members'. For control experiments.
    None,
}

impl Colouring {
    /// The ways that are allowed, the best first.
    #[must_use]
    pub fn ways(self) -> &'static [control::Colouring] {
        use control::Colouring::{Guest, Host, Memory, None};
        match self {
            Self::Auto => &[Host, Memory, Guest],
            Self::Host => &[Host],
            Self::Memory => &[Memory, Guest],
            Self::Guest => &[Guest],
            Self::None => &[None],
        }
    }
}

fn one() -> u32 {
    1
}

/// A definition that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    /// The file or folder cannot be read.
    #[error("cannot read {path}: make it a readable file of at most 64 KiB")]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, or an unknown, missing or mistyped key.
    #[error("{path} is not a VM definition: {reason}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and column.
        reason: String,
    },
    /// A key names a file that does not exist.
    #[error("{path}: key `{key}` names {missing}, which does not exist: create it or correct the key")]
    MissingPath {
        /// The definition file.
        path: PathBuf,
        /// The key, e.g. `disk[0].image`.
        key: String,
        /// What it names.
        missing: PathBuf,
    },
    /// A key has a value outside its range.
    #[error("{path}: key `{key}` is {value}: {rule}")]
    Value {
        /// The definition file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it says.
        value: String,
        /// What it may say.
        rule: &'static str,
    },
    /// Two files describe VMs of the same name.
    #[error("{path}: VM {name} is already defined by {first}: rename or remove one of them")]
    Duplicate {
        /// The later file.
        path: PathBuf,
        /// The earlier file.
        first: PathBuf,
        /// The name in both.
        name: Name,
    },
}

impl VmDefinition {
    /// Reads and checks one file; its relative paths become absolute.
    ///
    /// # Errors
    /// [`DefinitionError`] for the first thing that is wrong.
    pub fn load(path: &Path) -> Result<Self, DefinitionError> {
        let text = read_capped(path)
            .map_err(|source| DefinitionError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// As [`load`](Self::load), of a file that would have this text.
    ///
    /// # Errors
    /// As there.
    pub fn parse(text: &str, path: &Path) -> Result<Self, DefinitionError> {
        let mut definition: Self = toml::from_str(text)
            .map_err(|error| DefinitionError::Syntax { path: path.to_owned(), reason: error.to_string() })?;
        let folder = path.parent().unwrap_or(Path::new("."));
        for (_, file) in definition.files_mut() {
            *file = std::path::absolute(folder.join(&*file)).unwrap_or_else(|_| folder.join(&*file));
        }
        if let Some(machine) = &mut definition.machine {
            // It need not exist: a restore brings it.
            *machine = std::path::absolute(folder.join(&*machine)).unwrap_or_else(|_| folder.join(&*machine));
        }
        definition.check(path)?;
        if definition.machine.is_some() && definition.colouring == Colouring::Auto {
            definition.colouring = Colouring::Guest;
        }
        for (key, file) in definition.files_mut() {
            if !file.is_file() {
                return Err(DefinitionError::MissingPath {
                    path: path.to_owned(),
                    key,
                    missing: file.clone(),
                });
            }
        }
        Ok(definition)
    }

    /// Checks a definition that came from elsewhere as one of this host's own; `path` is for words.
    ///
    /// # Errors
    /// As of [`load`](Self::load), but for files that do not exist.
    pub fn check(&self, path: &Path) -> Result<(), DefinitionError> {
        Checker { path, definition: self }.check()
    }

    /// The text of its file, as an operator would write it.
    ///
    /// # Errors
    /// A path in it is not UTF-8.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// Every path of the definition with its key.
    fn files_mut(&mut self) -> impl Iterator<Item = (String, &mut PathBuf)> {
        let kernel = self.kernel.iter_mut().map(|path| ("kernel".to_owned(), path));
        let initrd = self.initrd.iter_mut().map(|path| ("initrd".to_owned(), path));
        let disks = self.disks.iter_mut().enumerate();
        kernel.chain(initrd).chain(disks.map(|(n, disk)| (format!("disk[{n}].image"), &mut disk.image)))
    }

    /// Addresses of all network cards by which other members know this VM.
    #[must_use]
    pub fn prefixes(&self) -> Vec<Prefix> {
        self.nics.iter().flat_map(|nic| &nic.addresses).filter_map(|address| address.parse().ok()).collect()
    }

    /// RAM, bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory_mb << 20
    }
}

/// Loads every `*.toml` of `folder`, sorted by file name. The good ones are returned together with the
/// errors of the others; of two VMs with the same name the first one counts.
///
/// # Errors
/// Only when the folder itself cannot be listed.
pub fn load_folder(folder: &Path) -> Result<(Vec<VmDefinition>, Vec<DefinitionError>), DefinitionError> {
    let (good, bad) = load_files(folder)?;
    Ok((good.into_iter().map(|(_, definition)| definition).collect(), bad))
}

/// A file, and the VM that it defines.
pub type Defined = (PathBuf, VmDefinition);

/// As [`load_folder`], each with its file.
///
/// # Errors
/// As there.
pub fn load_files(folder: &Path) -> Result<(Vec<Defined>, Vec<DefinitionError>), DefinitionError> {
    let unreadable = |source| DefinitionError::Unreadable { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    let mut seen: BTreeMap<Name, PathBuf> = BTreeMap::new();
    for path in paths {
        match VmDefinition::load(&path) {
            Err(error) => bad.push(error),
            Ok(definition) => match seen.get(&definition.name) {
                Some(first) => {
                    let (first, name) = (first.clone(), definition.name);
                    bad.push(DefinitionError::Duplicate { path, first, name });
                }
                None => {
                    seen.insert(definition.name.clone(), path.clone());
                    good.push((path, definition));
                }
            },
        }
    }
    Ok((good, bad))
}

fn read_capped(path: &Path) -> std::io::Result<String> {
    if std::fs::metadata(path)?.len() > MAX_FILE_BYTES {
        return Err(std::io::Error::other("the file is larger than 64 KiB"));
    }
    std::fs::read_to_string(path)
}

/// The rules that the types alone do not express.
struct Checker<'a> {
    path: &'a Path,
    definition: &'a VmDefinition,
}

impl Checker<'_> {
    fn check(&self) -> Result<(), DefinitionError> {
        let vm = self.definition;
        let memory_fits = (MIN_MEMORY_MB..=MAX_MEMORY_MB).contains(&vm.memory_mb);
        self.require(memory_fits, "memory_mb", vm.memory_mb, "use 32 to 1048576")?;
        self.require((1..=MAX_CPUS).contains(&vm.cpus), "cpus", vm.cpus, "use 1 to 64")?;
        if vm.machine.is_some() {
            return self.check_virtualbox();
        }
        self.require(vm.disks.len() <= MAX_DEVICES, "disk", vm.disks.len(), "at most 8 disks")?;
        self.require(vm.nics.len() <= MAX_DEVICES, "nic", vm.nics.len(), "at most 8 network cards")?;
        let boots = vm.kernel.is_some() || !vm.disks.is_empty();
        self.require(boots, "kernel", "missing", "give a kernel or at least one [[disk]]")?;
        let bare = vm.kernel.is_none() && (vm.initrd.is_some() || !vm.append.is_empty());
        self.require(!bare, "kernel", "missing", "initrd and append need a kernel")?;
        let vdi = vm.disks.iter().position(|disk| disk.format == ImageFormat::Vdi);
        let key = format!("disk[{}].format", vdi.unwrap_or_default());
        self.require(
            vdi.is_none(),
            &key,
            "vdi",
            "QEMU's VMs have qcow2 and raw images: convert it with qemu-img",
        )?;
        self.check_cards()?;
        self.check_addresses()
    }

    fn check_cards(&self) -> Result<(), DefinitionError> {
        for (index, nic) in self.definition.nics.iter().enumerate() {
            let key = |name: &str| format!("nic[{index}].{name}");
            self.require(
                is_interface_name(&nic.bridge),
                &key("bridge"),
                &nic.bridge,
                "not an interface name",
            )?;
            self.require(is_mac(&nic.mac), &key("mac"), &nic.mac, "use six hex bytes, the first one even")?;
        }
        Ok(())
    }

    fn check_addresses(&self) -> Result<(), DefinitionError> {
        for (index, nic) in self.definition.nics.iter().enumerate() {
            for address in &nic.addresses {
                let rule = "use an IP address or a prefix such as 10.77.1.0/24";
                self.require(
                    address.parse::<Prefix>().is_ok(),
                    &format!("nic[{index}].addresses"),
                    address,
                    rule,
                )?;
            }
        }
        Ok(())
    }

    fn check_virtualbox(&self) -> Result<(), DefinitionError> {
        let vm = self.definition;
        let rule = "VirtualBox's machine says this itself: remove the key";
        self.require(vm.kernel.is_none() && vm.initrd.is_none(), "kernel", "given", rule)?;
        self.require(vm.append.is_empty(), "append", &vm.append, rule)?;
        self.require(vm.disks.is_empty(), "disk", "given", rule)?;
        self.require(vm.nics.len() <= MAX_DEVICES, "nic", vm.nics.len(), "at most 8 network cards")?;
        // unasnap has made the machine with these.
        if vm.nics.iter().any(|nic| !nic.bridge.is_empty() || !nic.mac.is_empty()) {
            self.check_cards()?;
        }
        let rule = match vm.colouring {
            Colouring::Host => "VirtualBox gives a VM no tap on which the host could colour: use guest",
            Colouring::Memory => "VirtualBox does not let the host write a guest's RAM: use guest",
            _ => return self.check_addresses(),
        };
        self.require(false, "colouring", format!("{:?}", vm.colouring).to_lowercase(), rule)
    }

    fn require(
        &self,
        holds: bool,
        key: &str,
        value: impl ToString,
        rule: &'static str,
    ) -> Result<(), DefinitionError> {
        if holds {
            return Ok(());
        }
        let (path, key) = (self.path.to_owned(), key.to_owned());
        Err(DefinitionError::Value { path, key, value: value.to_string(), rule })
    }
}

/// Linux interface names: 1 to 15 bytes, no slash, no blank; letters, digits, `.`, `_`, `-` are enough for us.
fn is_interface_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=15).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with(['.', '-'])
}

fn is_mac(text: &str) -> bool {
    let bytes: Vec<&str> = text.split(':').collect();
    let hex = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let unicast = |part: &str| u8::from_str_radix(part, 16).is_ok_and(|byte| byte % 2 == 0);
    bytes.len() == 6 && bytes.iter().all(hex) && unicast(bytes[0])
}

// The path is written out because `tests/fuzz` reads this file, too.
#[cfg(test)]
#[path = "definition/tests.rs"]
mod tests;

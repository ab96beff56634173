//! What VirtualBox 7.2 writes of a machine that unasnap has made, and what of that may differ between two.

/// What the value of an attribute may be.
pub enum May {
    /// Anything: VirtualBox takes it for no file, network or device of the host.
    Differ,
    /// One of these.
    Be(&'static [&'static str]),
    /// Something that begins so.
    Begin(&'static str),
    /// The name of the machine.
    Name,
    /// One of its bridges.
    Bridge,
    /// A file of saved RAM in the machine's own folder.
    SavedState,
    /// The other host's place of the guest channel or the console: this host's is written instead.
    Socket,
}

use May::{Be, Begin, Bridge, Differ, Name, SavedState, Socket};

/// An element, those in which it may stand, and what it may say.
pub type Allowed = (&'static str, &'static [&'static str], &'static [(&'static str, May)]);

const ON_OR_OFF: &[(&str, May)] = &[("enabled", Differ)];

/// All of them.
pub const ALLOWED: &[Allowed] = &[
    ("VirtualBox", &[""], &[("xmlns", Be(&["http://www.virtualbox.org/"])), ("version", Differ)]),
    (
        "Machine",
        &["VirtualBox"],
        &[
            ("uuid", Differ),
            ("name", Name),
            ("OSType", Differ),
            ("currentSnapshot", Differ),
            ("snapshotFolder", Be(&["Snapshots"])),
            ("currentStateModified", Differ),
            ("lastStateChange", Differ),
            ("aborted", Differ),
            ("executionEngine", Differ),
        ],
    ),
    ("ExtraData", &["Machine"], &[]),
    // How large its window was.
    ("ExtraDataItem", &["ExtraData"], &[("name", Begin("GUI/")), ("value", Differ)]),
    (
        "Snapshot",
        &["Machine"],
        &[("uuid", Differ), ("name", Differ), ("timeStamp", Differ), ("stateFile", SavedState)],
    ),
    ("Hardware", &["Machine", "Snapshot"], &[]),
    ("Memory", &["Hardware"], &[("RAMSize", Differ)]),
    ("Boot", &["Hardware"], &[]),
    ("Order", &["Boot"], &[("position", Differ), ("device", Be(&["HardDisk", "None"]))]),
    ("Display", &["Hardware"], &[("controller", Differ), ("VRAMSize", Differ)]),
    ("Firmware", &["Hardware"], &[]),
    ("BIOS", &["Hardware"], &[]),
    ("IOAPIC", &["Firmware", "BIOS"], ON_OR_OFF),
    ("SmbiosUuidLittleEndian", &["Firmware", "BIOS"], ON_OR_OFF),
    ("AutoSerialNumGen", &["Firmware", "BIOS"], ON_OR_OFF),
    ("Network", &["Hardware"], &[]),
    (
        "Adapter",
        &["Network"],
        &[("slot", Differ), ("enabled", Be(&["true", "false"])), ("MACAddress", Differ), ("type", Differ)],
    ),
    ("BridgedInterface", &["Adapter"], &[("name", Bridge)]),
    // Of a card that is not there; see `Copy::element`.
    ("NAT", &["Adapter"], &[("localhost-reachable", Differ)]),
    ("UART", &["Hardware"], &[]),
    (
        "Port",
        &["UART"],
        &[
            ("slot", Be(&["0", "1"])),
            ("enabled", Differ),
            ("IOAddress", Differ),
            ("IOBase", Differ),
            ("IRQ", Differ),
            ("server", Be(&["true"])),
            ("path", Socket),
            ("hostMode", Be(&["HostPipe"])),
        ],
    ),
    ("AudioAdapter", &["Hardware"], &[("useDefault", Differ), ("driver", Differ)]),
    ("Clipboard", &["Hardware"], &[]),
    ("GuestProperties", &["Hardware"], &[]),
    (
        "GuestProperty",
        &["GuestProperties"],
        &[("name", Differ), ("value", Differ), ("timestamp", Differ), ("flags", Differ)],
    ),
    ("StorageControllers", &["Hardware"], &[]),
    (
        "StorageController",
        &["StorageControllers"],
        &[
            ("name", Differ),
            ("type", Be(&["AHCI"])),
            ("PortCount", Differ),
            ("useHostIOCache", Differ),
            ("Bootable", Differ),
            ("IDE0MasterEmulationPort", Differ),
            ("IDE0SlaveEmulationPort", Differ),
            ("IDE1MasterEmulationPort", Differ),
            ("IDE1SlaveEmulationPort", Differ),
        ],
    ),
    (
        "AttachedDevice",
        &["StorageController"],
        &[("type", Be(&["HardDisk"])), ("hotpluggable", Differ), ("port", Differ), ("device", Differ)],
    ),
    ("Image", &["AttachedDevice"], &[("uuid", Differ)]),
    ("Platform", &["Machine", "Snapshot"], &[("architecture", Differ)]),
    ("RTC", &["Hardware", "Platform"], &[("localOrUTC", Differ)]),
    ("Paravirt", &["Hardware"], &[("provider", Differ)]),
    ("x86", &["Platform"], &[]),
    ("CPU", &["Hardware", "Platform", "x86"], &[("count", Differ)]),
    ("HardwareVirtExLargePages", &["CPU"], ON_OR_OFF),
    ("PAE", &["CPU"], ON_OR_OFF),
    ("LongMode", &["CPU"], ON_OR_OFF),
    ("X2APIC", &["CPU"], ON_OR_OFF),
];

/// What is left out with all that is in it. The registry is written anew from the disks that are here; what a card would be
/// if it were none of a bridge concerns nobody.
pub const LEFT_OUT: [(&str, &str); 3] =
    [("Machine", "MediaRegistry"), ("Machine", "Description"), ("Adapter", "DisabledModes")];

//! Fuzz targets: whatever comes from outside is decoded here, by the code that ships.
//!
//! A target must not panic, take no more memory than [`memory`] allows, and find what it has decoded again when that is
//! encoded and decoded once more. Files of programs are read by their path: so the fuzzer is built without the
//! programs around them.
//!
//! The inputs that reach all of the code known to be reachable are kept in `corpus/TARGET`; a test runs them.

mod configs;
mod files;
mod hypervisor;
mod images;
pub mod memory;
mod parsers;
mod store;
mod wire;

#[path = "../../../coordinator/src/config.rs"]
#[expect(dead_code, reason = "only what decodes is used here")]
mod cluster_config;
#[path = "../../../coordinator/src/cli/image/ext/talk.rs"]
#[expect(dead_code, reason = "only what decodes is used here")]
mod debugfs;
#[path = "../../../host-agent/src/definition.rs"]
#[expect(dead_code, reason = "only what decodes is used here")]
mod definition;
#[path = "../../../coordinator/src/cli/image/disk.rs"]
#[expect(dead_code, reason = "only what decodes is used here")]
mod disk;
#[path = "../../../coordinator/src/failure.rs"]
#[expect(dead_code, reason = "only what decodes is used here")]
mod failure;
#[path = "../../../host-agent/src/config.rs"]
#[expect(dead_code, reason = "only what decodes is used here")]
mod host_config;
#[path = "../../../host-agent/src/hypervisor/qemu/qmp/line.rs"]
mod line;
#[path = "../../../coordinator/src/daemon/journal/records.rs"]
#[expect(dead_code, reason = "only what decodes is used here")]
mod records;
#[path = "../../../host-agent/src/hypervisor/qemu/ram/stream.rs"]
#[cfg_attr(not(test), expect(dead_code, reason = "only what decodes is used here"))]
mod stream;

/// A decoder under test.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// As on the command line and in `corpus`.
    pub name: &'static str,
    /// Panics if the decoder did something wrong.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 19] = [
    Target { name: "frames", run: wire::frames },
    Target { name: "guest-frames", run: wire::guest_frames },
    Target { name: "control", run: wire::control },
    Target { name: "operator", run: wire::operator },
    Target { name: "guest", run: wire::guest },
    Target { name: "relay", run: wire::relay },
    Target { name: "names", run: wire::names },
    Target { name: "manifest", run: parsers::manifest },
    Target { name: "definition", run: parsers::definition },
    Target { name: "journal", run: parsers::journal },
    Target { name: "migration", run: parsers::migration },
    Target { name: "qmp", run: parsers::qmp },
    Target { name: "host-config", run: configs::host },
    Target { name: "cluster-config", run: configs::cluster },
    Target { name: "vbox", run: files::vbox },
    Target { name: "foreign-vbox", run: files::foreign_vbox },
    Target { name: "qcow2", run: files::qcow2 },
    Target { name: "disk", run: images::disk },
    Target { name: "debugfs", run: images::debugfs },
];

/// The target of this name.
#[must_use]
pub fn find(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}

/// All names, for messages.
#[must_use]
pub fn names() -> String {
    TARGETS.map(|target| target.name).join(", ")
}

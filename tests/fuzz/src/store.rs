//! Modules of the host agent whose files name each other by this path.

#[path = "../../../host-agent/src/store/manifest.rs"]
#[expect(dead_code, reason = "only what decodes is used here")]
pub mod manifest;
#[path = "../../../host-agent/src/store/limits.rs"]
pub mod space;

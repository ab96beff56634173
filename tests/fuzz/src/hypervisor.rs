//! As [`store`](crate::store).

#[path = "../../../host-agent/src/hypervisor/qemu/config.rs"]
#[expect(dead_code, reason = "only what decodes is used here")]
pub mod qemu;
#[path = "../../../host-agent/src/hypervisor/virtualbox/config.rs"]
#[expect(dead_code, reason = "only what decodes is used here")]
pub mod virtualbox;

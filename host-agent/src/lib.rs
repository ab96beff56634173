//! The host agent's library: what a host does for its VMs.
//!
//! | module | what is in it |
//! |---|---|
//! | [`definition`] | VM definitions in TOML |
//! | [`hypervisor`] | the trait that every hypervisor driver implements, and the QEMU driver |
//! | [`store`] | local snapshots on this host's disk |

pub mod definition;
pub mod hypervisor;
pub mod store;

//! The host agent's library: what a host does for its VMs.
//!
//! | module | what is in it |
//! |---|---|
//! | [`access`] | what operators do in guests |
//! | [`colouring`] | how a VM's packets are coloured, the flips among it |
//! | [`config`] | `host.toml` |
//! | [`definition`] | VM definitions in TOML |
//! | [`hypervisor`] | the trait that every hypervisor driver implements, and the drivers of QEMU and VirtualBox |
//! | [`store`] | local snapshots on this host's disk |
//! | [`fence`] | stops the VMs of a host that is cut off |
//! | [`guest_channel`] | requests to the guest agent |
//! | [`drivers`] | which of these are open |
//! | [`moving`] | members that come and go with restores |
//! | [`transfer`] | files of snapshots, from one host to another |
//! | [`works`] | what a member's jobs do |
//! | [`member`] | the task around one VM's participant |
//! | [`members`] | all of them, for whoever looks one up |
//! | [`registry`] | VMs come and go |
//! | [`household`] | what is asked of the host and not of a member |
//! | [`bases`] | read-only images that VMs share |
//! | [`capacity`] | what the machine has for VMs |
//! | [`together`] | members end their pauses together |
//! | [`link`] | the connection to the coordinator |
//! | [`fault_point`] | named points at which tests let steps fail or wait |
//! | [`switches`] | what tests want otherwise |
//! | [`run`] | all of it together |

pub mod access;
pub mod bases;
pub mod capacity;
pub mod clock;
pub mod colouring;
pub mod config;
pub mod definition;
pub mod drivers;
pub mod fault_point;
pub mod fence;
pub mod guest_channel;
pub mod household;
pub mod hypervisor;
pub mod link;
pub mod member;
pub mod members;
pub mod moving;
pub mod registry;
pub mod run;
pub mod store;
pub mod switches;
pub mod together;
pub mod transfer;
pub mod user;
pub mod works;

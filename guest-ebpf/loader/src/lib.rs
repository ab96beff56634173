//! The TC programs as an agent has them in hand: loaded, pinned, hanging on network interfaces, their maps open.
//!
//! Two programs use this. The guest agent hangs the programs on the guest's network cards. The host agent hangs the
//! same programs on the tap devices of a VM, where everything is mirrored: what leaves the VM comes in by the tap.
//! [`Side`] is that difference, and the only one.
//!
//! Nobody is needed for packets to be coloured and judged: programs, maps and links are pinned, so they go on when
//! the agent dies, and the next agent takes them over as they are.
//!
//! | module | what is in it |
//! |---|---|
//! | [`installation`] | everything together: what an agent holds |
//! | [`pins`] | the directory on the BPF file system where everything is pinned |
//! | [`programs`] | loading the programs and running them on a made-up packet |
//! | [`attach`] | hanging them on interfaces: TCX links, else filters on the clsact qdisc |
//! | `query` | which programs hang on an interface |
//! | `qdisc` | removing an empty clsact qdisc |
//! | [`maps`] | the maps as user space sees them |
//! | [`word`] | the state word, mapped into memory |
//! | `check` | self-check |

pub mod attach;
mod check;
pub mod installation;
pub mod maps;
pub mod pins;
pub mod programs;
mod qdisc;
mod query;
pub mod word;

pub use attach::{Side, Site};
pub use installation::Installation;
pub use pins::Pins;

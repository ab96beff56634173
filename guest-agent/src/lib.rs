//! The guest agent: loads the TC programs, hangs them on the guest's network interfaces, and does to their
//! maps what the host agent asks over a virtio-serial port.
//!
//! The agent is not needed for packets to be coloured and judged: programs, maps and links are pinned, so
//! they go on when the agent dies, and the next agent takes them over as they are.
//!
//! | module | what is in it |
//! |---|---|
//! | [`pins`] | the directory on the BPF file system where everything is pinned |
//! | [`programs`] | loading the programs and running them on a made-up packet |
//! | [`attach`] | hanging them on interfaces: TCX links, else filters on the clsact qdisc |
//! | [`qdisc`] | removing an empty clsact qdisc |
//! | [`maps`] | the maps as user space sees them |
//! | [`word`] | the state word, mapped into memory |
//! | [`agent`] | what each request does |
//! | [`check`] | self-check |
//! | [`hooks`] | after a restore: clock, entropy |
//! | [`announce`] | after a restore: gratuitous ARP, unsolicited neighbour advertisement |
//! | [`outside`] | connections that a restore will break |
//! | [`interfaces`] | which interfaces there are, and their addresses |
//! | [`port`] | the port to the host agent |
//! | [`serve`] | requests in, replies out |
//! | [`log`] | lines on stderr |

pub mod agent;
pub mod announce;
pub mod attach;
pub mod check;
pub mod hooks;
pub mod interfaces;
pub mod log;
pub mod maps;
pub mod outside;
pub mod pins;
pub mod port;
pub mod programs;
pub mod qdisc;
pub mod serve;
pub mod word;

//! The guest agent: hangs the TC programs on the guest's network cards (by `unasnap-loader`), and does to their maps
//! what the host agent asks over a virtio-serial port.
//!
//! The agent is not needed for packets to be coloured and judged: they are when it is dead.
//!
//! | module | what is in it |
//! |---|---|
//! | [`agent`] | what each request does |
//! | [`access`] | commands and files for an operator, where the guest allows them |
//! | [`hooks`] | after a restore: clock, entropy |
//! | [`announce`] | after a restore: gratuitous ARP, unsolicited neighbour advertisement |
//! | [`locate`] | where in RAM the state word is |
//! | [`outside`] | connections that a restore will break |
//! | [`interfaces`] | which interfaces there are, and their addresses |
//! | [`port`] | the port to the host agent |
//! | [`relay`] | the same where the host has no port, but runs programs here |
//! | [`serve`] | requests in, replies out |
//! | [`log`] | lines on stderr |

pub mod access;
pub mod agent;
pub mod announce;
pub mod hooks;
pub mod interfaces;
pub mod locate;
pub mod log;
pub mod outside;
pub mod port;
pub mod relay;
pub mod serve;

//! What the TC programs and the guest agent share: the state word, the rules, the map layouts.
//!
//! The kernel half of the package (the binary `unasnap-tc`, feature `programs`) only finds the headers
//! of a packet and carries out what [`ingress`] and [`egress`] decide. Those are pure functions, so the
//! rules that ship are the rules that user-space tests and model checks call.
//!
//! - [`StateWord`]: the member's state in one aligned word, and every legal change of it.
//! - [`rules`]: what happens to a packet.
//! - [`checksum`]: the incremental checksum of RFC 1624.
//! - [`counters`]: the rows of the counter table.
//! - [`layout`]: names, sizes and values of the maps.

#![no_std]

pub mod checksum;
pub mod counters;
pub mod layout;
pub mod rules;
mod word;

pub use counters::Counter;
pub use rules::{CodePoints, Dropped, Egress, Ingress, dropped, egress, ingress};
pub use word::{Colour, Late, StateWord};

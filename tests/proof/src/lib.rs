//! Explores every interleaving of small systems, and simulates larger ones at random, on the very state machines that ship:
//! `unasnap_protocol`'s participant and coordinator, and `unasnap_guest_ebpf`'s word and rules.
//!
//! - [`world`]: the composed system; [`step`]: what can happen in it.
//! - [`explore`]: all of it, breadth first, within a [`budget`]; [`diagram`]: a trace as a space-time diagram.
//! - [`simulate`]: one long run per seed.
//! - [`invariants`]: what must hold, for both; [`variants`]: the systems, honest and mistaken.

pub mod budget;
pub mod diagram;
pub mod explore;
pub mod invariants;
pub mod report;
pub mod setup;
pub mod simulate;
pub mod step;
pub mod variants;
pub mod world;

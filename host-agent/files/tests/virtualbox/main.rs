//! VirtualBox machines: those that VirtualBox 7.2 wrote (`tests/data`: the `.vbox` as it was, and the names and sizes of the
//! files around it), and those that it would never write.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod bad_input;
mod made;
mod recorded;
mod shared_base;
mod support;

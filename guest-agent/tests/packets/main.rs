//! Real packets through the real agent: a guest and a peer in network namespaces of their own, joined by a
//! veth pair, the agent driven over a unix socket in the place of its virtio-serial port.
//!
//! The peer has no agent. It sends and captures raw frames, so that what is on the wire is seen as it is.
//! These tests need root; they touch no network but their own namespaces.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod access;
mod bench;
mod egress;
mod frames;
mod ingress;
mod lifecycle;
mod net;
mod places;
mod relay;
mod self_advance;
mod tap;

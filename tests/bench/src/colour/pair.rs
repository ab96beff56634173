//! Two namespaces and the wire between them.

use anyhow::{Context, Result};

use crate::namespace::{Namespace, run};

/// The device at either end.
pub const DEVICE: &str = "wire";

/// Near end and far end of a veth pair, each in a namespace of its own.
#[derive(Debug)]
pub struct Pair {
    /// Where packets are sent.
    pub near: Namespace,
    /// Where they arrive.
    pub far: Namespace,
}

/// What tells the ends apart: MAC and addresses end in it.
const NEAR: u8 = 1;
const FAR: u8 = 2;

/// IPv4 address of an end.
const fn address4(end: u8) -> [u8; 4] {
    [10, 78, 0, end]
}

impl Pair {
    /// IPv4 addresses, near and far.
    pub const V4: [[u8; 4]; 2] = [address4(NEAR), address4(FAR)];
    /// IPv6 addresses, near and far: `fd78::1`, `fd78::2`.
    pub const V6: [[u8; 16]; 2] = [
        [0xfd, 0x78, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NEAR],
        [0xfd, 0x78, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, FAR],
    ];

    /// Two connected namespaces whose ends know each other, so that nothing but what is measured crosses the wire.
    ///
    /// # Errors
    /// The kernel or `ip` refuse.
    pub fn new() -> Result<Self> {
        let pair = Self { near: Namespace::new()?, far: Namespace::new()? };
        let path = pair.far.path();
        pair.near.within(|| {
            run(&format!("ip link add {DEVICE} type veth peer name {DEVICE} netns {path}")).map(drop)
        })?;
        pair.near.within(|| configure(NEAR, FAR)).context("near end")?;
        pair.far.within(|| configure(FAR, NEAR)).context("far end")?;
        Ok(pair)
    }
}

fn configure(own: u8, peer: u8) -> Result<()> {
    let lines = [
        format!("ip link set {DEVICE} address 02:00:00:00:00:0{own}"),
        format!("ip link set {DEVICE} up"),
        format!("ip address add 10.78.0.{own}/24 dev {DEVICE}"),
        format!("ip address add fd78::{own}/64 dev {DEVICE} nodad"),
        format!("ip neighbour replace 10.78.0.{peer} lladdr 02:00:00:00:00:0{peer} dev {DEVICE}"),
        format!("ip neighbour replace fd78::{peer} lladdr 02:00:00:00:00:0{peer} dev {DEVICE}"),
    ];
    lines.iter().try_for_each(|line| run(line).map(drop))
}

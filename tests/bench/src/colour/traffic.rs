//! UDP datagrams across the wire, and what one costs.
//!
//! A veth device delivers on the processor that sends: `send` returns when the datagram is in the receiver's buffer, so the
//! time that it takes holds both stacks and both ends' rules or programs. The receiver's buffer is emptied between
//! the measured batches.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use super::pair::Pair;

/// Bytes of one datagram's payload.
const PAYLOAD: [u8; 64] = [0x55; 64];
/// Datagrams per batch: few enough for the receiver's buffer, and for most batches not to be interrupted.
const BATCH: u32 = 256;
/// Receiver's buffer, bytes; the kernel counts some hundred bytes of its own per datagram.
const BUFFER_BYTES: usize = 4 << 20;

/// IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// What the names of IPv6 figures have in addition.
    pub fn suffix(self) -> &'static str {
        if self == Self::V6 { "6" } else { "" }
    }

    /// Addresses of the near and the far end.
    fn ends(self) -> [IpAddr; 2] {
        match self {
            Self::V4 => Pair::V4.map(IpAddr::from),
            Self::V6 => Pair::V6.map(IpAddr::from),
        }
    }
}

/// A sender at the near end and a receiver at the far end.
#[derive(Debug)]
pub struct Traffic {
    sender: UdpSocket,
    receiver: UdpSocket,
}

impl Traffic {
    /// Opens the sockets.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open(pair: &Pair, family: Family) -> Result<Self> {
        let [near, far] = family.ends();
        let bind = |address| UdpSocket::bind(SocketAddr::new(address, 0)).context("a UDP socket");
        let receiver = pair.far.within(|| bind(far))?;
        setsockopt(&receiver, RcvBufForce, &BUFFER_BYTES).context("the receiver's buffer")?;
        receiver.set_nonblocking(true).context("the receiver")?;
        let sender = pair.near.within(|| bind(near))?;
        sender.connect(receiver.local_addr().context("the receiver's address")?).context("the sender")?;
        Ok(Self { sender, receiver })
    }

    /// Nanoseconds per datagram, over one batch.
    ///
    /// # Errors
    /// A datagram did not arrive: what was measured would not be what was meant.
    pub fn packet_ns(&self) -> Result<f64> {
        let start = Instant::now();
        for _ in 0..BATCH {
            self.sender.send(&PAYLOAD).context("sending a datagram")?;
        }
        let elapsed = start.elapsed();
        let mut buffer = [0; PAYLOAD.len()];
        let arrived = (0..BATCH).take_while(|_| self.receiver.recv(&mut buffer).is_ok()).count();
        ensure!(arrived == BATCH as usize, "only {arrived} of {BATCH} datagrams arrived");
        Ok(elapsed.as_nanos() as f64 / f64::from(BATCH))
    }
}

//! What a restored guest cannot know by itself: what time it is, and that its randomness is a copy.

use anyhow::{Context, Result};
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
};

const RANDOM_DEVICE: &str = "/dev/urandom";

/// Argument of `RNDADDENTROPY` (random(4)): `struct rand_pool_info` with 32 bytes.
#[repr(C)]
pub struct EntropyPool {
    entropy_bits: i32,
    bytes: i32,
    buffer: [u8; 32],
}

/// `int[2]`, which the request number is made from though the argument is longer.
const POOL_HEAD_BYTES: usize = 8;

mod ioctls {
    nix::ioctl_write_ptr_bad!(
        /// `RNDADDENTROPY` of random(4).
        add_entropy,
        nix::request_code_write!(b'R', 0x03, super::POOL_HEAD_BYTES),
        super::EntropyPool
    );
    nix::ioctl_none!(
        /// `RNDRESEEDCRNG` of random(4).
        reseed,
        b'R',
        0x07
    );
}

/// Sets the wall clock to `unix_ns` nanoseconds since 1970. The monotonic clock goes on as it was.
///
/// # Errors
/// Not root, or a time out of range.
pub fn step_wall_clock(unix_ns: u64) -> Result<()> {
    let now = TimeSpec::from_duration(std::time::Duration::from_nanos(unix_ns));
    clock_settime(ClockId::CLOCK_REALTIME, now).context("cannot step the wall clock")
}

/// Mixes fresh randomness into the kernel's pool and makes it take effect at once: two guests restored from
/// one snapshot would otherwise draw the same keys until the kernel's next reseed, up to a minute later.
///
/// # Errors
/// Not root.
pub fn add_entropy(seed: [u8; 32]) -> Result<()> {
    use std::os::fd::AsRawFd as _;

    let device = std::fs::OpenOptions::new()
        .write(true)
        .open(RANDOM_DEVICE)
        .with_context(|| format!("cannot open {RANDOM_DEVICE}"))?;
    let pool = EntropyPool { entropy_bits: 256, bytes: 32, buffer: seed };
    // SAFETY: the argument is a rand_pool_info whose length field tells the length of its buffer.
    unsafe { ioctls::add_entropy(device.as_raw_fd(), &raw const pool) }.context("cannot add entropy")?;
    // SAFETY: no argument.
    unsafe { ioctls::reseed(device.as_raw_fd()) }.context("cannot reseed the random generator")?;
    Ok(())
}

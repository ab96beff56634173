//! Programs that do nothing, on the hooks of both ends: what any TC program costs before its first instruction.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;

use super::pair::{DEVICE, Pair};

// From the kernel's `linux/bpf.h`.
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
const TYPE_SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;

/// `r0 = TC_ACT_UNSPEC; exit`: the packet goes on.
const INSTRUCTIONS: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
const LICENSE: &[u8; 4] = b"GPL\0";

/// The start of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes what is not given for zero.
#[repr(C)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: *const u64,
    license: *const u8,
}

/// The start of `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
struct Link {
    program: RawFd,
    interface: u32,
    hook: u32,
    flags: u32,
}

/// The links; the programs hang on them as long as they are open.
#[derive(Debug)]
pub struct Empty {
    _links: Vec<OwnedFd>,
}

impl Empty {
    /// Hangs an empty program on every hook of both ends.
    ///
    /// # Errors
    /// The kernel refuses: it is older than Linux 6.6.
    pub fn attach(pair: &Pair) -> Result<Self> {
        let load = Load {
            kind: TYPE_SCHED_CLS,
            instruction_count: INSTRUCTIONS.len() as u32,
            instructions: INSTRUCTIONS.as_ptr(),
            license: LICENSE.as_ptr(),
        };
        // SAFETY: both pointers are good for as long as the program lives, and for what the kernel reads there.
        let program = unsafe { bpf(PROG_LOAD, &load) }.context("loading an empty program")?;
        let mut links = Vec::new();
        for (end, hook) in
            [&pair.near, &pair.far].into_iter().flat_map(|end| [(end, TCX_INGRESS), (end, TCX_EGRESS)])
        {
            links.push(end.within(|| {
                let interface = if_nametoindex(DEVICE).context("the wire's device")?;
                let link = Link { program: program.as_raw_fd(), interface, hook, flags: 0 };
                // SAFETY: the attributes hold no pointers.
                unsafe { bpf(LINK_CREATE, &link) }.context("attaching an empty program")
            })?);
        }
        Ok(Self { _links: links })
    }
}

/// The bpf() system call for commands that answer a new descriptor.
///
/// # Safety
/// `attributes` must be the start of the command's attributes, and its pointers must be good for the call.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are good for the length given with them; the rest is the caller's promise.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
    match RawFd::try_from(answer) {
        // SAFETY: a new descriptor that nobody else owns.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

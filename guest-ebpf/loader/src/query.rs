//! Which programs hang on an interface by TCX: their numbers, which the kernel tells whoever has `CAP_NET_ADMIN`. To learn
//! more about a program that one does not hold takes `CAP_SYS_ADMIN`, which a host agent can do without.

use std::{io, mem, path::Path};

use aya::programs::{
    TcAttachType,
    links::{FdLink, PinnedLink},
    loaded_programs,
};

use crate::pins::Pins;

/// Most programs on one hook (`BPF_MPROG_MAX`).
const MOST: usize = 64;
/// Command of bpf(2).
const BPF_PROG_QUERY: libc::c_long = 16;
/// `enum bpf_attach_type`.
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

/// The part of `union bpf_attr` (linux/bpf.h) that this command has; the kernel takes what is not there for zeros.
#[repr(C)]
struct Query {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Numbers of the programs on a hook of an interface, in the order in which packets meet them.
///
/// # Errors
/// A kernel without TCX (Linux 6.6), no such interface, or no privilege.
pub fn hanging(interface: u32, hook: TcAttachType) -> io::Result<Vec<u32>> {
    let attach_type = match hook {
        TcAttachType::Ingress => BPF_TCX_INGRESS,
        TcAttachType::Egress => BPF_TCX_EGRESS,
        TcAttachType::Custom(_) => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let mut numbers = [0u32; MOST];
    let mut query = Query {
        target_ifindex: interface,
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: numbers.as_mut_ptr() as u64,
        prog_cnt: MOST as u32,
        padding: 0,
        prog_attach_flags: 0,
        link_ids: 0,
        link_attach_flags: 0,
        revision: 0,
    };
    // SAFETY: the kernel reads and writes one `Query`, and writes at most `prog_cnt` numbers to `prog_ids`; both outlive
    // the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, mem::size_of::<Query>()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(numbers[..(query.prog_cnt as usize).min(MOST)].to_vec())
}

/// Name of a program, for who may ask.
pub fn name(program: u32) -> Option<String> {
    let found = loaded_programs().flatten().find(|found| found.id() == program)?;
    found.name_as_str().map(str::to_owned)
}

/// Numbers of the programs whose links are pinned here.
pub fn pinned(pins: &Pins) -> Vec<u32> {
    let program = |pin: &Path| Some(FdLink::from(PinnedLink::from_pin(pin).ok()?).info().ok()?.program_id());
    pins.links().unwrap_or_default().iter().filter_map(|pin| program(pin)).collect()
}

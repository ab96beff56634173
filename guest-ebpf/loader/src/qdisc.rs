//! Removing an empty clsact qdisc, the one thing about filters that aya does not do. Two requests of
//! rtnetlink(7): "list the filters of this hook" and "delete this qdisc".

use std::{io, os::fd::AsRawFd, os::fd::OwnedFd};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
    },
};

/// `TC_H_CLSACT` as parent, and the handle that the kernel gives the qdisc.
const CLSACT_PARENT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
/// `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS` of it.
const HOOKS: [u32; 2] = [0xffff_fff2, 0xffff_fff3];

const HEADER_BYTES: usize = size_of::<libc::nlmsghdr>();
/// `struct tcmsg` of linux/rtnetlink.h.
const TCMSG_BYTES: usize = 20;

/// Removes the clsact qdisc of the interface if no filter is left on it.
///
/// # Errors
/// The kernel refuses, for instance because there is no such qdisc.
pub fn remove_if_empty(interface_index: u32) -> io::Result<()> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    for hook in HOOKS {
        send(&socket, libc::RTM_GETTFILTER, libc::NLM_F_DUMP, interface_index, 0, hook)?;
        if has_filters(&socket)? {
            return Ok(());
        }
    }
    send(&socket, libc::RTM_DELQDISC, libc::NLM_F_ACK, interface_index, CLSACT_HANDLE, CLSACT_PARENT)?;
    read(&socket, |_| {})
}

fn send(
    socket: &OwnedFd,
    kind: u16,
    flags: libc::c_int,
    interface: u32,
    handle: u32,
    parent: u32,
) -> io::Result<()> {
    let length = (HEADER_BYTES + TCMSG_BYTES) as u32;
    let flags = (libc::NLM_F_REQUEST | flags) as u16;
    let mut request = Vec::new();
    request.extend_from_slice(&length.to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(&flags.to_ne_bytes());
    // Sequence and port of the header, family of the tcmsg: all 0.
    for word in [0, 0, 0, interface, handle, parent, 0] {
        request.extend_from_slice(&word.to_ne_bytes());
    }
    sendto(socket.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    Ok(())
}

fn has_filters(socket: &OwnedFd) -> io::Result<bool> {
    let mut found = false;
    read(socket, |kind| found |= kind == libc::RTM_NEWTFILTER)?;
    Ok(found)
}

/// Reads the answer to one request and shows the kind of each message in it.
fn read(socket: &OwnedFd, mut see: impl FnMut(u16)) -> io::Result<()> {
    let mut buffer = [0; 1 << 15];
    loop {
        let count = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            outcome => outcome?,
        };
        let mut rest = &buffer[..count];
        while let Some(header) = rest.first_chunk::<HEADER_BYTES>() {
            let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let kind = u16::from_ne_bytes([header[4], header[5]]);
            if length < HEADER_BYTES || length > rest.len() {
                return Err(io::ErrorKind::InvalidData.into());
            }
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(()),
                libc::NLMSG_ERROR => return outcome(&rest[HEADER_BYTES..length]),
                _ => see(kind),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// The kernel answers a negative error number, or 0 for success.
fn outcome(body: &[u8]) -> io::Result<()> {
    let number =
        body.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)).ok_or(io::ErrorKind::InvalidData)?;
    if number == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-number)) }
}

//! Telling the neighbours where an address lives now: after a restore on another host, switches and
//! neighbour tables still point to the old one. Gratuitous ARP (RFC 5227) and unsolicited neighbour
//! advertisement (RFC 4861, section 7.2.6).

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use unasnap_protocol::guest::{Interface, Prefix};

const BROADCAST: [u8; 6] = [0xff; 6];
/// Ethernet address of the IPv6 group of all nodes, `ff02::1`.
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// Ethernet, IPv4, six and four bytes of address.
const ARP_HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_REQUEST: [u8; 2] = [0, 1];

const ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const OVERRIDE_FLAG: u8 = 0x20;
/// Option "target link-layer address", length in units of 8 bytes.
const TARGET_ADDRESS_OPTION: [u8; 2] = [2, 1];
const ADVERTISEMENT_BYTES: u16 = 32;

/// Announces every address of the interface.
///
/// # Errors
/// The interface is gone, or a frame cannot be sent.
pub fn announce(interface: &Interface) -> Result<()> {
    let index = if_nametoindex(interface.name.as_str())
        .with_context(|| format!("there is no interface {}", interface.name))?;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
        .context("cannot open a packet socket")?;
    for address in &interface.addresses {
        let frame = match *address {
            Prefix::V4(address, _) => gratuitous_arp(interface.mac, address),
            Prefix::V6(address, _) => neighbour_advertisement(interface.mac, address),
        };
        send(&socket, index, &frame)
            .with_context(|| format!("cannot announce an address on {}", interface.name))?;
    }
    Ok(())
}

fn gratuitous_arp(mac: [u8; 6], address: [u8; 4]) -> Vec<u8> {
    let nobody = [0; 6];
    [&BROADCAST[..], &mac, &ETHERTYPE_ARP, &ARP_HEAD, &ARP_REQUEST, &mac, &address, &nobody, &address]
        .concat()
}

fn neighbour_advertisement(mac: [u8; 6], address: [u8; 16]) -> Vec<u8> {
    let flags = [OVERRIDE_FLAG, 0, 0, 0];
    let message = |checksum: [u8; 2]| {
        let kind = [NEIGHBOUR_ADVERTISEMENT, 0];
        [&kind[..], &checksum, &flags, &address, &TARGET_ADDRESS_OPTION, &mac].concat()
    };
    let length = ADVERTISEMENT_BYTES.to_be_bytes();
    let pseudo_header = [&address[..], &ALL_NODES, &[0, 0], &length, &[0, 0, 0, ICMPV6]].concat();
    let checksum = internet_checksum(&[pseudo_header, message([0, 0])].concat());
    let ipv6_head = [&[0x60, 0, 0, 0][..], &length, &[ICMPV6, 255]].concat();
    let ethernet = [&ALL_NODES_MAC[..], &mac, &ETHERTYPE_IPV6].concat();
    [&ethernet[..], &ipv6_head, &address, &ALL_NODES, &message(checksum.to_be_bytes())].concat()
}

/// RFC 1071, over an even number of bytes.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

fn send(socket: &OwnedFd, interface_index: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: a C structure of integers, for which zeros are a value.
    let mut target: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    target.sll_family = libc::AF_PACKET as u16;
    target.sll_ifindex = interface_index.cast_signed();
    target.sll_halen = 6;
    // SAFETY: both pointers are good for the lengths given with them.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const target).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gratuitous_arp_asks_for_its_own_address() {
        let frame = gratuitous_arp([2, 0, 0, 0, 0, 9], [10, 0, 0, 7]);
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[28..32], frame[38..42]);
        assert_eq!(frame[..6], BROADCAST);
    }

    #[test]
    fn a_neighbour_advertisement_has_a_right_checksum() {
        let mut address = [0; 16];
        address[0] = 0xfd;
        address[15] = 7;
        let frame = neighbour_advertisement([2, 0, 0, 0, 0, 9], address);
        assert_eq!(frame.len(), 14 + 40 + usize::from(ADVERTISEMENT_BYTES));
        let length = ADVERTISEMENT_BYTES.to_be_bytes();
        let covered = [&frame[22..54], &[0, 0], &length, &[0, 0, 0, ICMPV6], &frame[54..]].concat();
        assert_eq!(internet_checksum(&covered), 0);
    }
}

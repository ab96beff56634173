//! Who is a member.
//!
//! A multicast or broadcast packet of a member reaches members, so it is coloured and judged like any
//! other. Its receivers know it by the sender's address; the sender itself has to look at its own, since
//! the destination says nothing.

use aya_ebpf::maps::lpm_trie::Key;

use crate::{
    maps::{MEMBERS4, MEMBERS6},
    packet::{Address, Ip},
};

/// Does this outgoing packet reach members?
#[inline(always)]
pub fn receiver(ip: &Ip) -> bool {
    if ip.to_group() { sender(ip) } else { member(&ip.destination()) }
}

/// Does this packet come from a member?
#[inline(always)]
pub fn sender(ip: &Ip) -> bool {
    member(&ip.source())
}

#[inline(always)]
fn member(address: &Address) -> bool {
    match *address {
        Address::V4(address) => MEMBERS4.get(Key::new(32, address)).is_some(),
        Address::V6(address) => MEMBERS6.get(Key::new(128, address)).is_some(),
    }
}

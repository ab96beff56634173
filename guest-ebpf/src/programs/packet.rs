//! Finding and rewriting the IP header, by direct packet access.

use aya_ebpf::{helpers::generated::bpf_csum_update, programs::TcContext};
use unasnap_guest_ebpf::checksum;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;

const NEXT_HEADER_ICMPV6: u8 = 58;
/// Router and neighbour solicitation and advertisement, redirect.
const NEIGHBOUR_DISCOVERY: core::ops::RangeInclusive<u8> = 133..=137;

/// Bits of the ECN within a traffic class.
const ECN_MASK: u8 = 0b11;

const MAC_BYTES: usize = 12;
const VLAN_TAG_BYTES: usize = 4;
const MAX_VLAN_TAGS: usize = 2;
const ETHERNET_BYTES: usize = 14;
/// All that is ever looked at: two VLAN tags, an IPv6 header and an ICMPv6 type.
const LONGEST_HEADERS: usize = ETHERNET_BYTES + MAX_VLAN_TAGS * VLAN_TAG_BYTES + size_of::<Ipv6>() + 1;

#[repr(C, packed)]
struct Ipv4 {
    version_and_length: u8,
    /// 6 bits DSCP, 2 bits ECN.
    traffic_class: u8,
    _length_to_protocol: [u8; 8],
    checksum: [u8; 2],
    source: [u8; 4],
    destination: [u8; 4],
}

#[repr(C, packed)]
struct Ipv6 {
    /// 4 bits version, 6 bits DSCP, 2 bits ECN, 20 bits flow label.
    head: [u8; 4],
    _length: [u8; 2],
    next_header: u8,
    _hop_limit: u8,
    source: [u8; 16],
    destination: [u8; 16],
}

/// What a frame is to us.
pub enum Headers {
    /// A packet that may have to be coloured or judged.
    Ip(Ip),
    /// ARP or IPv6 neighbour discovery: it carries no application state, and without it nobody is reached.
    Exempt,
    /// Neither.
    Other,
}

/// Either end of a packet.
pub enum Address {
    V4([u8; 4]),
    V6([u8; 16]),
}

/// An IP header inside a packet. The pointers are good until a helper changes the packet.
pub struct Ip {
    version: Version,
    to_group: bool,
}

enum Version {
    V4(*mut Ipv4),
    V6(*mut Ipv6),
}

/// Finds the IP header behind up to two VLAN tags.
#[inline(always)]
pub fn parse(ctx: &TcContext) -> Headers {
    make_linear(ctx);
    find(ctx).unwrap_or(Headers::Other)
}

/// The kernel may keep the start of a packet outside the part that programs can reach.
#[inline(always)]
fn make_linear(ctx: &TcContext) {
    let reachable = ctx.data_end() - ctx.data();
    let wanted = LONGEST_HEADERS.min(ctx.len() as usize);
    if reachable < wanted {
        // A failure leaves the packet as it was; then it has no IP header for us.
        let _ = ctx.pull_data(wanted as u32);
    }
}

#[inline(always)]
fn find(ctx: &TcContext) -> Option<Headers> {
    let to_group = read::<u8>(ctx, 0)? & 1 != 0;
    let mut offset = MAC_BYTES;
    let mut ethertype = ethertype(ctx, offset)?;
    for _ in 0..MAX_VLAN_TAGS {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_SERVICE_VLAN {
            break;
        }
        offset += VLAN_TAG_BYTES;
        ethertype = self::ethertype(ctx, offset)?;
    }
    offset += size_of::<u16>();
    let version = match ethertype {
        ETHERTYPE_IPV4 => Version::V4(at(ctx, offset)?),
        ETHERTYPE_IPV6 if is_neighbour_discovery(ctx, offset) => return Some(Headers::Exempt),
        ETHERTYPE_IPV6 => Version::V6(at(ctx, offset)?),
        ETHERTYPE_ARP => return Some(Headers::Exempt),
        _ => return None,
    };
    Some(Headers::Ip(Ip { version, to_group }))
}

/// Neighbour discovery has no extension headers between the IPv6 header and the ICMPv6 type (RFC 6980).
#[inline(always)]
fn is_neighbour_discovery(ctx: &TcContext, offset: usize) -> bool {
    let Some(header) = at::<Ipv6>(ctx, offset) else { return false };
    // SAFETY: `at` has checked that the header lies within the packet.
    if unsafe { (*header).next_header } != NEXT_HEADER_ICMPV6 {
        return false;
    }
    read::<u8>(ctx, offset + size_of::<Ipv6>()).is_some_and(|kind| NEIGHBOUR_DISCOVERY.contains(&kind))
}

#[inline(always)]
fn ethertype(ctx: &TcContext, offset: usize) -> Option<u16> {
    read::<[u8; 2]>(ctx, offset).map(u16::from_be_bytes)
}

#[inline(always)]
fn read<T: Copy>(ctx: &TcContext, offset: usize) -> Option<T> {
    // SAFETY: `at` has checked the bounds; T is a byte or an array of bytes.
    at::<T>(ctx, offset).map(|value| unsafe { *value })
}

/// A pointer to `T` at `offset` of the packet, if all of it lies within.
#[inline(always)]
fn at<T>(ctx: &TcContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    (start + size_of::<T>() <= ctx.data_end()).then_some(start as *mut T)
}

impl Ip {
    /// Is the frame a broadcast or a multicast?
    #[inline(always)]
    pub fn to_group(&self) -> bool {
        self.to_group
    }

    #[inline(always)]
    pub fn dscp(&self) -> u8 {
        match self.version {
            // SAFETY: both pointers come from `at`.
            Version::V4(v4) => unsafe { (*v4).traffic_class >> 2 },
            // SAFETY: as above.
            Version::V6(v6) => unsafe { ((*v6).head[0] & 0x0f) << 2 | (*v6).head[1] >> 6 },
        }
    }

    #[inline(always)]
    pub fn source(&self) -> Address {
        match self.version {
            // SAFETY: both pointers come from `at`.
            Version::V4(v4) => Address::V4(unsafe { (*v4).source }),
            // SAFETY: as above.
            Version::V6(v6) => Address::V6(unsafe { (*v6).source }),
        }
    }

    #[inline(always)]
    pub fn destination(&self) -> Address {
        match self.version {
            // SAFETY: both pointers come from `at`.
            Version::V4(v4) => Address::V4(unsafe { (*v4).destination }),
            // SAFETY: as above.
            Version::V6(v6) => Address::V6(unsafe { (*v6).destination }),
        }
    }

    /// Writes the DSCP and keeps the two ECN bits. To be called last: for IPv6 it calls a helper.
    #[inline(always)]
    pub fn set_dscp(&self, ctx: &TcContext, dscp: u8) {
        match self.version {
            // SAFETY: both pointers come from `at`.
            Version::V4(v4) => unsafe { set_dscp4(&mut *v4, dscp) },
            // SAFETY: as above.
            Version::V6(v6) => unsafe { set_dscp6(ctx, &mut *v6, dscp) },
        }
    }
}

/// The checksum of the header is mended with it, so a checksum that the NIC took over the whole packet
/// stays right.
#[inline(always)]
fn set_dscp4(header: &mut Ipv4, dscp: u8) {
    let before = header.traffic_class;
    let after = dscp << 2 | before & ECN_MASK;
    let word = |traffic_class| u16::from_be_bytes([header.version_and_length, traffic_class]);
    let mended = checksum::replace(u16::from_be_bytes(header.checksum), word(before), word(after));
    header.checksum = mended.to_be_bytes();
    header.traffic_class = after;
}

/// There is no header checksum; but a checksum that the NIC took over the whole packet has to learn of
/// the change (`bpf_csum_update` does nothing where there is none).
#[inline(always)]
fn set_dscp6(ctx: &TcContext, header: &mut Ipv6, dscp: u8) {
    let before = header.head;
    let [first, second, third, fourth] = before;
    let after = [first & 0xf0 | dscp >> 2, dscp << 6 | second & 0x3f, third, fourth];
    header.head = after;
    let added = u64::from(u32::from_ne_bytes(after)) + u64::from(!u32::from_ne_bytes(before));
    let folded = (added & 0xffff_ffff) + (added >> 32);
    // SAFETY: the context is the one this program was called with.
    unsafe { bpf_csum_update(ctx.skb.skb, folded as u32) };
}

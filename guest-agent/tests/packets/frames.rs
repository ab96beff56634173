//! Frames made by hand, and taken apart again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const GUEST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
pub const PEER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 2];

const UDP: u8 = 17;

/// What the tests look at in an IP packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub dscp: u8,
    pub ecn: u8,
    pub protocol: u8,
    /// Behind the IP header.
    pub payload: Vec<u8>,
}

/// The IP packet behind any number of VLAN tags. An IPv4 header with a wrong checksum fails the test.
pub fn parse(frame: &[u8]) -> Option<Packet> {
    let mut offset = 12;
    loop {
        let ethertype = u16::from_be_bytes(*frame.get(offset..)?.first_chunk()?);
        match ethertype {
            0x8100 | 0x88a8 => offset += 4,
            0x0800 => return parse4(&frame[offset + 2..]),
            0x86dd => return parse6(&frame[offset + 2..]),
            _ => return None,
        }
    }
}

fn parse4(packet: &[u8]) -> Option<Packet> {
    let header = packet.first_chunk::<20>()?;
    assert_eq!(checksum(header), 0, "wrong IPv4 header checksum: {header:02x?}");
    Some(Packet {
        source: Ipv4Addr::from([header[12], header[13], header[14], header[15]]).into(),
        destination: Ipv4Addr::from([header[16], header[17], header[18], header[19]]).into(),
        dscp: header[1] >> 2,
        ecn: header[1] & 3,
        protocol: header[9],
        payload: packet[20..].to_vec(),
    })
}

fn parse6(packet: &[u8]) -> Option<Packet> {
    let header = packet.first_chunk::<40>()?;
    assert_eq!(header[0] >> 4, 6);
    let traffic_class = header[0] << 4 | header[1] >> 4;
    Some(Packet {
        source: Ipv6Addr::from(*header[8..].first_chunk::<16>()?).into(),
        destination: Ipv6Addr::from(*header[24..].first_chunk::<16>()?).into(),
        dscp: traffic_class >> 2,
        ecn: traffic_class & 3,
        protocol: header[6],
        payload: packet[40..].to_vec(),
    })
}

/// A UDP datagram from the peer to the guest as an Ethernet frame.
pub fn udp(source: IpAddr, destination: IpAddr, port: u16, traffic_class: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut datagram = [9000_u16.to_be_bytes(), port.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    datagram.extend_from_slice(payload);
    let packet = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ipv4(source, destination, traffic_class, &datagram),
        (IpAddr::V6(source), IpAddr::V6(destination)) => ipv6(source, destination, traffic_class, datagram),
        _ => panic!("addresses of different families"),
    };
    let ethertype: [u8; 2] = if source.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
    [&GUEST_MAC[..], &PEER_MAC, &ethertype, &packet].concat()
}

fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, traffic_class: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let header = |sum: [u8; 2]| {
        let head = [0x45, traffic_class, length[0], length[1], 0, 7, 0, 0, 64, UDP];
        [&head[..], &sum, &source.octets(), &destination.octets()].concat()
    };
    let sum = checksum(&header([0, 0])).to_be_bytes();
    [&header(sum)[..], payload].concat()
}

/// UDP over IPv6 has to have a checksum.
fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, traffic_class: u8, mut datagram: Vec<u8>) -> Vec<u8> {
    let length = u16::try_from(datagram.len()).unwrap().to_be_bytes();
    let pseudo =
        [&source.octets()[..], &destination.octets(), &[0, 0], &length, &[0, 0, 0, UDP], &datagram].concat();
    let sum = checksum(&pseudo).to_be_bytes();
    datagram[6..8].copy_from_slice(&sum);
    let head = [0x60 | traffic_class >> 4, traffic_class << 4, 0, 0, length[0], length[1], UDP, 64];
    [&head[..], &source.octets(), &destination.octets(), &datagram].concat()
}

/// Puts VLAN tags (their ethertypes, outermost first) into a frame.
pub fn tagged(frame: &[u8], tags: &[u16]) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    for (place, ethertype) in tags.iter().enumerate() {
        tagged.extend_from_slice(&ethertype.to_be_bytes());
        tagged.extend_from_slice(&[0, 10 + u8::try_from(place).unwrap()]);
    }
    tagged.extend_from_slice(&frame[12..]);
    tagged
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

//! TCP connections to addresses that are not members: a restore breaks them, so the operator is told how many there are.
//!
//! Read from `/proc/net/tcp` and `tcp6` (the kernel's `tcp4_seq_show`): an address stands there as 32-bit words in host byte
//! order, so on a little-endian machine each group of four bytes is reversed.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use unasnap_protocol::guest::Prefix;

/// State of an established connection in the kernel's tables (`TCP_ESTABLISHED`).
const ESTABLISHED: &str = "01";

/// How many established connections lead to neither a member nor this machine itself.
///
/// # Errors
/// The kernel's table cannot be read.
pub fn count(members: &[Prefix]) -> io::Result<u32> {
    let mut peers = remote_addresses(&std::fs::read_to_string("/proc/net/tcp")?);
    // A kernel without IPv6 has no such table.
    peers.extend(remote_addresses(&std::fs::read_to_string("/proc/net/tcp6").unwrap_or_default()));
    let outside = peers
        .iter()
        .filter(|peer| !peer.is_loopback() && !members.iter().any(|member| holds(*member, **peer)));
    Ok(u32::try_from(outside.count()).unwrap_or(u32::MAX))
}

fn remote_addresses(table: &str) -> Vec<IpAddr> {
    let remote = |line: &str| {
        let mut fields = line.split_whitespace().skip(2);
        let (remote, state) = (fields.next()?, fields.next()?);
        (state == ESTABLISHED).then(|| address(remote.split_once(':')?.0)).flatten()
    };
    table.lines().skip(1).filter_map(remote).collect()
}

fn address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match hex.len() {
        8 => Some(IpAddr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            let bytes: [u8; 16] = words.try_into().ok()?;
            // A socket of IPv6 may talk IPv4.
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

fn holds(member: Prefix, address: IpAddr) -> bool {
    match (member, address) {
        (Prefix::V4(prefix, length), IpAddr::V4(address)) => same_start(&prefix, &address.octets(), length),
        (Prefix::V6(prefix, length), IpAddr::V6(address)) => same_start(&prefix, &address.octets(), length),
        _ => false,
    }
}

fn same_start(prefix: &[u8], address: &[u8], bits: u8) -> bool {
    let (whole, rest) = (usize::from(bits / 8), bits % 8);
    prefix[..whole] == address[..whole] && (rest == 0 || (prefix[whole] ^ address[whole]) >> (8 - rest) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue\n\
        0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n\
        1: 01014D0A:A0B2 02014D0A:2329 01 00000000:00000000\n\
        2: 01014D0A:A0B4 08080808:01BB 01 00000000:00000000\n\
        3: 01014D0A:A0B6 09090909:01BB 06 00000000:00000000\n";
    const TABLE6: &str = "  sl  local_address remote_address st\n\
        0: 0000000000000000FFFF000001014D0A:2328 0000000000000000FFFF000002014D0A:A000 01 0\n\
        1: 000080FE00000000FF005450010000FE:2328 B80D0120000000000000000001000000:A000 01 0\n";

    #[test]
    fn only_established_connections_count_and_mapped_addresses_are_ipv4() {
        let text = |table| remote_addresses(table).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text(TABLE), ["10.77.1.2", "8.8.8.8"]);
        assert_eq!(text(TABLE6), ["10.77.1.2", "2001:db8::1"]);
    }

    #[test]
    fn a_prefix_holds_what_begins_like_it() {
        let member = Prefix::V4([10, 77, 1, 0], 23);
        for (address, inside) in
            [("10.77.0.255", true), ("10.77.1.9", true), ("10.77.2.1", false), ("::1", false)]
        {
            assert_eq!(holds(member, address.parse().unwrap()), inside, "{address}");
        }
        assert!(holds(Prefix::V4([0; 4], 0), "1.2.3.4".parse().unwrap()));
    }
}

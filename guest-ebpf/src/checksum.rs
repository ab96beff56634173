//! Internet checksums changed by a few bytes (RFC 1624), in network byte order throughout.

/// The checksum after one 16-bit word it covers changed from `from` to `to`: `HC' = ~(~HC + ~m + m')`,
/// equation 3 of RFC 1624.
#[inline(always)]
#[must_use]
pub const fn replace(checksum: u16, from: u16, to: u16) -> u16 {
    let sum = (!checksum) as u32 + (!from) as u32 + to as u32;
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(words: &[u16]) -> u16 {
        let mut sum: u32 = words.iter().map(|word| u32::from(*word)).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn replacing_a_word_equals_summing_again() {
        for first in [0x4500, 0x450c, 0x45ff, 0x4f00] {
            for rest in [0, 1, 0x1234, 0x7fff, 0xbaff, 0xfffe, 0xffff] {
                for tos in 0..=0xff {
                    let to = (first & 0xff00) | tos;
                    let before = full(&[first, rest, 0x0011]);
                    assert_eq!(replace(before, first, to), full(&[to, rest, 0x0011]));
                }
            }
        }
    }

    #[test]
    fn the_example_of_the_rfc() {
        assert_eq!(replace(0xdd2f, 0x5555, 0x3285), 0x0000);
    }
}

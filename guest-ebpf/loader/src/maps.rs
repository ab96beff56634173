//! The pinned maps as user space sees them.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use aya::{
    Pod,
    maps::{Array, LpmTrie, Map, MapData, PerCpuArray, lpm_trie::Key},
};
use unasnap_guest_ebpf::{
    CodePoints, Counter, StateWord,
    layout::{self, Config, DropStamp},
};
use unasnap_protocol::guest::{MAX_MEMBER_PREFIXES, Prefix, SetMembers};

use crate::{pins::Pins, word::MappedWord};

/// The value of a trie says nothing; the key is there or it is not.
const PRESENT: u8 = 1;

#[derive(Clone, Copy)]
#[repr(transparent)]
struct ConfigValue(Config);

// SAFETY: a C structure without hidden bytes (`padding` is a field), and any bytes are a value of it.
unsafe impl Pod for ConfigValue {}

/// Every map of [`layout`], open.
pub struct Maps {
    /// The state word; changes go through it, not through the system call.
    pub word: MappedWord,
    state: Array<MapData, u64>,
    config: Array<MapData, ConfigValue>,
    members4: LpmTrie<MapData, [u8; 4], u8>,
    members6: LpmTrie<MapData, [u8; 16], u8>,
    counters: PerCpuArray<MapData, u64>,
    first_drop: Array<MapData, u64>,
}

impl Maps {
    /// Opens the pins. Maps that nobody has configured yet get the default configuration.
    ///
    /// # Errors
    /// A pin is missing or of another kind.
    pub fn open(pins: &Pins) -> Result<Self> {
        let mut maps = Self {
            word: MappedWord::new(data(pins, layout::STATE)?.fd())?,
            state: Array::try_from(open(pins, layout::STATE)?)?,
            config: Array::try_from(open(pins, layout::CONFIG)?)?,
            members4: LpmTrie::try_from(open(pins, layout::MEMBERS4)?)?,
            members6: LpmTrie::try_from(open(pins, layout::MEMBERS6)?)?,
            counters: PerCpuArray::try_from(open(pins, layout::COUNTERS)?)?,
            first_drop: Array::try_from(open(pins, layout::FIRST_DROP)?)?,
        };
        if CodePoints::new(maps.config()?.code_points.values()).is_none() {
            maps.config.set(0, ConfigValue(Config::default()), 0)?;
        }
        Ok(maps)
    }

    /// The word as the kernel finds it, by the system call.
    ///
    /// # Errors
    /// The system call fails.
    pub fn word_by_syscall(&self) -> Result<StateWord> {
        Ok(StateWord::from_bits(self.state.get(&layout::STATE_WORD, 0)?))
    }

    /// Sets the word whatever it was, and forgets when the first packet was dropped: the lease counts
    /// from the first drop under the new word.
    ///
    /// # Errors
    /// The system call fails.
    pub fn set_word(&mut self, word: StateWord) -> Result<()> {
        self.word.store(word);
        self.forget_first_drop()
    }

    /// The lease counts from the next drop.
    ///
    /// # Errors
    /// The system call fails.
    pub fn forget_first_drop(&mut self) -> Result<()> {
        Ok(self.first_drop.set(0, DropStamp::default().bits(), 0)?)
    }

    /// Code points and lease.
    ///
    /// # Errors
    /// The system call fails.
    pub fn config(&self) -> Result<Config> {
        Ok(self.config.get(&0, 0)?.0)
    }

    /// Replaces configuration and members. A prefix of both lists is a member throughout.
    ///
    /// # Errors
    /// Code points or a prefix are out of range, there are too many prefixes, or a system call fails.
    pub fn set_members(&mut self, members: &SetMembers) -> Result<()> {
        let code_points = CodePoints::new(members.code_points).with_context(|| {
            format!("code points {:?} are not three distinct of 1-63", members.code_points)
        })?;
        let wanted = Prefixes::sort(&members.prefixes)?;
        self.config.set(0, ConfigValue(Config::new(code_points, members.future_lease_ms)), 0)?;
        replace(&mut self.members4, &wanted.v4)?;
        replace(&mut self.members6, &wanted.v6)
    }

    /// All members.
    ///
    /// # Errors
    /// The system call fails.
    pub fn members(&self) -> Result<Vec<Prefix>> {
        let mut members = Vec::new();
        for key in self.members4.keys() {
            let key = key?;
            members.push(Prefix::V4(key.data(), prefix_length(key.prefix_len())));
        }
        for key in self.members6.keys() {
            let key = key?;
            members.push(Prefix::V6(key.data(), prefix_length(key.prefix_len())));
        }
        Ok(members)
    }

    /// Every counter, summed over the CPUs, in the order of the map.
    ///
    /// # Errors
    /// The system call fails.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>> {
        let sum = |counter: &Counter| {
            let per_cpu = self.counters.get(&counter.index(), 0)?;
            Ok((*counter, per_cpu.iter().sum()))
        };
        Counter::ALL.iter().map(sum).collect()
    }
}

fn open(pins: &Pins, name: &str) -> Result<Map> {
    Ok(Map::from_map_data(data(pins, name)?)?)
}

fn data(pins: &Pins, name: &str) -> Result<MapData> {
    let path = pins.map(name);
    MapData::from_pin(&path)
        .with_context(|| format!("cannot open the map {}: is its agent running?", path.display()))
}

fn prefix_length(length: u32) -> u8 {
    u8::try_from(length).expect("the kernel allows at most 128 bits")
}

/// Prefixes by family, each once, with the bits behind the prefix cleared.
#[derive(Debug, Default, PartialEq, Eq)]
struct Prefixes {
    v4: BTreeSet<(u32, [u8; 4])>,
    v6: BTreeSet<(u32, [u8; 16])>,
}

impl Prefixes {
    fn sort(prefixes: &[Prefix]) -> Result<Self> {
        if prefixes.len() > MAX_MEMBER_PREFIXES {
            bail!("{} prefixes are more than the {MAX_MEMBER_PREFIXES} allowed", prefixes.len());
        }
        let mut sorted = Self::default();
        for prefix in prefixes {
            match *prefix {
                Prefix::V4(address, length @ ..=32) => {
                    sorted.v4.insert((length.into(), clear_host_bits(address, length)));
                }
                Prefix::V6(address, length @ ..=128) => {
                    sorted.v6.insert((length.into(), clear_host_bits(address, length)));
                }
                Prefix::V4(_, length) => bail!("an IPv4 prefix cannot have {length} bits"),
                Prefix::V6(_, length) => bail!("an IPv6 prefix cannot have {length} bits"),
            }
        }
        Ok(sorted)
    }
}

fn clear_host_bits<const N: usize>(mut address: [u8; N], length: u8) -> [u8; N] {
    for (place, byte) in address.iter_mut().enumerate() {
        let kept = usize::from(length).saturating_sub(8 * place).min(8);
        *byte &= !(0xff_u16 >> kept) as u8;
    }
    address
}

/// Inserts what is new first, then removes what is gone.
fn replace<K: Pod + Ord>(trie: &mut LpmTrie<MapData, K, u8>, wanted: &BTreeSet<(u32, K)>) -> Result<()> {
    let present: BTreeSet<(u32, K)> =
        trie.keys().map(|key| key.map(|key| (key.prefix_len(), key.data()))).collect::<Result<_, _>>()?;
    for (length, address) in wanted.difference(&present) {
        trie.insert(&Key::new(*length, *address), PRESENT, 0)?;
    }
    for (length, address) in present.difference(wanted) {
        trie.remove(&Key::new(*length, *address))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_behind_the_prefix_are_cleared() {
        assert_eq!(clear_host_bits([10, 255, 255, 255], 12), [10, 240, 0, 0]);
        assert_eq!(clear_host_bits([10, 1, 2, 3], 32), [10, 1, 2, 3]);
        assert_eq!(clear_host_bits([10, 1, 2, 3], 0), [0; 4]);
        assert_eq!(clear_host_bits([0xff; 16], 1)[..2], [0x80, 0]);
    }

    #[test]
    fn prefixes_that_mean_the_same_are_one() {
        let sorted = Prefixes::sort(&[Prefix::V4([10, 0, 0, 1], 8), Prefix::V4([10, 9, 9, 9], 8)]).unwrap();
        assert_eq!(sorted.v4.len(), 1);
    }

    #[test]
    fn impossible_prefixes_are_refused() {
        assert!(Prefixes::sort(&[Prefix::V4([0; 4], 33)]).is_err());
        assert!(Prefixes::sort(&[Prefix::V6([0; 16], 129)]).is_err());
        let many = vec![Prefix::V4([0; 4], 32); MAX_MEMBER_PREFIXES + 1];
        assert!(Prefixes::sort(&many).is_err());
    }
}

//! The maps of [`unasnap_guest_ebpf::layout`], and the small ones among their uses.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, LpmTrie, PerCpuArray},
};
use unasnap_guest_ebpf::{CodePoints, Counter, layout};

#[map]
pub static STATE: Array<u64> = Array::pinned(2, BPF_F_MMAPABLE);

#[map]
pub static FIRST_DROP: Array<u64> = Array::pinned(1, 0);

#[map]
static CONFIG: Array<layout::Config> = Array::pinned(1, 0);

#[map]
pub static MEMBERS4: LpmTrie<[u8; 4], u8> = LpmTrie::pinned(layout::MAX_PREFIXES, 0);

#[map]
pub static MEMBERS6: LpmTrie<[u8; 16], u8> = LpmTrie::pinned(layout::MAX_PREFIXES, 0);

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(Counter::ALL.len() as u32, 0);

#[inline(always)]
pub fn count(row: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(row.index()) {
        // SAFETY: the slot belongs to this CPU, and TC programs of one CPU do not interrupt each other.
        unsafe { *value += 1 };
    }
}

#[inline(always)]
pub fn code_points() -> CodePoints {
    CONFIG.get(0).map_or(CodePoints::DEFAULT, |config| config.code_points)
}

#[inline(always)]
pub fn future_lease_ns() -> u64 {
    CONFIG.get(0).map_or(u64::MAX, |config| config.future_lease_ns)
}

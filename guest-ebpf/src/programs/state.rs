//! The state word as the programs see it, and the one change they make to it: self-advance.

use core::arch::asm;

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::TcContext};
use aya_log_ebpf::info;
use unasnap_guest_ebpf::{
    Counter, Dropped, StateWord,
    layout::{DropStamp, STATE_WORD},
};

use crate::maps::{FIRST_DROP, STATE, count, future_lease_ns};

/// The word; {0, 0, off} where there is none, which lets every packet through that an idle member would.
#[inline(always)]
pub fn load() -> StateWord {
    match STATE.get_ptr(STATE_WORD) {
        // SAFETY: the pointer is to an aligned u64 of the map; a volatile load is one 64-bit load.
        Some(bits) => StateWord::from_bits(unsafe { bits.read_volatile() }),
        None => StateWord::default(),
    }
}

/// Called at every drop; [`dropped`](unasnap_guest_ebpf::dropped) says what follows from it.
#[inline(always)]
pub fn dropped(ctx: &TcContext, word: StateWord) {
    let Some(stamp) = FIRST_DROP.get_ptr_mut(0) else { return };
    // SAFETY: an aligned u64 of the map, one 64-bit load.
    let first = DropStamp::from_bits(unsafe { stamp.read_volatile() });
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    match unasnap_guest_ebpf::dropped(word, first, now_ns, future_lease_ns()) {
        // SAFETY: one 64-bit store. Two CPUs may both store a first stamp; they differ by the race's length.
        Dropped::Remember(now) => unsafe { stamp.write_volatile(now.bits()) },
        Dropped::Advance(next) if advance(word, next) => {
            // SAFETY: as above.
            unsafe { stamp.write_volatile(DropStamp::default().bits()) };
            count(Counter::SelfAdvanced);
            info!(ctx, "advanced by itself from epoch {}", word.receive());
        }
        Dropped::Advance(_) | Dropped::Wait => {}
    }
}

/// One compare-and-swap; `false` when the word is no longer the one that dropped the packet.
#[inline(always)]
fn advance(word: StateWord, next: StateWord) -> bool {
    let Some(bits) = STATE.get_ptr_mut(STATE_WORD) else { return false };
    // SAFETY: an aligned u64 of the map.
    let found = unsafe { compare_and_swap(bits, word.bits(), next.bits()) };
    found == word.bits()
}

/// `core` has no compare-and-swap for this target, which learned it late (BPF v3, Linux 5.12).
///
/// # Safety
/// `at` is an aligned `u64` in a map value.
#[inline(always)]
unsafe fn compare_and_swap(at: *mut u64, expected: u64, new: u64) -> u64 {
    let found;
    // SAFETY: the instruction touches only the eight bytes at `at`, which the caller vouches for.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({at} + 0, r0, {new})",
            at = in(reg) at,
            new = in(reg) new,
            inlateout("r0") expected => found,
        );
    }
    found
}

//! How much memory a decoder takes for an input: counted by the allocator, bounded for every target alike.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that any input may cost: what serde sets aside for a list whose length it was told, and the tables of parsers.
const BASE: usize = 4 << 20;
/// Bytes that each byte of input may cost: an element of a list in memory against its shortest encoding.
const PER_BYTE: usize = 512;

/// The system's allocator, which counts.
#[derive(Debug)]
pub struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn add(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed).wrapping_add(bytes);
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came; the counters are beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above; the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs a target and panics if it took more memory at once than its input allows.
pub fn bounded(input: &[u8], run: fn(&[u8])) {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    run(input);
    let taken = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    let allowed = BASE + PER_BYTE * input.len();
    assert!(
        taken <= allowed,
        "{taken} bytes of memory for an input of {}; {allowed} are allowed",
        input.len()
    );
}

//! The state word, mapped into memory: a change is one compare-and-swap of the very eight bytes that the
//! programs read.

use std::{
    ffi::c_void,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, Result};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use unasnap_guest_ebpf::{
    Late, StateWord,
    layout::{STATE_NONCE, STATE_WORD},
};

/// The kernel rounds an array that can be mapped up to whole pages.
const MAPPED_BYTES: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// The first page of the map `STATE`.
#[derive(Debug)]
pub struct MappedWord {
    page: NonNull<c_void>,
}

impl MappedWord {
    /// Maps the array that `map` is open on.
    ///
    /// # Errors
    /// The map cannot be mapped (it was not made with `BPF_F_MMAPABLE`).
    pub fn new(map: impl AsFd) -> Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; it is unmapped in `drop` only.
        let page = unsafe { mmap(None, MAPPED_BYTES, protection, MapFlags::MAP_SHARED, map, 0) }
            .context("cannot map the state word into memory")?;
        Ok(Self { page })
    }

    /// Where this process has the page mapped: the word stands at its start, the nonce in the next eight bytes.
    #[must_use]
    pub fn address(&self) -> usize {
        self.page.as_ptr() as usize
    }

    /// Puts a nonce beside the word, by which a host recognises it in the guest's RAM.
    pub fn set_nonce(&self, nonce: u64) {
        self.cell(STATE_NONCE).store(nonce, Ordering::SeqCst);
    }

    /// The word as it stands.
    #[must_use]
    pub fn load(&self) -> StateWord {
        StateWord::from_bits(self.cell(STATE_WORD).load(Ordering::SeqCst))
    }

    /// Puts `word` there, whatever there was.
    pub fn store(&self, word: StateWord) {
        self.cell(STATE_WORD).store(word.bits(), Ordering::SeqCst);
    }

    /// Applies a transition to the word as it stands, again from the start if the programs changed it in
    /// between, and answers the new word.
    ///
    /// # Errors
    /// The transition refuses the word that it found; the word is unchanged.
    pub fn change(
        &self,
        transition: impl Fn(StateWord) -> Result<StateWord, Late>,
    ) -> Result<StateWord, Late> {
        let mut found = self.load();
        loop {
            let wanted = transition(found)?;
            let swapped = self.cell(STATE_WORD).compare_exchange(
                found.bits(),
                wanted.bits(),
                Ordering::SeqCst,
                Ordering::SeqCst,
            );
            match swapped {
                Ok(_) => return Ok(wanted),
                Err(bits) => found = StateWord::from_bits(bits),
            }
        }
    }

    fn cell(&self, place: u32) -> &AtomicU64 {
        // SAFETY: the page is mapped for as long as `self` lives, page-aligned, longer than both places, and
        // everybody who shares it changes it by single 64-bit stores.
        unsafe { self.page.cast::<AtomicU64>().add(place as usize).as_ref() }
    }
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only reached through atomics.
unsafe impl Send for MappedWord {}
// SAFETY: as above.
unsafe impl Sync for MappedWord {}

impl Drop for MappedWord {
    fn drop(&mut self) {
        // SAFETY: `new` mapped it with this length, and references to it cannot outlive `self`.
        if let Err(error) = unsafe { munmap(self.page, MAPPED_BYTES.get()) } {
            log::warn!("cannot unmap the state word: {error}");
        }
    }
}

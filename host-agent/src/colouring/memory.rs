//! `memory`: the in-guest programs' word, changed in the guest's RAM while the VM stands still.
//!
//! The guest agent says where in guest-physical memory the word is and writes a fresh nonce beside it. A guest can lie
//! about both; all that comes of it is that its own RAM is changed, in the eight bytes that it named, and only where
//! the sixteen bytes look like a word with its nonce: the driver's [`GuestRam`] reaches nothing else.

use std::io;

use unasnap_fault_points::around;
use unasnap_guest_ebpf::{Late, StateWord};
use unasnap_protocol::guest::{Epoch, Located};

use crate::hypervisor::GuestRam;

/// A mapped array begins at a page.
const PAGE_BYTES: u64 = 4096;
const WORD_BYTES: u64 = 8;

/// Why the word cannot be reached, or not changed.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Not where a mapped word can be.
    #[error("the guest agent says that its word is at {0:#x}, which is not the start of a page")]
    Unaligned(u64),
    /// The address is not RAM of this VM, or its RAM cannot be reached.
    #[error("the guest's RAM at {at:#x} cannot be reached: {source}")]
    Ram {
        /// The address.
        at: u64,
        /// Why.
        source: io::Error,
    },
    /// Something else stands there.
    #[error("at {0:#x} of the guest's RAM there is not the word that its agent announced")]
    Nonce(u64),
    /// The word is not what it has to be.
    #[error("the member's word in RAM is {0:?}: it has advanced by itself or was never prepared")]
    Word(StateWord),
    /// What was written is not what is read.
    #[error("the word at {0:#x} did not change when it was written")]
    Lost(u64),
}

/// The word of a guest, found in its RAM.
pub struct MemoryWord {
    ram: Box<dyn GuestRam>,
    at: u64,
    nonce: u64,
}

impl MemoryWord {
    /// Looks where the guest agent says. Writes its own nonce over the nonce, to know now that it can write.
    ///
    /// # Errors
    /// [`MemoryError`]; nothing was changed.
    pub fn find(ram: Box<dyn GuestRam>, located: Located) -> Result<Self, MemoryError> {
        let Located { guest_physical: at, nonce } = located;
        if at % PAGE_BYTES != 0 {
            return Err(MemoryError::Unaligned(at));
        }
        let found = Self { ram, at, nonce };
        found.read()?;
        let beside = at + WORD_BYTES;
        found.ram.write(beside, &nonce.to_le_bytes()).map_err(|source| MemoryError::Ram { at, source })?;
        found.read()?;
        Ok(found)
    }

    /// The word, if the nonce stands beside it.
    fn read(&self) -> Result<StateWord, MemoryError> {
        let mut bytes = [0; 2 * WORD_BYTES as usize];
        self.ram.read(self.at, &mut bytes).map_err(|source| MemoryError::Ram { at: self.at, source })?;
        let [word, nonce] = [&bytes[..8], &bytes[8..]].map(|half| {
            let mut value = [0; 8];
            value.copy_from_slice(half);
            u64::from_le_bytes(value)
        });
        if nonce == self.nonce { Ok(StateWord::from_bits(word)) } else { Err(MemoryError::Nonce(self.at)) }
    }

    /// Is it the word that ARM left?
    ///
    /// # Errors
    /// [`MemoryError`] when it is not.
    pub fn check_armed(&self, epoch: Epoch) -> Result<(), MemoryError> {
        self.read()?.flip(epoch, epoch + 1).map(drop).map_err(|Late { found }| MemoryError::Word(found))
    }

    /// The atomic flip. No vCPU may run, so that reading, comparing and writing is one step.
    ///
    /// # Errors
    /// [`MemoryError`]; except for `Lost` the word is unchanged.
    pub fn flip(&self, epoch: Epoch) -> Result<(), MemoryError> {
        let next = self.read()?.flip(epoch, epoch + 1);
        let next = next.map_err(|Late { found }| MemoryError::Word(found))?;
        let written = around("word", "poke", || self.ram.write(self.at, &next.bits().to_le_bytes()));
        written.map_err(|source| MemoryError::Ram { at: self.at, source })?;
        if self.read()? == next { Ok(()) } else { Err(MemoryError::Lost(self.at)) }
    }
}

#[cfg(test)]
mod tests;

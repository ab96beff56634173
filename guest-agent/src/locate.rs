//! Where the mapped state word is in the guest's RAM, so that the host can change it while the guest stands still.

use std::{fs::File, io::Read, os::unix::fs::FileExt};

use anyhow::{Context, Result, ensure};
use nix::unistd::{SysconfVar, sysconf};
use unasnap_loader::word::MappedWord;
use unasnap_protocol::guest::Located;

const PAGEMAP: &str = "/proc/self/pagemap";
const RANDOM_DEVICE: &str = "/dev/urandom";

/// Of an entry of the page map (the kernel's Documentation/admin-guide/mm/pagemap.rst): the page is in RAM.
const PRESENT: u64 = 1 << 63;
/// Number of the page frame; 0 for whoever may not see it.
const FRAME: u64 = (1 << 55) - 1;

/// Puts a fresh nonce beside the word, and looks up where both are. The kernel keeps the page there for as long as
/// the map lives: its memory is never moved nor swapped.
///
/// # Errors
/// The page map cannot be read, or shows no frame (not root).
pub fn locate(word: &MappedWord) -> Result<Located> {
    let nonce = fresh_nonce()?;
    // Also brings the page into this process's table.
    word.set_nonce(nonce);
    let page_bytes =
        sysconf(SysconfVar::PAGE_SIZE)?.context("the kernel does not tell the size of a page")?;
    let page_bytes = u64::try_from(page_bytes)?;
    let mut entry = [0; 8];
    let pagemap = File::open(PAGEMAP).with_context(|| format!("cannot open {PAGEMAP}"))?;
    let place = word.address() as u64 / page_bytes * entry.len() as u64;
    pagemap.read_exact_at(&mut entry, place).with_context(|| format!("cannot read {PAGEMAP}"))?;
    let entry = u64::from_ne_bytes(entry);
    let frame = entry & FRAME;
    ensure!(entry & PRESENT != 0 && frame != 0, "{PAGEMAP} does not tell where the word is: run as root");
    Ok(Located { guest_physical: frame * page_bytes, nonce })
}

fn fresh_nonce() -> Result<u64> {
    let mut bytes = [0; 8];
    let read = File::open(RANDOM_DEVICE).and_then(|mut device| device.read_exact(&mut bytes));
    read.with_context(|| format!("cannot read {RANDOM_DEVICE}"))?;
    Ok(u64::from_ne_bytes(bytes))
}

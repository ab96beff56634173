//! A guest may say and do what it likes.

use std::sync::{Arc, Mutex};

use super::*;

const AT: u64 = 2 * PAGE_BYTES;
const NONCE: u64 = 0x1122_3344_5566_7788;
const RAM_BYTES: usize = 4 * PAGE_BYTES as usize;

/// RAM that counts what is written to it.
#[derive(Clone)]
struct Ram {
    bytes: Arc<Mutex<Vec<u8>>>,
    written: Arc<Mutex<Vec<(u64, usize)>>>,
    /// Writes are taken and lost.
    forgetful: bool,
}

impl Ram {
    fn with(word: StateWord) -> Self {
        let ram = Self {
            bytes: Arc::new(Mutex::new(vec![0; RAM_BYTES])),
            written: Arc::default(),
            forgetful: false,
        };
        ram.put(AT, word.bits());
        ram.put(AT + 8, NONCE);
        ram
    }

    fn put(&self, at: u64, value: u64) {
        let at = at as usize;
        self.bytes.lock().unwrap()[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn word(&self) -> StateWord {
        let bytes = self.bytes.lock().unwrap();
        StateWord::from_bits(u64::from_le_bytes(*bytes[AT as usize..].first_chunk().unwrap()))
    }

    fn written(&self) -> Vec<(u64, usize)> {
        self.written.lock().unwrap().clone()
    }

    fn found(&self) -> MemoryWord {
        MemoryWord::find(Box::new(self.clone()), Located { guest_physical: AT, nonce: NONCE }).unwrap()
    }
}

impl GuestRam for Ram {
    fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let all = self.bytes.lock().unwrap();
        let range = usize::try_from(at).ok().and_then(|at| all.get(at..at.checked_add(bytes.len())?));
        bytes.copy_from_slice(range.ok_or(io::ErrorKind::InvalidInput)?);
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.written.lock().unwrap().push((at, bytes.len()));
        let mut all = self.bytes.lock().unwrap();
        let range = all.get_mut(at as usize..at as usize + bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
        if !self.forgetful {
            range.copy_from_slice(bytes);
        }
        Ok(())
    }
}

fn armed() -> StateWord {
    StateWord::new(6, 6, true, true)
}

#[test]
fn an_armed_word_is_flipped() {
    let ram = Ram::with(armed());
    let word = ram.found();
    word.check_armed(6).unwrap();
    word.flip(6).unwrap();
    assert_eq!(ram.word(), StateWord::new(7, 7, true, false));
    assert_eq!(ram.written(), [(AT + 8, 8), (AT, 8)], "the nonce over itself, then the word");
    assert!(matches!(word.flip(6), Err(MemoryError::Word(_))), "a second time it is late");
}

#[test]
fn addresses_that_cannot_be_are_refused_and_nothing_is_written() {
    let ram = Ram::with(armed());
    let beyond = RAM_BYTES as u64;
    for at in [AT + 8, AT + 1, 1, beyond, beyond + PAGE_BYTES, u64::MAX, u64::MAX - 4095, 0] {
        let located = Located { guest_physical: at, nonce: NONCE };
        assert!(MemoryWord::find(Box::new(ram.clone()), located).is_err(), "{at:#x}");
    }
    let located = Located { guest_physical: AT, nonce: NONCE + 1 };
    let wrong = MemoryWord::find(Box::new(ram.clone()), located);
    assert!(matches!(wrong, Err(MemoryError::Nonce(AT))));
    assert_eq!(ram.written(), []);
}

#[test]
fn a_nonce_that_changes_between_is_noticed_in_the_pause() {
    let ram = Ram::with(armed());
    let word = ram.found();
    ram.put(AT + 8, NONCE + 1);
    assert!(matches!(word.check_armed(6), Err(MemoryError::Nonce(AT))));
    assert!(matches!(word.flip(6), Err(MemoryError::Nonce(AT))));
    assert_eq!(ram.word(), armed());
}

#[test]
fn every_word_but_the_armed_one_stays() {
    for found in [
        StateWord::new(6, 6, true, false),
        StateWord::new(6, 6, false, true),
        StateWord::new(7, 7, true, false),
        StateWord::new(7, 6, true, true),
        StateWord::new(5, 5, true, true),
    ] {
        let ram = Ram::with(found);
        let word = ram.found();
        assert!(matches!(word.check_armed(6), Err(MemoryError::Word(seen)) if seen == found));
        assert!(matches!(word.flip(6), Err(MemoryError::Word(seen)) if seen == found));
        assert_eq!(ram.word(), found);
    }
}

#[test]
fn a_write_that_does_not_arrive_is_noticed() {
    let ram = Ram { forgetful: true, ..Ram::with(armed()) };
    assert!(matches!(ram.found().flip(6), Err(MemoryError::Lost(AT))));
}

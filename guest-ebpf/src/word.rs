//! The member's state in one aligned 64-bit word, and every legal change of it.
//!
//! ```text
//!  bit 0 ........ 30 | 31 ........... 61 | 62        | 63
//!  send epoch        | receive epoch     | colouring | strict
//! ```
//!
//! All transitions are pure: they take the word that was found and answer the word to put in its place.
//! Whoever applies one does it by compare-and-swap and starts again from the word it finds instead, so a
//! transition that passed its checks is never applied to another word than the one it checked.
//!
//! ```text
//!             set(e)                set_strict(e)           flip_send(e, e+1)        flip_receive(e, e+1)
//!  anything ---------> {e,e,on} --------------> {e,e,on,strict} ------> {e+1,e,on,strict} ------> {e+1,e+1,on}
//!                          \______________________\_________________________/
//!                               self_advanced: {r+1,r+1}, not strict, colouring as it was
//!
//!                                       {e,e,on,strict} ---- flip(e, e+1), while the VM stands still ----> {e+1,e+1,on}
//! ```
//!
//! The receive flip clears strict: strictness protects a snapshot that is still to be taken, and a member
//! that has cut has nothing left to protect (invariant I1 speaks only of packets received *before* the
//! receiver's own cut).

/// Number of bits of one epoch in the word.
const EPOCH_BITS: u32 = 31;
const EPOCH_MASK: u64 = (1 << EPOCH_BITS) - 1;
const COLOURING: u64 = 1 << 62;
const STRICT: u64 = 1 << 63;

/// Epoch mod 3: what a packet carries of the epoch that it was sent in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colour(u8);

impl Colour {
    /// The colour of `epoch`.
    #[inline(always)]
    #[must_use]
    pub const fn of(epoch: u32) -> Self {
        Self((epoch % 3) as u8)
    }

    /// 0, 1 or 2: the place of this colour's code point.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The colour of the next epoch.
    #[inline(always)]
    #[must_use]
    pub const fn next(self) -> Self {
        Self(if self.0 == 2 { 0 } else { self.0 + 1 })
    }
}

/// `{ send epoch, receive epoch, colouring, strict }`, packed.
///
/// Epochs are 31 bits wide and the topmost one is followed by 0; at one snapshot a second that is in 68 years.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct StateWord(u64);

/// The word did not stand where the transition needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Late {
    /// The word that was found; it is unchanged.
    pub found: StateWord,
}

impl StateWord {
    /// Largest epoch that fits.
    pub const MAX_EPOCH: u32 = EPOCH_MASK as u32;

    /// Packs the four parts; of an epoch above [`Self::MAX_EPOCH`] only the lower 31 bits are kept.
    #[inline(always)]
    #[must_use]
    pub const fn new(send: u32, receive: u32, colouring: bool, strict: bool) -> Self {
        let mut bits = send as u64 & EPOCH_MASK;
        bits |= (receive as u64 & EPOCH_MASK) << EPOCH_BITS;
        if colouring {
            bits |= COLOURING;
        }
        if strict {
            bits |= STRICT;
        }
        Self(bits)
    }

    /// The word as it stands in the map.
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The word as it is to stand in the map.
    #[inline(always)]
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Epoch whose colour outgoing packets carry.
    #[inline(always)]
    #[must_use]
    pub const fn send(self) -> u32 {
        (self.0 & EPOCH_MASK) as u32
    }

    /// Epoch by which incoming packets are judged.
    #[inline(always)]
    #[must_use]
    pub const fn receive(self) -> u32 {
        ((self.0 >> EPOCH_BITS) & EPOCH_MASK) as u32
    }

    /// Are outgoing packets coloured?
    #[inline(always)]
    #[must_use]
    pub const fn colouring(self) -> bool {
        self.0 & COLOURING != 0
    }

    /// Are uncoloured packets from members dropped?
    #[inline(always)]
    #[must_use]
    pub const fn strict(self) -> bool {
        self.0 & STRICT != 0
    }

    /// ARM: drop uncoloured packets from members from now on.
    ///
    /// # Errors
    /// [`Late`] unless both halves stand at `epoch` and colouring is on.
    pub const fn set_strict(self, epoch: u32) -> Result<Self, Late> {
        if self.send() == epoch && self.receive() == epoch && self.colouring() {
            Ok(Self::new(epoch, epoch, true, true))
        } else {
            Err(Late { found: self })
        }
    }

    /// The first half of the straddle, before the snapshot instant.
    ///
    /// # Errors
    /// [`Late`] unless both halves stand at `from` and colouring is on. A repetition finds the send half
    /// already at `to` and succeeds without a change.
    pub const fn flip_send(self, from: u32, to: u32) -> Result<Self, Late> {
        let ready = self.receive() == from && self.colouring();
        if ready && (self.send() == from || self.send() == to) {
            Ok(Self::new(to, from, true, self.strict()))
        } else {
            Err(Late { found: self })
        }
    }

    /// The second half of the straddle, after the snapshot instant; clears strict.
    ///
    /// # Errors
    /// [`Late`] unless receive stands at `from` and send at `to`.
    ///
    /// A repetition is [`Late`] too, with the found word at `{to, to}`: that is also what a member which
    /// advanced by itself in the middle of its straddle looks like, and only the first answer tells the
    /// two apart.
    pub const fn flip_receive(self, from: u32, to: u32) -> Result<Self, Late> {
        if self.receive() == from && self.send() == to && from != to {
            Ok(Self::new(to, to, self.colouring(), false))
        } else {
            Err(Late { found: self })
        }
    }

    /// The atomic cut: both halves at once while the VM stands still; clears strict.
    ///
    /// # Errors
    /// [`Late`] unless the word is just what ARM left: both halves at `from`, colouring and strict. So is a
    /// repetition, for the reason that [`flip_receive`](Self::flip_receive) gives.
    pub const fn flip(self, from: u32, to: u32) -> Result<Self, Late> {
        if self.0 == Self::new(from, from, true, true).0 {
            Ok(Self::new(to, to, true, false))
        } else {
            Err(Late { found: self })
        }
    }

    /// What the programs put in place after dropping for longer than the lease: both halves at the epoch
    /// after the receive epoch and nothing filtered. Colouring stays as it was, for a strict peer would
    /// drop uncoloured packets.
    #[inline(always)]
    #[must_use]
    pub const fn self_advanced(self) -> Self {
        let future = self.receive().wrapping_add(1);
        Self::new(future, future, self.colouring(), false)
    }
}

impl core::fmt::Debug for StateWord {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{{send {}, receive {}", self.send(), self.receive())?;
        f.write_str(if self.colouring() { ", on" } else { ", off" })?;
        f.write_str(if self.strict() { ", strict}" } else { "}" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u32 = StateWord::MAX_EPOCH;

    #[test]
    fn packing_keeps_the_four_parts_apart() {
        for send in [0, 1, MAX - 1, MAX] {
            for receive in [0, 1, MAX - 1, MAX] {
                for (colouring, strict) in [(false, false), (false, true), (true, false), (true, true)] {
                    let word = StateWord::new(send, receive, colouring, strict);
                    assert_eq!(word, StateWord::from_bits(word.bits()));
                    assert_eq!(
                        (word.send(), word.receive(), word.colouring(), word.strict()),
                        (send, receive, colouring, strict)
                    );
                }
            }
        }
    }

    #[test]
    fn the_layout_is_what_other_programs_read() {
        assert_eq!(StateWord::new(1, 0, false, false).bits(), 1);
        assert_eq!(StateWord::new(0, 1, false, false).bits(), 1 << 31);
        assert_eq!(StateWord::new(0, 0, true, false).bits(), 1 << 62);
        assert_eq!(StateWord::new(0, 0, false, true).bits(), 1 << 63);
    }

    #[test]
    fn colours_go_round() {
        assert_eq!(Colour::of(5).index(), 2);
        for epoch in 0..9 {
            assert_eq!(Colour::of(epoch).next(), Colour::of(epoch + 1));
        }
    }

    #[test]
    fn a_straddle_walks_through_its_four_words() {
        let prepared = StateWord::new(4, 4, true, false);
        let armed = prepared.set_strict(4).unwrap();
        assert_eq!(armed, StateWord::new(4, 4, true, true));
        let straddling = armed.flip_send(4, 5).unwrap();
        assert_eq!(straddling, StateWord::new(5, 4, true, true));
        assert_eq!(straddling.flip_receive(4, 5), Ok(StateWord::new(5, 5, true, false)));
        assert_eq!(armed.flip(4, 5), straddling.flip_receive(4, 5), "the atomic cut leads to the same place");
    }

    #[test]
    fn a_repeated_request_has_the_effect_of_one() {
        let armed = StateWord::new(4, 4, true, true);
        assert_eq!(armed.set_strict(4), Ok(armed));
        let straddling = StateWord::new(5, 4, true, true);
        assert_eq!(straddling.flip_send(4, 5), Ok(straddling));
    }

    #[test]
    fn every_transition_refuses_every_other_word() {
        let mut words = [StateWord::default(); 64];
        for (place, word) in words.iter_mut().enumerate() {
            let epoch = |bits: usize| 3 + (bits as u32 & 3);
            *word = StateWord::new(epoch(place), epoch(place >> 2), place & 16 != 0, place & 32 != 0);
        }
        for word in words {
            let both_at_4 = word.send() == 4 && word.receive() == 4 && word.colouring();
            let half_way = word.send() == 5 && word.receive() == 4;
            assert_eq!(word.set_strict(4).is_ok(), both_at_4, "{word:?}");
            assert_eq!(word.flip_send(4, 5).is_ok(), both_at_4 || (half_way && word.colouring()), "{word:?}");
            assert_eq!(word.flip_receive(4, 5).is_ok(), half_way, "{word:?}");
            assert_eq!(word.flip(4, 5).is_ok(), both_at_4 && word.strict(), "{word:?}");
            if let Err(late) = word.flip_receive(4, 5) {
                assert_eq!(late.found, word);
            }
        }
    }

    #[test]
    fn a_member_that_advanced_by_itself_refuses_the_cut() {
        let armed = StateWord::new(4, 4, true, true);
        let straddling = StateWord::new(5, 4, true, true);
        let advanced = StateWord::new(5, 5, true, false);
        assert_eq!(armed.self_advanced(), advanced);
        assert_eq!(straddling.self_advanced(), advanced);
        assert!(advanced.flip_send(4, 5).is_err());
        assert!(advanced.flip_receive(4, 5).is_err());
        assert_eq!(StateWord::new(MAX, MAX, false, false).self_advanced().receive(), 0);
    }
}

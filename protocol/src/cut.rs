//! The order of a cut: where around the snapshot instant each half of the word is flipped (protocol.md section 3).

use crate::control::Colouring;
use crate::fault::Fault;

/// A place in the order stop, fix, resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// The VM runs; the stop comes next.
    Before,
    /// It stands still; the snapshot instant comes next.
    Stopped,
    /// It stands still; disks and RAM are fixed.
    Fixed,
    /// It runs again.
    Resumed,
}

/// What is flipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// The epoch whose colour outgoing packets carry.
    Send,
    /// The epoch by which incoming packets are judged.
    Receive,
    /// Both, in one store.
    Both,
}

/// The flips of a cut in their order.
///
/// - `guest`: between the two flips a member neither sends as PRESNAPSHOT nor receives POSTSNAPSHOT, so the instant between
///   them is consistent wherever it falls.
/// - `host`: not later than the stop, for what other members send after their cuts may come at any moment, and would be dropped.
/// - `memory`: not earlier than the instant, or the snapshot would hold the new word.
#[must_use]
pub const fn flips(way: Colouring, fault: Fault) -> &'static [(Moment, Half)] {
    match (way, fault) {
        (Colouring::None, _) => &[],
        (Colouring::Host, _) => &[(Moment::Stopped, Half::Both)],
        (Colouring::Memory, _) => &[(Moment::Fixed, Half::Both)],
        (Colouring::Guest, Fault::SendFlippedLate) => {
            &[(Moment::Resumed, Half::Send), (Moment::Resumed, Half::Receive)]
        }
        (Colouring::Guest, Fault::ReceiveFlippedEarly) => {
            &[(Moment::Before, Half::Send), (Moment::Before, Half::Receive)]
        }
        (Colouring::Guest, _) => &[(Moment::Before, Half::Send), (Moment::Resumed, Half::Receive)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_changes_in_the_pause_or_around_it_send_first() {
        for way in [Colouring::Host, Colouring::Memory] {
            let [(moment, Half::Both)] = flips(way, Fault::None) else { panic!("{way}: one flip") };
            assert!((Moment::Stopped..=Moment::Fixed).contains(moment), "{way}");
        }
        let straddle = [(Moment::Before, Half::Send), (Moment::Resumed, Half::Receive)];
        assert_eq!(flips(Colouring::Guest, Fault::None), straddle);
        assert!(flips(Colouring::None, Fault::None).is_empty());
    }
}

//! What happens to a packet between members: pure functions of the state word and the DSCP.
//!
//! Both are called for packets *between members* only; whoever calls them has found out before that the
//! packet is IP, not neighbour discovery, and that the other end is a member. As most packets are not
//! worth a look-up, callers ask the rule first and look the member up only when the rule wants to act.

use crate::{
    layout::DropStamp,
    word::{Colour, StateWord},
};

/// The DSCP values (1-63, distinct) of the colours 0, 1 and 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct CodePoints([u8; 3]);

impl CodePoints {
    /// The code points to use when nobody configured others. Networks that clear the three precedence
    /// bits leave them distinct, hence a bleached colour is never mistaken for another colour.
    pub const DEFAULT: Self = Self([3, 5, 7]);

    /// `None` unless the values lie in 1-63 and differ from each other.
    #[must_use]
    pub fn new(values: [u8; 3]) -> Option<Self> {
        let [a, b, c] = values;
        let in_range = values.iter().all(|value| (1..=63).contains(value));
        (in_range && a != b && b != c && a != c).then_some(Self(values))
    }

    /// The three values.
    #[must_use]
    pub const fn values(self) -> [u8; 3] {
        self.0
    }

    /// The DSCP of `colour`.
    #[inline(always)]
    #[must_use]
    pub const fn of(self, colour: Colour) -> u8 {
        match colour.index() {
            0 => self.0[0],
            1 => self.0[1],
            _ => self.0[2],
        }
    }

    /// The colour that `dscp` stands for; `None` when the packet is uncoloured.
    #[inline(always)]
    #[must_use]
    pub const fn colour(self, dscp: u8) -> Option<Colour> {
        if dscp == self.0[0] {
            Some(Colour::of(0))
        } else if dscp == self.0[1] {
            Some(Colour::of(1))
        } else if dscp == self.0[2] {
            Some(Colour::of(2))
        } else {
            None
        }
    }
}

/// What to do with a packet that leaves for a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    /// Idle: the application's DSCP stays as it is.
    Leave,
    /// Write this DSCP, the colour of the send epoch.
    Colour(u8),
    /// Idle, but the application used a code point of ours: write 0.
    Sanitise,
}

/// What to do with a packet that comes from a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ingress {
    /// Uncoloured, and not strict: accept, touch nothing.
    Accept,
    /// Same colour as the own: accept, write DSCP 0.
    AcceptColoured,
    /// Sent before the sender's cut and received after the own: it is channel state. Accept, write DSCP 0.
    AcceptInTransit,
    /// The sender has cut and this member has not: drop.
    DropPost,
    /// Uncoloured while strict: drop.
    DropUncoloured,
}

impl Ingress {
    /// Does the packet stop here?
    #[inline(always)]
    #[must_use]
    pub const fn drops(self) -> bool {
        matches!(self, Self::DropPost | Self::DropUncoloured)
    }
}

/// The egress rule.
#[inline(always)]
#[must_use]
pub const fn egress(word: StateWord, dscp: u8, code_points: CodePoints) -> Egress {
    if word.colouring() {
        Egress::Colour(code_points.of(Colour::of(word.send())))
    } else if code_points.colour(dscp).is_some() {
        Egress::Sanitise
    } else {
        Egress::Leave
    }
}

/// The ingress rule. It holds whether or not this member colours its own packets.
#[inline(always)]
#[must_use]
pub const fn ingress(word: StateWord, dscp: u8, code_points: CodePoints) -> Ingress {
    let own = Colour::of(word.receive()).index();
    match code_points.colour(dscp) {
        Some(colour) if colour.index() == own => Ingress::AcceptColoured,
        Some(colour) if colour.next().index() == own => Ingress::AcceptInTransit,
        Some(_) => Ingress::DropPost,
        None if word.strict() => Ingress::DropUncoloured,
        None => Ingress::Accept,
    }
}

/// What follows a drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// The first of this receive epoch: put this stamp in place.
    Remember(DropStamp),
    /// Within the lease: nothing.
    Wait,
    /// Beyond it: put this word in the place of the one that dropped the packet (compare-and-swap), and the empty stamp.
    Advance(StateWord),
}

/// Self-advance (protocol.md section 4): peers have cut long ago and nobody tells this member to, so whoever should have is
/// dead. `word` dropped a packet at the monotonic time `now_ns`; `first` stands where the last [`Dropped::Remember`] put it.
#[inline(always)]
#[must_use]
pub const fn dropped(word: StateWord, first: DropStamp, now_ns: u64, lease_ns: u64) -> Dropped {
    let now = DropStamp::new(word.receive(), now_ns);
    match first.elapsed_ns(now) {
        None => Dropped::Remember(now),
        Some(elapsed) if elapsed > lease_ns => Dropped::Advance(word.self_advanced()),
        Some(_) => Dropped::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODES: CodePoints = CodePoints::DEFAULT;

    #[test]
    fn code_points_are_checked() {
        assert_eq!(CodePoints::new([3, 5, 7]), Some(CodePoints::DEFAULT));
        for bad in [[0, 5, 7], [3, 64, 7], [3, 3, 7], [3, 5, 3], [3, 5, 5]] {
            assert_eq!(CodePoints::new(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn default_code_points_survive_the_clearing_of_precedence_bits() {
        for colour in [0, 1, 2].map(Colour::of) {
            assert_eq!(CODES.colour(CODES.of(colour) & 0b000_111), Some(colour));
        }
    }

    #[test]
    fn egress_colours_by_the_send_epoch_whatever_the_application_set() {
        for (epoch, code) in [(0, 3), (1, 5), (2, 7), (3, 3), (4, 5), (5, 7)] {
            let word = StateWord::new(epoch, 0, true, false);
            for dscp in 0..64 {
                assert_eq!(egress(word, dscp, CODES), Egress::Colour(code));
            }
        }
    }

    #[test]
    fn egress_at_rest_touches_only_our_code_points() {
        let idle = StateWord::new(9, 9, false, false);
        for dscp in 0..64 {
            let expected = if [3, 5, 7].contains(&dscp) { Egress::Sanitise } else { Egress::Leave };
            assert_eq!(egress(idle, dscp, CODES), expected);
        }
    }

    #[test]
    fn ingress_follows_the_table_for_every_epoch_and_dscp() {
        for receive in 0..6 {
            for (strict, colouring) in [(false, false), (false, true), (true, false), (true, true)] {
                let word = StateWord::new(receive, receive, colouring, strict);
                for dscp in 0..64 {
                    let coloured = |epoch: u32| CODES.of(Colour::of(epoch)) == dscp;
                    let expected = if coloured(receive) {
                        Ingress::AcceptColoured
                    } else if coloured(receive + 1) {
                        Ingress::DropPost
                    } else if coloured(receive + 2) {
                        Ingress::AcceptInTransit
                    } else if strict {
                        Ingress::DropUncoloured
                    } else {
                        Ingress::Accept
                    };
                    assert_eq!(ingress(word, dscp, CODES), expected, "{word:?} dscp {dscp}");
                }
            }
        }
    }

    #[test]
    fn a_member_advances_only_after_dropping_for_longer_than_the_lease() {
        const MS: u64 = 1_000_000;
        let word = StateWord::new(4, 4, true, true);
        let Dropped::Remember(first) = dropped(word, DropStamp::default(), 1000 * MS, 2000 * MS) else {
            panic!("the first drop is remembered");
        };
        assert_eq!(dropped(word, first, 2990 * MS, 2000 * MS), Dropped::Wait);
        assert_eq!(dropped(word, first, 3010 * MS, 2000 * MS), Dropped::Advance(word.self_advanced()));
        let next = StateWord::new(5, 5, true, true);
        assert!(
            matches!(dropped(next, first, 3010 * MS, 2000 * MS), Dropped::Remember(_)),
            "another epoch's"
        );
    }
}

//! A host is connected again: what its members are told.

use crate::control::{Order, Phase};

/// What is done about a member whose answer is awaited when its host comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// The decision is sent again.
    TellAgain,
    /// Its local snapshot is gone, and the global one with it.
    Lost,
    /// It goes on by itself.
    Wait,
}

/// How a snapshot ended of which a host agent does not know, as an order. `open` is the step if it is still under way;
/// `committed` says whether the journal has COMMIT, also if it is being deleted since.
///
/// One that is still being saved has not ended: TAKE again makes the member repeat CUT and SAVED.
#[must_use]
pub fn verdict(open: Option<Phase>, committed: bool) -> Order {
    match (open, committed) {
        (Some(Phase::Save), _) => Order::Take(None),
        (_, true) => Order::Commit(()),
        (_, false) => Order::Abort("it was never committed".to_owned()),
    }
}

/// In the saving phase a member goes on by itself; one whose host came back without its local snapshot (`holds` is
/// false) never will. Members that still have to settle are told again.
#[must_use]
pub fn on_return(phase: Phase, holds: bool) -> Return {
    match phase {
        Phase::Commit | Phase::Abort => Return::TellAgain,
        Phase::Save if !holds => Return::Lost,
        _ => Return::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_journal_makes_a_commit() {
        for open in [None, Some(Phase::Prepare), Some(Phase::Take), Some(Phase::Abort)] {
            assert!(matches!(verdict(open, false), Order::Abort(_)), "{open:?}");
        }
        assert_eq!(verdict(None, true), Order::Commit(()));
        assert_eq!(verdict(Some(Phase::Commit), true), Order::Commit(()));
        assert_eq!(verdict(Some(Phase::Save), false), Order::Take(None));
    }

    #[test]
    fn a_member_that_came_back_empty_ends_the_saving() {
        assert_eq!(on_return(Phase::Save, false), Return::Lost);
        assert_eq!(on_return(Phase::Save, true), Return::Wait);
        assert_eq!(on_return(Phase::Abort, false), Return::TellAgain);
        assert_eq!(on_return(Phase::Commit, true), Return::TellAgain);
    }
}

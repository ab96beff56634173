//! What an operator's certificate allows, and which role each request needs.

use std::fmt;
use std::str::FromStr;

use crate::image::ImageRequest;
use crate::operator::Request;

/// What an operator may do. Each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Look at everything, change nothing.
    View,
    /// Take snapshots, and bring VMs back to them.
    Operate,
    /// Destroy what cannot be had again.
    Admin,
}

/// Number of each [`Request`] and the least role that may ask it. The only place that says so.
const NEEDED: [(u16, Role); 17] = [
    (160, Role::View),    // Status
    (161, Role::Operate), // Take
    (162, Role::View),    // List
    (163, Role::View),    // Show
    (164, Role::Admin),   // Delete
    (165, Role::Operate), // Restore
    (166, Role::Operate), // Verify
    (167, Role::Operate), // Control
    (168, Role::Operate), // Pause
    (169, Role::Operate), // Resume
    (170, Role::View),    // Bases
    (171, Role::View),    // Household: what its task needs
    (172, Role::Operate), // RestoreAt
    (173, Role::View),    // Image: all but its list changes something
    (174, Role::Admin),   // Access
    (175, Role::Operate), // Console
    (240, Role::Operate), // GiveWay
];

impl Role {
    /// All, the least first.
    pub const ALL: [Self; 3] = [Self::View, Self::Operate, Self::Admin];

    /// As it stands in certificates and on the command line.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

impl Request {
    /// The least role that may ask this. What the table forgets is for admins only.
    #[must_use]
    pub fn needed_role(&self) -> Role {
        let number = self.number();
        let least = NEEDED.iter().find(|(known, _)| *known == number).map_or(Role::Admin, |(_, role)| *role);
        match self {
            Self::Household(request) => least.max(request.task.needed_role()),
            Self::Image(ImageRequest::List(_)) => least,
            Self::Image(_) => least.max(Role::Operate),
            _ => least,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.label())
    }
}

/// A text that is no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no role {0:?}; use view, operate or admin")]
pub struct BadRole(String);

impl FromStr for Role {
    type Err = BadRole;
    fn from_str(text: &str) -> Result<Self, BadRole> {
        let known = Self::ALL.into_iter().find(|role| role.label() == text);
        known.ok_or_else(|| BadRole(text.chars().take(16).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{AccessRequest, Ask, ConsoleRequest};
    use crate::elsewhere::RestoreRequest;
    use crate::household::{HouseholdRequest, Task};
    use crate::power::{ControlRequest, GivingWay, Verb};

    #[test]
    fn every_request_stands_in_the_table_once() {
        let known: Vec<u16> = NEEDED.iter().map(|(number, _)| *number).collect();
        assert_eq!(known, Request::NUMBERS);
    }

    #[test]
    fn whoever_may_only_look_changes_nothing() {
        let name = || crate::name::Name::new("s-1").unwrap();
        let vms = vec![name().into()].try_into().unwrap();
        let household = |task| Request::Household(HouseholdRequest { host: None, task });
        let control = || ControlRequest { verb: Verb::Pause, vms };
        let restore = || RestoreRequest { snapshot: None, places: Vec::new() };
        let needed = [
            (Request::Status(()), Role::View),
            (Request::List(true), Role::View),
            (Request::Show(name()), Role::View),
            (Request::Take(None), Role::Operate),
            (Request::Restore(None), Role::Operate),
            (Request::Delete(name()), Role::Admin),
            (Request::Verify(name()), Role::Operate),
            (Request::Control(control()), Role::Operate),
            (Request::Pause(name()), Role::Operate),
            (Request::Resume(name()), Role::Operate),
            (Request::GiveWay(GivingWay { deployment: name(), on: true }), Role::Operate),
            (Request::Bases(None), Role::View),
            (household(Task::Bases), Role::View),
            (household(Task::Preload { path: "/x".to_owned(), name: None }), Role::Operate),
            (household(Task::Files { vm: name(), snapshot: None }), Role::View),
            (household(Task::Unregister(name())), Role::Operate),
            (household(Task::Delete { vm: name(), force: false, lose_snapshots: false }), Role::Admin),
            (Request::RestoreAt(restore()), Role::Operate),
            (Request::Image(ImageRequest::List(None)), Role::View),
            (Request::Image(ImageRequest::Remove("d:1".parse().unwrap())), Role::Operate),
            (
                Request::Image(ImageRequest::Preload {
                    image: "d:1".parse().unwrap(),
                    hosts: Vec::new(),
                    per_second: None,
                    within_s: 1,
                }),
                Role::Operate,
            ),
            (Request::Access(AccessRequest::Turn(name(), 2, Ask::More(1))), Role::Admin),
            (Request::Console(ConsoleRequest { vm: name(), lines: 1 }), Role::Operate),
        ];
        for (request, role) in needed {
            assert_eq!(request.needed_role(), role, "{}", request.name());
        }
        assert!(Role::ALL.is_sorted());
    }

    #[test]
    fn roles_are_read_as_they_are_written() {
        for role in Role::ALL {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert!("root".parse::<Role>().unwrap_err().to_string().contains("use view, operate or admin"));
    }
}

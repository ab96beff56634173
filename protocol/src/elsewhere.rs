//! Restores elsewhere, as operators ask for them and hear of them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::control::Moved;
use crate::name::Name;
use crate::operator::Place;

/// A restore with VMs on hosts that are named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreRequest {
    /// What is restored, or the newest usable snapshot.
    pub snapshot: Option<Name>,
    /// VMs that are to run on these hosts; the others run where they live.
    pub places: Vec<Place>,
}

/// How far files are on their way to the hosts that need them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FetchProgress {
    /// What is restored, or the task that brings an image to hosts.
    pub snapshot: Name,
    /// Every member whose files are fetched, or every host that gets an image.
    pub members: Vec<FetchedMember>,
}

/// One member whose files come, or have come, from another host; or a host to which an image comes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FetchedMember {
    /// The VM, or the host that gets an image.
    pub vm: Name,
    /// Whence.
    pub from: Name,
    /// Where it is to run.
    pub to: Name,
    /// Bytes that came over the network, in all attempts.
    pub sent: u64,
    /// Bytes that will have come in the end; 0 while nothing is known.
    pub to_send: u64,
    /// Lengths of all files that it needs.
    pub total: u64,
    /// At the speed so far, seconds; `None` while there is none.
    pub seconds_left: Option<f64>,
    /// Of `sent`, in attempts that broke off.
    #[serde(skip)]
    earlier: u64,
}

impl FetchedMember {
    /// Nothing has come.
    #[must_use]
    pub fn new(vm: Name, from: Name, to: Name) -> Self {
        Self { vm, from, to, sent: 0, to_send: 0, total: 0, seconds_left: None, earlier: 0 }
    }

    /// So much has come in this attempt; the first one began so many seconds ago.
    pub fn note(&mut self, moved: Moved, seconds: f64) {
        if moved.sent < self.sent - self.earlier {
            self.earlier = self.sent;
        }
        let all = |bytes: u64| bytes.saturating_add(self.earlier);
        (self.sent, self.to_send, self.total) = (all(moved.sent), all(moved.to_send), moved.total);
        let left = moved.to_send.saturating_sub(moved.sent) as f64;
        self.seconds_left = (self.sent > 0).then(|| left * seconds / self.sent as f64);
    }
}

/// Where the files of a usable snapshot lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copies {
    /// On how many hosts each member's files are to lie, the one where they were taken among them.
    pub wanted: u32,
    /// Every member, in the order of their names.
    pub members: Vec<MemberCopies>,
}

/// Where the files of one member lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberCopies {
    /// The VM.
    pub vm: Name,
    /// Hosts that have all of them; where they were taken comes first.
    pub hosts: Vec<Name>,
    /// Why there are fewer than are wanted, or how far the next copy is, in words.
    pub missing: Option<String>,
}

impl Copies {
    /// How many hosts have the files of whichever member has the fewest.
    #[must_use]
    pub fn reached(&self) -> usize {
        self.members.iter().map(|member| member.hosts.len()).min().unwrap_or_default()
    }
}

/// In megabytes, as people read it.
impl fmt::Display for FetchedMember {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        write!(formatter, "moved {:.0} of {:.0} MB from {}", mb(self.sent), mb(self.total), self.from)
    }
}

/// A text that names no VM and host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not VM=HOST; write for instance vm1=beta, and commas between several")]
pub struct BadPlace(String);

impl FromStr for Place {
    type Err = BadPlace;
    fn from_str(text: &str) -> Result<Self, BadPlace> {
        let bad = || BadPlace(text.chars().take(80).collect());
        let (vm, host) = text.split_once('=').ok_or_else(bad)?;
        Ok(Self { vm: Name::new(vm).map_err(|_| bad())?, host: Name::new(host).map_err(|_| bad())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_vm_and_a_host() {
        let name = |text| Name::new(text).unwrap();
        assert_eq!("vm1=beta".parse(), Ok(Place { vm: name("vm1"), host: name("beta") }));
        for bad in ["", "vm1", "=beta", "vm1=", "vm1=beta=gamma", "vm 1=beta", "VM1=beta"] {
            let error = bad.parse::<Place>().unwrap_err();
            assert!(error.to_string().contains("is not VM=HOST"), "{error}");
        }
    }

    #[test]
    fn time_left_is_by_the_speed_so_far() {
        let name = |text| Name::new(text).unwrap();
        let mut member = FetchedMember::new(name("vm1"), name("alpha"), name("beta"));
        assert_eq!(member.seconds_left, None);
        member.note(Moved { sent: 31_000_000, to_send: 124_000_000, total: 155_000_000 }, 2.0);
        assert_eq!(member.seconds_left, Some(6.0));
        assert_eq!(member.to_string(), "moved 31 of 155 MB from alpha");
    }

    #[test]
    fn bytes_of_attempts_that_broke_off_count() {
        let name = |text| Name::new(text).unwrap();
        let mut member = FetchedMember::new(name("vm1"), name("alpha"), name("beta"));
        let moved = |sent, to_send| Moved { sent, to_send, total: 900 };
        for (now, all) in [
            (moved(300, 500), (300, 500)),
            (Moved::default(), (300, 300)),
            (moved(40, 210), (340, 510)),
            (moved(20, 180), (360, 520)),
            (moved(180, 180), (520, 520)),
        ] {
            member.note(now, 1.0);
            assert_eq!((member.sent, member.to_send), all);
        }
        assert_eq!(member.seconds_left, Some(0.0));
    }
}

//! Where the members of a restore are to run, whence their files come, and which old instances have to be ended for it.
//!
//! A member runs where the operator places it, else where it lives. Its files lie where the snapshot was taken, and where an
//! earlier restore has fetched them to.

use std::collections::{BTreeMap, BTreeSet};

use unasnap_protocol::control::Source;
use unasnap_protocol::coordinator::restore::Moves;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{MemberRecord, Place, RequestError, RequestErrorKind};

use super::journal::Stored;
use super::owner::Owner;
use super::registry::not_connected;

/// What a restore does beside loading and starting.
#[derive(Debug, Default)]
pub struct Placement {
    /// Host of every member.
    pub hosts: BTreeMap<Name, Name>,
    /// For the machine.
    pub moves: Moves,
    /// Hosts that are connected and have to end an instance of this member.
    pub evicting: BTreeMap<Name, BTreeSet<Name>>,
    /// Hosts that are away, and have to when they are back.
    pub away: BTreeMap<Name, BTreeSet<Name>>,
}

type Result<T> = std::result::Result<T, RequestError>;

fn refused<T>(text: String) -> Result<T> {
    Err(RequestError::new(RequestErrorKind::Refused, text))
}

fn not_found<T>(text: String) -> Result<T> {
    Err(RequestError::new(RequestErrorKind::NotFound, text))
}

impl Owner {
    /// Plans a restore with some members on hosts that are named.
    pub(super) fn place(&self, stored: &Stored, places: &[Place]) -> Result<Placement> {
        let wanted = self.wanted(stored, places)?;
        let mut placement = Placement::default();
        for member in &stored.record.members {
            let vm = &member.vm;
            let known = self.journal.vms().get(vm);
            let home = known.map_or(&member.host, |known| &known.host);
            let host = wanted.get(vm).unwrap_or(&home);
            self.check_not_leaving(vm, host)?;
            if let Some(source) = self.source(stored, member, host)? {
                placement.moves.fetch.insert(vm.clone(), source);
            }
            let mut left = self.journal.homes().get(vm).map(|home| home.evict.clone()).unwrap_or_default();
            left.extend(known.map(|known| known.host.clone()));
            left.remove(*host);
            self.evict(vm, host, left, &mut placement);
            placement.hosts.insert(vm.clone(), (*host).clone());
        }
        Ok(placement)
    }

    /// What the operator has named, if all of it exists.
    fn wanted<'a>(&self, stored: &Stored, places: &'a [Place]) -> Result<BTreeMap<&'a Name, &'a Name>> {
        let mut wanted = BTreeMap::new();
        for Place { vm, host } in places {
            let id = &stored.record.id;
            if !stored.record.members.iter().any(|member| member.vm == *vm) {
                let members = stored.record.members.iter().map(|member| member.vm.as_str());
                let members = members.collect::<Vec<_>>().join(", ");
                return not_found(format!("{vm} is no member of snapshot {id}; its members are: {members}"));
            }
            if !self.journal.hosts().contains_key(host) {
                return not_found(format!("no host is called {host}; `unasnap host list` shows all of them"));
            }
            if self.registry.host(host).is_none() {
                return refused(not_connected(host));
            }
            if wanted.insert(vm, host).is_some() {
                return refused(format!("{vm} is placed twice; name one host for it"));
            }
        }
        Ok(wanted)
    }

    /// An old instance that a host is told to end now must not be taken for the one that comes.
    fn check_not_leaving(&self, vm: &Name, host: &Name) -> Result<()> {
        let leaving = self.journal.homes().get(vm).is_some_and(|home| home.evict.contains(host));
        if !leaving {
            return Ok(());
        }
        refused(format!(
            "host {host} has not confirmed yet that the earlier instance of {vm} has ended there; try again in a moment, or look at the host agent's log there"
        ))
    }

    /// Whence the files come; `None` when they are there.
    fn source(&self, stored: &Stored, member: &MemberRecord, host: &Name) -> Result<Option<Source>> {
        let (id, vm) = (&stored.record.id, &member.vm);
        let holders = stored.holders(member);
        if holders.contains(&host) {
            return Ok(None);
        }
        if digest_of(member).is_none() {
            return refused(format!(
                "snapshot {id} knows no digest of {vm}; it can only be restored in place"
            ));
        }
        if let Some(source) = self.source_but(stored, member, &BTreeSet::new()) {
            return Ok(Some(source));
        }
        let names = holders.iter().map(|holder| holder.as_str()).collect::<Vec<_>>().join(" and ");
        let connected = holders.iter().any(|holder| self.registry.host(holder).is_some());
        let why = if connected {
            "which gives no files to other hosts: add `[transfer] listen` to the host.toml there"
        } else {
            "which is not connected: start the host agent there"
        };
        refused(format!(
            "the files of {vm} in snapshot {id} lie only on host {names}, {why}; without them {vm} cannot be restored on {host}"
        ))
    }

    /// A host that is connected, has the files of a member and gives them; none of these.
    pub(super) fn source_but(
        &self,
        stored: &Stored,
        member: &MemberRecord,
        but: &BTreeSet<Name>,
    ) -> Option<Source> {
        let digest = digest_of(member)?;
        let found = stored.holders(member).into_iter().filter(|holder| !but.contains(*holder));
        let (host, address) =
            found.into_iter().find_map(|host| Some((host.clone(), self.registry.transfer_address(host)?)))?;
        Some(Source { host, address: address.to_string(), digest })
    }

    fn evict(&self, vm: &Name, to: &Name, left: BTreeSet<Name>, placement: &mut Placement) {
        let (here, away): (BTreeSet<_>, BTreeSet<_>) =
            left.into_iter().partition(|host| self.registry.host(host).is_some());
        if !here.is_empty() {
            placement.moves.evict.insert(vm.clone(), to.clone());
            placement.evicting.insert(vm.clone(), here);
        }
        if !away.is_empty() {
            placement.away.insert(vm.clone(), away);
        }
    }
}

/// Of a member's manifest, as SAVED told it.
pub(super) fn digest_of(member: &MemberRecord) -> Option<[u8; 32]> {
    member.digest.as_deref().and_then(digest)
}

/// Of 64 hex digits.
fn digest(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_as_it_is_written() {
        let text = "00ff".to_owned() + &"a5".repeat(30);
        assert_eq!(digest(&text).unwrap()[..4], [0, 0xff, 0xa5, 0xa5]);
        assert!([&text[1..], "xy", &("é".repeat(32))].iter().all(|bad| digest(bad).is_none()));
    }
}

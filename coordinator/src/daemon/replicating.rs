//! Copies of usable snapshots on other hosts, as many as are wanted: what is missing is fetched in the background.
//!
//! Nothing about it is decided once and for all: every second it is looked at what the journal says is there, and what is
//! missing is begun, one copy at a time for each host that gives or gets one, none where a snapshot or a restore is under
//! way. So a coordinator that starts goes on with it, and a host's part goes on where it broke off.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;
use unasnap_protocol::control::{Answer, Envelope, Moved, Order, Source};
use unasnap_protocol::elsewhere::{Copies, MemberCopies};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::MemberRecord;

use super::journal::{FilesCopy, Result, Stored};
use super::owner::Owner;
use super::placing::digest_of;
use super::registry::not_connected;
use crate::config::Replicas;

/// A host tells once a second how far it is; one that says nothing for so long has forgotten it.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// After the first attempt that failed; twice as long after each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// Attempts from one host to another, until one of them connects anew.
const MAX_ATTEMPTS: u32 = 8;

/// What is known beside the journal of copies that are made.
pub struct Replicating {
    wanted: Replicas,
    /// Under way, by the host to which it comes.
    coming: BTreeMap<Name, Coming>,
    failed: BTreeMap<Attempt, Failed>,
}

/// One copy on its way.
struct Coming {
    snapshot: Name,
    vm: Name,
    from: Name,
    moved: Moved,
    heard: Instant,
}

/// Which copy, and between whom.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Attempt {
    snapshot: Name,
    vm: Name,
    from: Name,
    to: Name,
}

/// How often it failed.
struct Failed {
    attempts: u32,
    again: Instant,
    why: String,
}

/// A copy that can be made now.
struct Next {
    source: Source,
    to: Name,
}

impl Replicating {
    /// Nothing is under way.
    pub fn new(wanted: Replicas) -> Self {
        Self { wanted, coming: BTreeMap::new(), failed: BTreeMap::new() }
    }

    /// Does an answer under this envelope from this host concern the copy that comes to it?
    pub fn expects(&self, host: &Name, envelope: &Envelope) -> bool {
        let same = |coming: &Coming| coming.snapshot == envelope.snapshot && coming.vm == envelope.vm;
        self.coming.get(host).is_some_and(same)
    }

    /// What came to this host did not come to its end.
    pub fn fail(&mut self, to: &Name, why: &str) {
        let Some(Coming { snapshot, vm, from, .. }) = self.coming.remove(to) else { return };
        tracing::warn!("the copy of {vm} in {snapshot} from {from} to {to} failed: {why}");
        let attempt = Attempt { snapshot, vm, from, to: to.clone() };
        let before = self.failed.get(&attempt).map_or(0, |failed| failed.attempts);
        let again = Instant::now() + FIRST_PAUSE * 2_u32.saturating_pow(before);
        self.failed.insert(attempt, Failed { attempts: before + 1, again, why: why.to_owned() });
    }

    /// A host has gone; what came to it goes on when it is back.
    pub fn lose(&mut self, host: &Name) {
        self.coming.remove(host);
    }

    /// A host has come: what failed with it may go well now.
    pub fn is_back(&mut self, host: &Name) {
        self.failed.retain(|attempt, _| attempt.from != *host && attempt.to != *host);
    }

    /// Has it failed, and is it not to be tried again now? In words.
    fn resting(&self, attempt: &Attempt) -> Option<String> {
        let Failed { attempts, again, why } = self.failed.get(attempt)?;
        let left = again.saturating_duration_since(Instant::now());
        let Attempt { from, to, .. } = attempt;
        if *attempts >= MAX_ATTEMPTS {
            return Some(format!(
                "from {from} to {to}: {why}; given up after {attempts} attempts, until a host agent is started anew"
            ));
        }
        (!left.is_zero()).then(|| format!("from {from} to {to}: {why}; tried again in {} s", left.as_secs()))
    }
}

impl Owner {
    /// Once a second: begins what is missing and can be begun. Nothing while a snapshot is taken: its members may stand still.
    pub(super) fn replicate(&mut self) -> Result<()> {
        self.end_coming();
        while self.takings.is_empty()
            && let Some((id, vm, next)) = self.find_copy()
        {
            self.begin_copy(&id, &vm, next)?;
        }
        Ok(())
    }

    /// The newest snapshot comes first: it is what a dead host would be restored from.
    fn find_copy(&self) -> Option<(Name, Name, Next)> {
        let busy = self.busy_hosts();
        let lacks = |stored: &&Stored| {
            let wanted = self.replicating.wanted.of(&stored.record.deployment);
            let lacks = |member: &MemberRecord| stored.holders(member).len() < wanted;
            stored.is_committed() && wanted > 1 && stored.record.members.iter().any(lacks)
        };
        let mut lacking: Vec<_> = self.journal.snapshots().values().filter(lacks).collect();
        lacking.sort_by(|one, other| other.record.created.cmp(&one.record.created));
        lacking.into_iter().find_map(|stored| {
            stored.record.members.iter().find_map(|member| {
                let next = self.next_copy(stored, member, &busy)?.ok()?;
                Some((stored.record.id.clone(), member.vm.clone(), next))
            })
        })
    }

    /// What nobody speaks of any more, and what is not wanted any more.
    fn end_coming(&mut self) {
        let (snapshots, now) = (self.journal.snapshots(), Instant::now());
        let usable = |id: &Name| snapshots.get(id).is_some_and(Stored::is_committed);
        self.replicating.coming.retain(|_, coming| usable(&coming.snapshot));
        self.replicating.failed.retain(|attempt, _| usable(&attempt.snapshot));
        let silent = |(to, coming): (&Name, &Coming)| {
            (now.duration_since(coming.heard) > SILENCE_LIMIT).then(|| to.clone())
        };
        for to in self.replicating.coming.iter().filter_map(silent).collect::<Vec<_>>() {
            let why = format!("host {to} said nothing of it for {} s", SILENCE_LIMIT.as_secs());
            self.replicating.fail(&to, &why);
        }
    }

    /// Written before anything comes: whatever becomes of it, a deletion finds the files.
    fn begin_copy(&mut self, id: &Name, vm: &Name, next: Next) -> Result<()> {
        let Next { source, to } = next;
        let Some(mut stored) = self.journal.snapshots().get(id).cloned() else { return Ok(()) };
        if !stored.copies.iter().any(|copy| copy.vm == *vm && copy.host == to) {
            stored.note_copy(vm, &to, false);
            self.journal.set_copies(stored.clone())?;
        }
        tracing::info!("{vm} in {id} is copied from {} to {to}", source.host);
        let coming = Coming {
            snapshot: id.clone(),
            vm: vm.clone(),
            from: source.host.clone(),
            moved: Moved::default(),
            heard: Instant::now(),
        };
        let envelope = stored.envelope(vm, self.journal.term());
        self.replicating.coming.insert(to.clone(), coming);
        if !self.registry.order(&to, &envelope, &Order::Fetch(source)) {
            self.replicating.fail(&to, &not_connected(&to));
        }
        Ok(())
    }

    /// A host tells of files that come to it outside any restore, or that a restore has begun to fetch which is over.
    pub(super) fn on_copying(&mut self, host: &Name, envelope: &Envelope, answer: Answer) -> Result<()> {
        let expected = self.replicating.expects(host, envelope);
        match answer {
            Answer::Fetching(moved) if expected => {
                if let Some(coming) = self.replicating.coming.get_mut(host) {
                    (coming.moved, coming.heard) = (moved, Instant::now());
                }
            }
            Answer::Fetched(_) => {
                if expected {
                    self.replicating.coming.remove(host);
                }
                let vm = &envelope.vm;
                let Some(stored) = self.journal.snapshots().get(&envelope.snapshot) else { return Ok(()) };
                let noted = |copy: &FilesCopy| copy.vm == *vm && copy.host == *host && !copy.complete;
                if stored.is_committed() && stored.copies.iter().any(noted) {
                    tracing::info!("{host} has a copy of {vm} in {}", envelope.snapshot);
                    let mut stored = stored.clone();
                    stored.note_copy(vm, host, true);
                    self.journal.set_copies(stored)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Where the files of a usable snapshot lie, for operators.
    pub(super) fn copies(&self, stored: &Stored) -> Option<Copies> {
        let wanted = self.replicating.wanted.of(&stored.record.deployment);
        let member = |member: &MemberRecord| MemberCopies {
            vm: member.vm.clone(),
            hosts: stored.holders(member).into_iter().cloned().collect(),
            missing: self.missing(stored, member),
        };
        let members = stored.record.members.iter().map(member).collect();
        stored.is_committed().then(|| Copies { wanted: u32::try_from(wanted).unwrap_or(u32::MAX), members })
    }

    fn missing(&self, stored: &Stored, member: &MemberRecord) -> Option<String> {
        let coming = self.coming(&stored.record.id, &member.vm).map(|(to, coming)| {
            let mb = |bytes: u64| bytes as f64 / 1e6;
            let (sent, total) = (mb(coming.moved.sent), mb(coming.moved.total));
            format!("on its way from {} to {to}, {sent:.0} of {total:.0} MB", coming.from)
        });
        let words: Vec<_> = match self.next_copy(stored, member, &self.busy_hosts()) {
            Some(Ok(next)) => coming.chain([format!("the next is to come to {}", next.to)]).collect(),
            Some(Err(why)) => coming.chain([why]).collect(),
            None => coming.collect(),
        };
        (!words.is_empty()).then(|| words.join("; "))
    }

    /// Copies of this member's part that are on their way.
    fn coming(&self, id: &Name, vm: &Name) -> impl Iterator<Item = (&Name, &Coming)> {
        let its = move |(_, coming): &(&Name, &Coming)| coming.snapshot == *id && coming.vm == *vm;
        self.replicating.coming.iter().filter(its)
    }

    /// What is to be copied next of a member's files, or why that cannot be; `None` if nothing is missing.
    fn next_copy(
        &self,
        stored: &Stored,
        member: &MemberRecord,
        busy: &BTreeSet<&Name>,
    ) -> Option<std::result::Result<Next, String>> {
        let wanted = self.replicating.wanted.of(&stored.record.deployment);
        let (id, vm) = (&stored.record.id, &member.vm);
        let holders = stored.holders(member);
        let coming: BTreeSet<_> = self.coming(id, vm).map(|(to, _)| to).collect();
        if holders.len() + coming.len() >= wanted {
            return None;
        }
        let Some(digest) = digest_of(member) else { return Some(Err("its digest is not known".to_owned())) };
        let mut why = Vec::new();
        for to in self.targets(stored, vm, &holders, &coming) {
            if let Some(problem) = self.unfit(to, member) {
                why.push(problem);
                continue;
            }
            for from in &holders {
                let attempt =
                    Attempt { snapshot: id.clone(), vm: vm.clone(), from: (*from).clone(), to: to.clone() };
                let Some(address) = self.registry.transfer_address(from) else {
                    why.push(self.gives_nothing(from));
                    continue;
                };
                if let Some(resting) = self.replicating.resting(&attempt) {
                    why.push(resting);
                } else if let Some(busy) = [*from, to].into_iter().find(|host| busy.contains(host)) {
                    why.push(format!("{busy} is busy with another copy, a snapshot or a restore"));
                } else {
                    let source = Source { host: (*from).clone(), address: address.to_string(), digest };
                    return Some(Ok(Next { source, to: to.clone() }));
                }
            }
        }
        if self.journal.hosts().len() < wanted {
            why.push(format!("there are only {} hosts", self.journal.hosts().len()));
        }
        let mut said = BTreeSet::new();
        why.retain(|words| said.insert(words.clone()));
        Some(Err(why.join("; ")))
    }

    /// Hosts that could get a copy: one that has a part of it first, then by free space.
    fn targets<'a>(
        &'a self,
        stored: &Stored,
        vm: &Name,
        holders: &[&Name],
        coming: &BTreeSet<&Name>,
    ) -> Vec<&'a Name> {
        let begun = |host: &Name| stored.copies.iter().any(|copy| copy.vm == *vm && copy.host == *host);
        let free = |host: &Name| self.registry.host(host).map(|host| host.inventory.free_bytes);
        let others = |host: &&Name| !holders.contains(host) && !coming.contains(host);
        let mut targets: Vec<_> = self.journal.hosts().keys().filter(others).collect();
        targets.sort_by_key(|host| std::cmp::Reverse((begun(host), free(host))));
        targets
    }

    /// Why a host can have no copy now.
    fn unfit(&self, host: &Name, member: &MemberRecord) -> Option<String> {
        let Some(known) = self.registry.host(host).filter(|_| self.registry.transfer_address(host).is_some())
        else {
            return Some(self.gives_nothing(host));
        };
        let (free, needed) = (known.inventory.free_bytes, member.bytes.unwrap_or_default());
        let mb = |bytes: u64| bytes as f64 / 1e6;
        (free < needed)
            .then(|| format!("{host} has room for {:.0} MB, and {:.0} MB are needed", mb(free), mb(needed)))
    }

    pub(super) fn gives_nothing(&self, host: &Name) -> String {
        match self.registry.host(host) {
            None => format!("{host} is not connected"),
            Some(_) => {
                format!("{host} gives no files to other hosts: add `[transfer] listen` to its host.toml")
            }
        }
    }

    /// Hosts that give or get a copy, or are needed for a snapshot or a restore.
    fn busy_hosts(&self) -> BTreeSet<&Name> {
        let coming = self.replicating.coming.iter().flat_map(|(to, coming)| [to, &coming.from]);
        let takings = self.takings.values().flat_map(|taking| taking.hosts.values());
        let restorings = self.restorings.values().flat_map(|restoring| restoring.busy_hosts());
        coming.chain(takings).chain(restorings).collect()
    }
}

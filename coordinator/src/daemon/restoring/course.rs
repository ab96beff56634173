//! What is known of a restore under way.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;
use unasnap_protocol::control::{Envelope, Moved, Phase, VmReport};
use unasnap_protocol::coordinator::restore::Restore;
use unasnap_protocol::elsewhere::{FetchProgress, FetchedMember};
use unasnap_protocol::guest::Epoch;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Place, Progress, Reply, RestoreReport};

use super::super::journal::{Home, Journal};
use super::super::owner::{Watchers, tell};

/// A restore under way.
pub struct Restoring {
    /// The snapshot.
    pub id: Name,
    /// Decides.
    pub machine: Restore,
    /// When the machine wants to be woken.
    pub deadline: Instant,
    pub(super) deployment: Name,
    pub(super) hosts: BTreeMap<Name, Name>,
    /// Hosts that are still to end an instance of a member.
    pub(super) evicting: BTreeMap<Name, BTreeSet<Name>>,
    /// Hosts that had to at the beginning.
    pub(super) leaving: BTreeMap<Name, BTreeSet<Name>>,
    /// Hosts that have to when they are back.
    pub(super) away: BTreeMap<Name, BTreeSet<Name>>,
    /// What was reported of members before they moved.
    pub(super) reports: Vec<VmReport>,
    /// Members whose files come from elsewhere.
    pub(super) fetched: BTreeMap<Name, FetchedMember>,
    /// Hosts whose files of a member were refused.
    pub(super) spoiled: BTreeMap<Name, BTreeSet<Name>>,
    /// That files came from another host than at first, in words.
    pub(super) detours: Vec<String>,
    /// At which the members start.
    pub(super) epoch: Epoch,
    /// Of the instances that will run.
    pub(super) incarnation: u64,
    /// Members to be asked again at the next tick.
    pub(super) again: BTreeSet<Name>,
    pub(super) consistent: bool,
    /// When each phase so far began.
    pub(super) phases: Vec<(Phase, Instant)>,
    pub(super) watchers: Watchers,
}

impl Restoring {
    /// Does an answer under this envelope from this host belong here?
    pub fn expects(&self, host: &Name, envelope: &Envelope) -> bool {
        envelope.snapshot == self.id
            && envelope.incarnation == self.incarnation
            && (self.hosts.get(&envelope.vm) == Some(host) || self.evicts(host, &envelope.vm))
    }

    /// Is it waited for that this host ends an instance of this member?
    pub(super) fn evicts(&self, host: &Name, vm: &Name) -> bool {
        self.machine.phase() == Phase::Evict
            && self.evicting.get(vm).is_some_and(|hosts| hosts.contains(host))
    }

    /// Hosts where members run, and those that give files.
    pub fn busy_hosts(&self) -> impl Iterator<Item = &Name> {
        self.hosts.values().chain(self.fetched.values().map(|fetched| &fetched.from))
    }

    /// A host has ended an instance. Was it the last of this member?
    pub fn evicted(&mut self, host: &Name, envelope: &Envelope) -> bool {
        let hosts = self.evicting.get_mut(&envelope.vm);
        envelope.snapshot == self.id
            && envelope.incarnation == self.incarnation
            && hosts.is_some_and(|hosts| hosts.remove(host) && hosts.is_empty())
    }

    /// A host is there again that was to end instances: now it is waited for, too.
    pub(super) fn is_back(&mut self, host: &Name) {
        for (vm, to) in &self.hosts {
            if self.away.get_mut(vm).is_some_and(|hosts| hosts.remove(host)) {
                for hosts in [&mut self.leaving, &mut self.evicting] {
                    hosts.entry(vm.clone()).or_default().insert(host.clone());
                }
                self.machine.evict_too(vm, to);
            }
        }
    }

    /// So much of a member's files has come.
    pub(super) fn note_moved(&mut self, vm: &Name, moved: Moved) {
        let began = self.began(Phase::Fetch).or_else(|| self.began(Phase::Poll));
        let began = began.unwrap_or_else(Instant::now);
        if let Some(member) = self.fetched.get_mut(vm) {
            member.note(moved, began.elapsed().as_secs_f64());
        }
    }

    /// Tells operators how far it is.
    pub fn show(&mut self) {
        let progress = Progress {
            snapshot: self.id.clone(),
            phase: self.machine.phase(),
            members: self.hosts.keys().cloned().collect(),
            waiting: self.machine.awaited().iter().cloned().collect(),
        };
        tell(&self.watchers, &Reply::Progress(progress));
        let is_fetching = self.machine.phase() == Phase::Fetch;
        let coming = self.fetched.values().filter(|member| is_fetching || self.machine.fetches(&member.vm));
        let members: Vec<_> = coming.cloned().collect();
        if !members.is_empty() {
            tell(&self.watchers, &Reply::Fetching(FetchProgress { snapshot: self.id.clone(), members }));
        }
    }

    pub(super) fn envelope(&self, vm: &Name, term: u64) -> Envelope {
        Envelope {
            vm: vm.clone(),
            deployment: self.deployment.clone(),
            snapshot: self.id.clone(),
            epoch: self.epoch,
            term,
            incarnation: self.incarnation,
        }
    }

    fn began(&self, phase: Phase) -> Option<Instant> {
        self.phases.iter().find(|(known, _)| *known == phase).map(|(_, at)| *at)
    }

    /// How long fetching, polling, loading (with what had to end before) and starting took, ms; the last one until now.
    fn step_ms(&self) -> [f64; 4] {
        let end = Instant::now();
        let start = self.began(Phase::Start).unwrap_or(end);
        let load = self.began(Phase::Evict).or_else(|| self.began(Phase::Restore)).unwrap_or(start);
        let poll = self.began(Phase::Poll).unwrap_or(load);
        let fetch = self.began(Phase::Fetch).unwrap_or(poll);
        let span = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64() * 1e3;
        [span(fetch, poll), span(poll, load), span(load, start), span(start, end)]
    }

    pub(super) fn report(&self) -> RestoreReport {
        let [fetch_ms, poll_ms, load_ms, start_ms] = self.step_ms();
        let place = |(vm, host): (&Name, &Name)| Place { vm: vm.clone(), host: host.clone() };
        let mut warnings = self.machine.warnings().to_vec();
        warnings.extend(self.detours.iter().cloned());
        let away = self.away.iter().flat_map(|(vm, hosts)| hosts.iter().map(move |host| (vm, host)));
        warnings.extend(away.map(|(vm, host)| format!(
            "host {host}, on which {vm} lived, is not connected: an instance that still runs there is ended as soon as the host is back"
        )));
        if !self.consistent {
            warnings.push(format!("{} was taken without colouring and is not consistent", self.id));
        }
        warnings.sort();
        RestoreReport {
            snapshot: self.id.clone(),
            incarnation: self.incarnation,
            restore_ms: fetch_ms + poll_ms + load_ms + start_ms,
            fetch_ms,
            poll_ms,
            load_ms,
            start_ms,
            members: self.hosts.iter().map(place).collect(),
            fetched: self.fetched.values().cloned().collect(),
            warnings,
        }
    }

    /// Where its members live from now on, of those that move or have moved before.
    pub(super) fn homes(&self, journal: &Journal) -> BTreeMap<Name, Home> {
        let home = |(vm, host): (&Name, &Name)| {
            let (before, known) = (journal.homes().get(vm), journal.vms().get(vm));
            let hosts = [&self.leaving, &self.away].map(|hosts| hosts.get(vm).into_iter().flatten());
            let evict: BTreeSet<_> = hosts.into_iter().flatten().cloned().collect();
            if before.is_none() && evict.is_empty() && known.is_none_or(|known| known.host == *host) {
                return None;
            }
            let home = Home {
                host: host.clone(),
                deployment: self.deployment.clone(),
                snapshot: self.id.clone(),
                epoch: self.epoch,
                incarnation: self.incarnation,
                evict,
                settled: before.is_some_and(|before| before.host == *host && before.settled),
            };
            Some((vm.clone(), home))
        };
        self.hosts.iter().filter_map(home).collect()
    }
}

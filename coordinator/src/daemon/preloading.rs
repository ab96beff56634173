//! `unasnap image preload`: hosts that lack an image of the catalogue get it from those that have it.
//!
//! ```text
//! all hosts: Bases -> who has it, who lacks it -> to these: Bring -> the copies become durable -> one report
//! ```
//!
//! Each of those that lack it is told all that have it, and begins with another one.

use std::collections::{BTreeMap, BTreeSet};

use unasnap_protocol::control::Source;
use unasnap_protocol::household::{Bring, HostReport, HouseholdReport, Outcome, Task};
use unasnap_protocol::image::{ImageRef, ImageRequest, MAX_HOSTS, MAX_WITHIN_S};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Reply, RequestError, RequestErrorKind};

use super::catalogue::{bases_of, check};
use super::chores::Then;
use super::journal::{Copy, Result};
use super::owner::{Owner, Watchers, tell};
use super::registry::not_connected;

/// Most hosts that are named as sources.
const MAX_SOURCES: usize = 8;

type Checked<T> = std::result::Result<T, RequestError>;

fn refused(text: String) -> RequestError {
    RequestError::new(RequestErrorKind::Refused, text)
}

/// What is to be where.
pub struct Wanted {
    pub image: ImageRef,
    pub hosts: Vec<Name>,
    pub per_second: Option<u64>,
    pub within_s: u32,
}

impl Owner {
    /// What is wrong with a request before any host is asked.
    pub(super) fn may_preload(&self, request: &ImageRequest) -> Checked<()> {
        let ImageRequest::Preload { image, hosts, per_second, within_s } = request else { return Ok(()) };
        self.known(image)?;
        if !(1..=MAX_HOSTS).contains(&hosts.len()) {
            return Err(refused(format!(
                "an image is brought to 1 to {MAX_HOSTS} hosts, not to {}",
                hosts.len()
            )));
        }
        if !(1..=MAX_WITHIN_S).contains(within_s) || *per_second == Some(0) {
            let text = format!("it may take 1 to {MAX_WITHIN_S} s, and at least one byte per second");
            return Err(refused(text));
        }
        match hosts.iter().find(|host| !self.journal.hosts().contains_key(*host)) {
            Some(host) => {
                let text = format!("no host is called {host}; `unasnap host list` shows all of them");
                Err(RequestError::new(RequestErrorKind::NotFound, text))
            }
            None => Ok(()),
        }
    }

    /// The hosts have told of their bases.
    pub(super) fn preload(
        &mut self,
        wanted: &Wanted,
        reports: &[HostReport],
        watchers: &Watchers,
    ) -> Result<()> {
        match self.who_lacks(wanted, reports) {
            Ok((task, lacking, had)) => {
                self.open_chore_at(task, lacking, BTreeSet::new(), Then::Brought(had), watchers.clone())
            }
            Err(error) => {
                tell(watchers, &Reply::Failed(error));
                Ok(())
            }
        }
    }

    /// What those that lack it are to do, who they are, and what is known of the others.
    fn who_lacks(
        &self,
        wanted: &Wanted,
        reports: &[HostReport],
    ) -> Checked<(Task, BTreeSet<Name>, Vec<HostReport>)> {
        let known = self.known(&wanted.image)?;
        let mut copies = BTreeMap::new();
        for (host, base) in bases_of(&known.blake3, reports).filter(|(_, base)| base.problem.is_none()) {
            copies.entry(host).or_insert(base);
        }
        let digest = blake3::Hash::from_hex(&known.blake3);
        let digest = *digest.map_err(|error| refused(format!("{}: {error}", wanted.image)))?.as_bytes();
        let source = |host: &Name| {
            let address = self.registry.transfer_address(host)?.to_string();
            Some(Source { host: host.clone(), address, digest })
        };
        let sources: Vec<_> = copies.keys().filter_map(|host| source(host)).take(MAX_SOURCES).collect();
        let (mut lacking, mut had) = (BTreeSet::new(), Vec::new());
        for host in wanted.hosts.iter().collect::<BTreeSet<_>>() {
            if let Some(base) = copies.get(host) {
                had.push(report_of(host, Ok(Outcome::Preloaded((*base).clone()))));
                continue;
            }
            let report = reports.iter().find(|report| report.host == *host);
            match report.map(|report| &report.outcome) {
                Some(Ok(_)) => drop(lacking.insert(host.clone())),
                Some(Err(error)) => had.push(report_of(host, Err(error.clone()))),
                None => had.push(report_of(host, Err(refused(not_connected(host))))),
            }
        }
        if sources.is_empty() && !lacking.is_empty() {
            let holders: Vec<_> = known.copies.keys().map(Name::as_str).collect();
            return Err(refused(format!(
                "no host that is connected has {} and gives files to others (entered on {}): start the host agent there, with [transfer] in its host.toml",
                wanted.image,
                holders.join(", ")
            )));
        }
        let name = copies.values().next().map_or_else(|| wanted.image.name.clone(), |base| base.name.clone());
        let Wanted { per_second, within_s, .. } = *wanted;
        Ok((Task::Bring(Box::new(Bring { name, sources, per_second, within_s })), lacking, had))
    }

    /// The hosts that lacked it have answered.
    pub(super) fn on_brought(
        &mut self,
        had: Vec<HostReport>,
        brought: Vec<HostReport>,
        watchers: &Watchers,
    ) -> Result<()> {
        let mut hosts: Vec<_> = brought.into_iter().chain(had).collect();
        let mut copies: BTreeMap<String, Vec<(Name, Copy)>> = BTreeMap::new();
        for HostReport { host, outcome, .. } in &mut hosts {
            let Ok(Outcome::Preloaded(base)) = outcome else { continue };
            match check(host, base) {
                Ok(()) => {
                    let copy = Copy { base: base.name.clone(), path: base.path.clone() };
                    copies.entry(base.blake3.clone()).or_default().push((host.clone(), copy));
                }
                Err(error) => *outcome = Err(error),
            }
        }
        for (blake3, copies) in copies {
            self.journal.set_images(self.with_copies(BTreeMap::new(), &blake3, &copies))?;
        }
        hosts.sort_by(|one, other| one.host.cmp(&other.host));
        tell(watchers, &Reply::Household(HouseholdReport { hosts }));
        Ok(())
    }
}

/// As one of several hosts is told it: they begin with different sources, for one serves few at a time.
pub(super) fn dealt(task: &Task, turn: usize) -> Task {
    let mut task = task.clone();
    if let Task::Bring(bring) = &mut task
        && !bring.sources.is_empty()
    {
        let first = turn % bring.sources.len();
        bring.sources.rotate_left(first);
    }
    task
}

/// What is known of a host without asking it for anything.
fn report_of(host: &Name, outcome: Checked<Outcome>) -> HostReport {
    HostReport { host: host.clone(), outcome, ms: 0.0 }
}

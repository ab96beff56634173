//! The image catalogue.
//!
//! It lives in the coordinator's journal, because an image is known to the cluster and not to one host; the files are bases of hosts,
//! as `disk preload` makes them, because those are registered, read-only and checked already. The journal holds what is the
//! catalogue's own: which digest a name and version stand for, and where it was entered. Everything else is asked of the
//! hosts that are connected at that moment, and cannot be out of date: who has a base of this digest, which VMs stand on it,
//! whether it is still as it was registered. So a base that was preloaded by hand counts like one that was entered.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use tokio::sync::mpsc;
use unasnap_protocol::household::{Base, HostReport, HouseholdRequest, Outcome, Task};
use unasnap_protocol::image::{ImageCopy, ImageRecord, ImageRef, ImageRequest, MAX_VERSIONS, Version};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Reply, RequestError, RequestErrorKind};

use super::chores::Then;
use super::journal::{CataloguedImage, Copy, Result, Versions};
use super::owner::{Owner, Watchers, tell};
use super::preloading::Wanted;
use super::registry::not_connected;

/// Longest path that a host may say, bytes: Linux's PATH_MAX.
const MAX_PATH: usize = 4096;

type Checked<T> = std::result::Result<T, RequestError>;

fn refuse<T>(text: String) -> Checked<T> {
    Err(RequestError::new(RequestErrorKind::Refused, text))
}

impl Owner {
    /// `unasnap image`: asks the hosts what has to be known of them first.
    pub(super) fn on_image(&mut self, request: ImageRequest, replies: mpsc::Sender<Reply>) -> Result<()> {
        if let Err(error) = self.may_preload(&request) {
            tell(&vec![replies], &Reply::Failed(error));
            return Ok(());
        }
        let (host, task) = match &request {
            ImageRequest::Tag { .. } => return self.go_on_with_image(request, Vec::new(), &vec![replies]),
            ImageRequest::List(_) | ImageRequest::Remove(_) | ImageRequest::Preload { .. } => {
                (None, Task::Bases)
            }
            ImageRequest::Add { host, path, .. } => {
                (Some(host.clone()), Task::Preload { path: path.clone(), name: None })
            }
        };
        self.ask(HouseholdRequest { host, task }, Then::Image(request), replies)
    }

    /// The hosts have answered.
    pub(super) fn go_on_with_image(
        &mut self,
        request: ImageRequest,
        hosts: Vec<HostReport>,
        watchers: &Watchers,
    ) -> Result<()> {
        let changed = match request {
            ImageRequest::List(name) => {
                match self.listed(name.as_ref(), &hosts) {
                    Ok(records) => {
                        records.into_iter().for_each(|one| tell(watchers, &Reply::Image(Box::new(one))));
                        tell(watchers, &Reply::End(()));
                    }
                    Err(error) => tell(watchers, &Reply::Failed(error)),
                }
                return Ok(());
            }
            ImageRequest::Preload { image, hosts: wanted, per_second, within_s } => {
                let bring = Wanted { image, hosts: wanted, per_second, within_s };
                return self.preload(&bring, &hosts, watchers);
            }
            ImageRequest::Add { image, .. } => {
                self.added(&image, hosts).map(|changed| (changed, Some(image)))
            }
            ImageRequest::Tag { image, version } => {
                let tag = ImageRef { name: image.name.clone(), version };
                self.tagged(&image, &tag).map(|changed| (changed, Some(tag)))
            }
            ImageRequest::Remove(image) => self.removed(&image, &hosts).map(|changed| (changed, None)),
        };
        match changed {
            Ok((changed, shown)) => {
                self.journal.set_images(changed)?;
                let record = shown.and_then(|image| self.record(&image.name, &image.version, None));
                let reply = record.map_or(Reply::End(()), |record| Reply::Image(Box::new(record)));
                tell(watchers, &reply);
            }
            Err(error) => tell(watchers, &Reply::Failed(error)),
        }
        Ok(())
    }

    fn listed(&self, only: Option<&Name>, hosts: &[HostReport]) -> Checked<Vec<ImageRecord>> {
        if let Some(name) = only.filter(|name| !self.journal.images().contains_key(name)) {
            let text = format!("no image is called {name}; `unasnap image list` shows all of them");
            return Err(RequestError::new(RequestErrorKind::NotFound, text));
        }
        let wanted = self.journal.images().iter().filter(|(name, _)| only.is_none_or(|only| only == *name));
        let all = wanted.flat_map(|(name, versions)| versions.keys().map(move |version| (name, version)));
        Ok(all.filter_map(|(name, version)| self.record(name, version, Some(hosts))).collect())
    }

    /// One version; with what hosts say, if they were asked.
    fn record(&self, name: &Name, version: &Version, hosts: Option<&[HostReport]>) -> Option<ImageRecord> {
        let known = self.journal.images().get(name)?.get(version)?;
        let mut copies: Vec<_> = found(&known.blake3, hosts.unwrap_or_default()).collect();
        let seen: BTreeSet<_> = copies.iter().map(|copy| copy.host.clone()).collect();
        for (host, copy) in known.copies.iter().filter(|(host, _)| !seen.contains(host)) {
            let Copy { base, path } = copy.clone();
            let problem = hosts.map(|hosts| missing(host, hosts));
            copies.push(ImageCopy { host: host.clone(), base, path, users: Vec::new(), problem });
        }
        copies.sort_by(|one, other| (&one.host, &one.base).cmp(&(&other.host, &other.base)));
        Some(ImageRecord {
            name: name.clone(),
            version: version.clone(),
            blake3: known.blake3.clone(),
            format: known.format.clone(),
            virtual_bytes: known.virtual_bytes,
            bytes: known.bytes,
            added: known.added.clone(),
            copies,
        })
    }

    /// What becomes of the catalogue when a host has made a base.
    fn added(&self, image: &ImageRef, hosts: Vec<HostReport>) -> Checked<BTreeMap<Name, Versions>> {
        let Some(HostReport { host, outcome, .. }) = hosts.into_iter().next() else {
            return refuse("no host was asked".to_owned());
        };
        let Outcome::Preloaded(base) = outcome? else {
            return Err(RequestError::new(
                RequestErrorKind::Internal,
                format!("host {host} answers another question; install the same release on both"),
            ));
        };
        check(&host, &base)?;
        let all = self.journal.images();
        let known = all.get(&image.name).and_then(|versions| versions.get(&image.version));
        if let Some(known) = known.filter(|known| known.blake3 != base.blake3) {
            let Base { name, path, blake3, .. } = &base;
            let places: Vec<_> = known.copies.keys().map(Name::as_str).collect();
            return refuse(format!(
                "{image} has the digest {} (on {}), and {path} on {host} has {blake3}: add it as another version, or bring the same file there. \
                 It is a base of {host} now; `unasnap disk remove {name} --host {host}` forgets it",
                known.blake3,
                places.join(", ")
            ));
        }
        let copy = Copy { base: base.name, path: base.path };
        let entered = known.cloned().unwrap_or_else(|| CataloguedImage {
            blake3: base.blake3,
            format: base.format,
            virtual_bytes: base.virtual_bytes,
            bytes: base.bytes,
            added: Timestamp::now().to_string(),
            copies: BTreeMap::new(),
        });
        let digest = entered.blake3.clone();
        Ok(self.with_copies(self.with(image, entered)?, &digest, &[(host, copy)]))
    }

    /// A copy is one of everything that has its digest.
    pub(super) fn with_copies(
        &self,
        mut changed: BTreeMap<Name, Versions>,
        blake3: &str,
        copies: &[(Name, Copy)],
    ) -> BTreeMap<Name, Versions> {
        for (name, versions) in self.journal.images() {
            if versions.values().any(|known| known.blake3 == blake3) {
                changed.entry(name.clone()).or_insert_with(|| versions.clone());
            }
        }
        let of_digest = changed.values_mut().flat_map(BTreeMap::values_mut);
        for known in of_digest.filter(|known| known.blake3 == blake3) {
            known.copies.extend(copies.iter().cloned());
        }
        changed
    }

    fn tagged(&self, image: &ImageRef, tag: &ImageRef) -> Checked<BTreeMap<Name, Versions>> {
        let known = self.known(image)?;
        let other = self.journal.images().get(&tag.name).and_then(|versions| versions.get(&tag.version));
        match other {
            Some(other) if other.blake3 != known.blake3 => refuse(format!(
                "{tag} has the digest {}, and {image} has {}: `unasnap image remove {tag}` first, or choose another version",
                other.blake3, known.blake3
            )),
            Some(_) => Ok(BTreeMap::new()),
            None => self.with(tag, CataloguedImage { added: Timestamp::now().to_string(), ..known.clone() }),
        }
    }

    /// The last name of what VMs stand on stays.
    fn removed(&self, image: &ImageRef, hosts: &[HostReport]) -> Checked<BTreeMap<Name, Versions>> {
        let known = self.known(image)?;
        let mut versions = self.journal.images().get(&image.name).cloned().unwrap_or_default();
        versions.remove(&image.version);
        let changed = BTreeMap::from([(image.name.clone(), versions)]);
        let named = self.journal.images().values().flat_map(BTreeMap::values);
        if named.filter(|other| other.blake3 == known.blake3).count() > 1 {
            return Ok(changed);
        }
        if let Some(copy) = found(&known.blake3, hosts).find(|copy| !copy.users.is_empty()) {
            let users: Vec<_> = copy.users.iter().map(Name::as_str).collect();
            return refuse(format!(
                "disks of VMs on host {} stand on {image}: {}; delete those VMs first, or give it another version with `unasnap image tag`",
                copy.host,
                users.join(", ")
            ));
        }
        let heard = |host: &Name| hosts.iter().any(|report| report.host == *host && report.outcome.is_ok());
        let has_vms = |host: &Name| self.journal.vms().values().any(|vm| vm.host == *host);
        if let Some(host) = known.copies.keys().find(|host| !heard(host) && has_vms(host)) {
            return refuse(format!("whether VMs stand on {image} is not known: {}", missing(host, hosts)));
        }
        Ok(changed)
    }

    pub(super) fn known(&self, image: &ImageRef) -> Checked<&CataloguedImage> {
        let known = self.journal.images().get(&image.name).and_then(|versions| versions.get(&image.version));
        let text = || format!("there is no image {image}; `unasnap image list` shows all of them");
        known.ok_or_else(|| RequestError::new(RequestErrorKind::NotFound, text()))
    }

    /// The image's versions with this one, if there is room for it.
    fn with(&self, image: &ImageRef, entered: CataloguedImage) -> Checked<BTreeMap<Name, Versions>> {
        let mut versions = self.journal.images().get(&image.name).cloned().unwrap_or_default();
        let count: usize = self.journal.images().values().map(BTreeMap::len).sum();
        if versions.insert(image.version.clone(), entered).is_none() && count >= MAX_VERSIONS {
            return refuse(format!(
                "the catalogue has {count} versions of images, and no more fit: `unasnap image remove` those that nobody needs"
            ));
        }
        Ok([(image.name.clone(), versions)].into())
    }
}

/// Bases of this digest that hosts have told of.
pub(super) fn bases_of<'a>(
    blake3: &str,
    hosts: &'a [HostReport],
) -> impl Iterator<Item = (&'a Name, &'a Base)> {
    let bases = hosts.iter().flat_map(|report| match &report.outcome {
        Ok(Outcome::Bases(bases)) => bases.iter().map(|base| (&report.host, base)).collect(),
        _ => Vec::new(),
    });
    bases.filter(move |(_, base)| base.blake3 == blake3)
}

/// The same, as the catalogue tells of them.
fn found(blake3: &str, hosts: &[HostReport]) -> impl Iterator<Item = ImageCopy> {
    bases_of(blake3, hosts).map(|(host, base)| ImageCopy {
        host: host.clone(),
        base: base.name.clone(),
        path: base.path.clone(),
        users: base.users.clone(),
        problem: base.problem.clone(),
    })
}

/// Why a host that has had an image does not tell of it.
fn missing(host: &Name, hosts: &[HostReport]) -> String {
    match hosts.iter().find(|report| report.host == *host).map(|report| &report.outcome) {
        None => not_connected(host),
        Some(Err(error)) => error.text.clone(),
        Some(Ok(_)) => format!("it is no base of host {host} any more; `unasnap image add` enters it again"),
    }
}

/// What comes from a host is kept for good: it is as hosts of this release write it.
pub(super) fn check(host: &Name, base: &Base) -> Checked<()> {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let is_digest = base.blake3.len() == 64 && base.blake3.bytes().all(hex);
    if is_digest && base.path.len() <= MAX_PATH && ["qcow2", "raw"].contains(&base.format.as_str()) {
        return Ok(());
    }
    let text = format!("host {host} does not say what {} is; install the same release on both", base.name);
    Err(RequestError::new(RequestErrorKind::Internal, text))
}

//! What operators ask.

use std::collections::BTreeSet;

use tokio::sync::mpsc;
use unasnap_protocol::elsewhere::RestoreRequest;
use unasnap_protocol::household::{HouseholdRequest, Task};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{
    CoordinatorStatus, CourseStatus, HostStatus, LastSnapshot, Reply, Request, RequestError,
    RequestErrorKind, StatusReport, VmStatus,
};

use super::chores::Then;
use super::journal::{KnownVm, Result, Stored};
use super::owner::{Owner, tell};
use super::restoring::no_snapshot;

impl Owner {
    /// Answers, or begins what will answer.
    pub(super) fn on_request(&mut self, request: Request, replies: mpsc::Sender<Reply>) -> Result<()> {
        match request {
            Request::Take(deployment) => return self.take(deployment, replies, false),
            Request::Pause(deployment) => return self.pause(deployment, replies),
            Request::Resume(deployment) => return self.resume(deployment, replies),
            Request::GiveWay(wanted) => return self.set_giving_way(wanted, replies),
            Request::Restore(id) => return self.restore(id, Vec::new(), replies),
            Request::RestoreAt(RestoreRequest { snapshot, places }) => {
                return self.restore(snapshot, places, replies);
            }
            Request::Verify(id) => return self.verify(id, replies),
            Request::Control(request) => return self.control(&request, replies),
            Request::Delete(id) => return self.delete(&id, replies),
            Request::Bases(host) => {
                return self.ask(HouseholdRequest { host, task: Task::Bases }, Then::Answer, replies);
            }
            Request::Household(request) => return self.ask(request, Then::Answer, replies),
            Request::Image(request) => return self.on_image(request, replies),
            // Whoever begins with these has a connection of another kind; what is left began in the middle.
            Request::Access(_) | Request::Console(_) => {
                let text = "a turn came before its conversation was begun";
                let error = RequestError::new(RequestErrorKind::Refused, text);
                tell(&vec![replies], &Reply::Failed(error));
            }
            Request::Status(()) => tell(&vec![replies], &Reply::Status(Box::new(self.status()))),
            Request::Show(id) => match self.journal.snapshots().get(&id) {
                Some(stored) => self.send_records(vec![stored], replies),
                None => {
                    let error = RequestError::new(RequestErrorKind::NotFound, no_snapshot(&id));
                    tell(&vec![replies], &Reply::Failed(error));
                }
            },
            Request::List(all) => {
                let listed = |stored: &&Stored| all || stored.is_committed();
                let mut found: Vec<_> = self.journal.snapshots().values().filter(listed).collect();
                found.sort_by(|one, other| one.record.created.cmp(&other.record.created));
                self.send_records(found, replies);
            }
        }
        Ok(())
    }

    fn status(&self) -> StatusReport {
        let usable = self.journal.snapshots().values().filter(|stored| stored.is_committed());
        let last = usable.max_by(|one, other| one.record.created.cmp(&other.record.created));
        let last = last.map(|stored| LastSnapshot {
            id: stored.record.id.clone(),
            deployment: stored.record.deployment.clone(),
            created: stored.record.created.clone(),
        });
        StatusReport {
            coordinator: CoordinatorStatus {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                term: self.journal.term(),
                uptime_s: self.started.elapsed().as_secs(),
            },
            hosts: self.journal.hosts().keys().map(|name| self.host_status(name)).collect(),
            vms: self.journal.vms().iter().map(|(name, vm)| self.vm_status(name, vm)).collect(),
            courses: self.courses(),
            last_snapshot: last,
            paused: self.paused_deployments(),
            giving_way: self.journal.all_yielding().cloned().collect(),
        }
    }

    fn host_status(&self, name: &Name) -> HostStatus {
        let connected = self.registry.host(name);
        let since = connected.map(|host| host.since).or_else(|| self.registry.lost_since(name));
        let known = self.journal.hosts().get(name);
        HostStatus {
            name: name.clone(),
            connected: connected.is_some(),
            since: since.map(|time| time.to_string()),
            agent_version: known.map(|host| host.agent_version.clone()).unwrap_or_default(),
            free_bytes: connected.map(|host| host.inventory.free_bytes),
            cores: connected.map(|host| host.inventory.capacity.cores),
            memory_mb: connected.map(|host| host.inventory.capacity.memory_mb),
        }
    }

    fn vm_status(&self, name: &Name, vm: &KnownVm) -> VmStatus {
        let report = self.registry.report(&vm.host, name);
        VmStatus {
            name: name.clone(),
            deployment: vm.deployment.clone(),
            host: vm.host.clone(),
            state: report.map(|report| report.state),
            colouring: report.map(|report| report.colouring),
            colouring_note: report
                .map(|report| report.colouring_note.clone())
                .filter(|note| !note.is_empty()),
            ram_way: report.map(|report| report.ram_way.clone()),
            accelerator: report.map(|report| report.accelerator.clone()),
            guest_agent: report.map(|report| report.guest),
            incarnation: report.map(|report| report.incarnation),
            memory_mb: report.map(|report| report.memory_mb),
            cpus: report.map(|report| report.cpus),
        }
    }

    fn courses(&self) -> Vec<CourseStatus> {
        let waiting = |awaited: &BTreeSet<Name>| awaited.iter().cloned().collect();
        let takings = self.takings.iter().map(|(deployment, taking)| CourseStatus {
            deployment: deployment.clone(),
            snapshot: taking.stored.record.id.clone(),
            phase: taking.machine.phase(),
            waiting: waiting(taking.machine.awaited()),
        });
        let restorings = self.restorings.iter().map(|(deployment, restoring)| CourseStatus {
            deployment: deployment.clone(),
            snapshot: restoring.id.clone(),
            phase: restoring.machine.phase(),
            waiting: waiting(restoring.machine.awaited()),
        });
        takings.chain(restorings).collect()
    }

    /// In a task of its own: there may be more records than an operator's queue has places.
    fn send_records(&self, records: Vec<&Stored>, replies: mpsc::Sender<Reply>) {
        let answer = |stored: &Stored| (stored.record.clone(), self.copies(stored));
        let records: Vec<_> = records.into_iter().map(answer).collect();
        tokio::spawn(async move {
            let all = records.into_iter().flat_map(|(record, copies)| {
                [Some(Reply::Record(Box::new(record))), copies.map(Reply::Copies)].into_iter().flatten()
            });
            for reply in all.chain([Reply::End(())]) {
                // An operator who has gone away misses nothing.
                if replies.send(reply).await.is_err() {
                    return;
                }
            }
        });
    }
}

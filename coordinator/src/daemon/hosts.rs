//! Hosts come, report, answer and go.

use std::collections::BTreeSet;
use std::net::IpAddr;

use unasnap_protocol::PROTOCOL_VERSION;
use unasnap_protocol::control::{
    Answer, CoordinatorSession, Envelope, Failure, FailureKind, Hello, Inventory, MAX_VMS_PER_HOST, Phase,
    Undecided, VmReport, Welcome,
};
use unasnap_protocol::coordinator::returning::{Return, on_return, verdict};
use unasnap_protocol::household::HostOrder;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::SnapshotState;

use super::journal::{KnownHost, KnownVm, Result};
use super::outbox::Outbox;
use super::owner::Owner;
use super::registry::LinkId;

impl Owner {
    /// A host is there (again): a second connection replaces the first.
    pub(super) fn on_hello(
        &mut self,
        link: LinkId,
        ip: Option<IpAddr>,
        hello: Hello,
        outbox: Outbox,
    ) -> Result<()> {
        let host = hello.host;
        if self.registry.host(&host).is_some() {
            tracing::warn!("host {host} connects a second time; its first connection is closed");
            self.lose_host(&host)?;
        }
        tracing::info!("host {host} is connected with {} VMs", hello.inventory.vms.len());
        self.journal.know_host(&host, KnownHost { agent_version: hello.agent_version })?;
        self.registry.connect(host.clone(), link, ip, Inventory::default(), outbox);
        let welcome = Welcome { protocol: PROTOCOL_VERSION, term: self.journal.term() };
        self.registry.say(&host, &CoordinatorSession::Welcome(welcome));
        self.tell_evictions(&host);
        let deployments: BTreeSet<_> = hello.inventory.vms.iter().map(|vm| vm.deployment.clone()).collect();
        let incarnation =
            |deployment: Name| (deployment.clone(), self.journal.counters(&deployment).incarnation);
        let current = deployments.into_iter().map(incarnation).collect();
        self.registry.say(&host, &CoordinatorSession::Incarnations(current));
        let reported: BTreeSet<_> = hello.inventory.vms.iter().map(|vm| &vm.name).collect();
        let settled = |vm: &Name| self.journal.homes().get(vm).is_none_or(|home| home.settled);
        // One that is only coming there is not missed yet.
        let of_host = self.journal.vms().iter().filter(|(name, vm)| vm.host == host && settled(name));
        let missing: Vec<_> =
            of_host.filter(|(name, _)| !reported.contains(name)).map(|(name, _)| name.clone()).collect();
        if !missing.is_empty() {
            self.registry.say(&host, &CoordinatorSession::Household(HostOrder::Missing(missing)));
        }
        self.ask_clock(&host);
        self.on_inventory(&host, hello.inventory)?;
        for undecided in &hello.undecided {
            self.decide(&host, undecided);
        }
        self.resume_takings(&host, &hello.undecided)?;
        self.resume_restorings(&host);
        self.order_deletions(Some(&host));
        self.replicating.is_back(&host);
        Ok(())
    }

    /// Tells a host how a snapshot ended of which it does not know.
    fn decide(&self, host: &Name, undecided: &Undecided) {
        let theirs = &undecided.envelope;
        let open =
            self.takings.get(&theirs.deployment).filter(|taking| taking.stored.record.id == theirs.snapshot);
        let stored = self.journal.snapshots().get(&theirs.snapshot);
        let committed = stored
            .is_some_and(|stored| stored.is_committed() || stored.record.state == SnapshotState::Deleting);
        let order = verdict(open.map(|taking| taking.machine.phase()), committed);
        let envelope = Envelope { term: self.journal.term(), ..theirs.clone() };
        tracing::info!("host {host} asks about {} of {}: {}", theirs.snapshot, theirs.vm, order.name());
        self.registry.order(host, &envelope, &order);
    }

    /// Goes on with the members of a host that is there again, as [`on_return`] says.
    fn resume_takings(&mut self, host: &Name, undecided: &[Undecided]) -> Result<()> {
        let mut lost = Vec::new();
        for (deployment, taking) in &self.takings {
            let here = |vm: &&Name| taking.hosts.get(vm) == Some(host);
            for vm in taking.machine.awaited().iter().filter(here) {
                let known = |entry: &Undecided| {
                    entry.envelope.vm == *vm && entry.envelope.snapshot == taking.stored.record.id
                };
                match on_return(taking.machine.phase(), undecided.iter().any(known)) {
                    Return::TellAgain => {
                        if let Some(order) = taking.settling_order() {
                            let envelope = taking.stored.envelope(vm, self.journal.term());
                            self.registry.order(host, &envelope, &order);
                        }
                    }
                    Return::Lost => lost.push((deployment.clone(), vm.clone())),
                    Return::Wait => {}
                }
            }
        }
        for (deployment, vm) in lost {
            let text = format!(
                "{vm}: host {host} came back without its local snapshot; look at the host agent's log there"
            );
            self.cancel_taking(&deployment, Failure::new(FailureKind::Files, Phase::Save, text))?;
        }
        Ok(())
    }

    /// Takes what a host has.
    pub(super) fn on_inventory(&mut self, host: &Name, mut inventory: Inventory) -> Result<()> {
        inventory.vms.truncate(MAX_VMS_PER_HOST);
        inventory.vms.retain(|report| !self.is_elsewhere(host, report));
        let vms = inventory.vms.iter().map(|report| (report.name.clone(), known(host, report))).collect();
        self.note_homes(host, &inventory)?;
        self.registry.set_inventory(host, inventory);
        self.journal.know_vms(vms)
    }

    /// A VM was made on a host.
    pub(super) fn on_made(&mut self, host: &Name, report: VmReport) -> Result<()> {
        if self.is_elsewhere(host, &report) {
            return Ok(());
        }
        self.journal.know_vms([(report.name.clone(), known(host, &report))].into())?;
        self.registry.add_report(host, report);
        Ok(())
    }

    /// A host says that it has these VMs no more. What it merely does not report may come back.
    pub(super) fn on_gone(&mut self, host: &Name, vms: &[Name]) -> Result<()> {
        let its_own = |vm: &&Name| self.journal.vms().get(*vm).is_some_and(|known| known.host == *host);
        let gone: Vec<_> = vms.iter().filter(its_own).cloned().collect();
        for vm in &gone {
            tracing::info!("VM {vm} of host {host} is gone");
            self.registry.remove_report(host, vm);
        }
        gone.iter().try_for_each(|vm| self.journal.forget_home(vm))?;
        if gone.is_empty() { Ok(()) } else { self.journal.forget_vms(&gone) }
    }

    /// Names of VMs are unique in the cluster: whoever is connected and reported one first keeps it.
    fn is_elsewhere(&self, host: &Name, report: &VmReport) -> bool {
        if self.has_moved(host, &report.name) {
            return true;
        }
        let Some(known) = self.journal.vms().get(&report.name) else { return false };
        let elsewhere = known.host != *host && self.registry.report(&known.host, &report.name).is_some();
        if elsewhere && self.registry.report(host, &report.name).is_none() {
            tracing::warn!(
                "host {host} reports VM {}, which host {} has; rename one of them",
                report.name,
                known.host
            );
        }
        elsewhere
    }

    /// A host's connection has ended: what it was needed for hears of it.
    pub(super) fn lose_host(&mut self, host: &Name) -> Result<()> {
        self.registry.disconnect(host);
        self.takings_lose(host)?;
        self.verifyings_lose(host);
        self.controllings_lose(host);
        self.chores_lose(host)?;
        self.accessings_lose(host);
        self.replicating.lose(host);
        self.restorings_lose(host)
    }

    /// Hands an answer to the course in which it belongs. Others are late: their course is over.
    pub(super) fn on_answer(&mut self, host: &Name, envelope: &Envelope, answer: Answer) -> Result<()> {
        tracing::debug!("{host}: {} {} {}", envelope.vm, envelope.snapshot, answer.name());
        if let Answer::Refused(failure) = &answer {
            tracing::warn!("{} refused in {}: {failure}", envelope.vm, envelope.snapshot);
        }
        if envelope.term != self.journal.term() {
            return Ok(());
        }
        if matches!(answer, Answer::Evicted(())) {
            return self.on_evicted(host, envelope);
        }
        let deployment = &envelope.deployment;
        if self.takings.get(deployment).is_some_and(|taking| taking.expects(host, envelope)) {
            return self.on_taking_answer(deployment, envelope.vm.clone(), answer);
        }
        if self.restorings.get(deployment).is_some_and(|restoring| restoring.expects(host, envelope)) {
            return self.on_restoring_answer(deployment, envelope.vm.clone(), answer);
        }
        match answer {
            Answer::Deleted(()) => self.on_deleted(host, envelope),
            Answer::Fetching(_) | Answer::Fetched(_) => self.on_copying(host, envelope, answer),
            Answer::Refused(failure) if self.replicating.expects(host, envelope) => {
                self.replicating.fail(host, &failure.text);
                Ok(())
            }
            other => {
                self.on_verified(host, envelope, &other);
                self.on_controlled(host, envelope, &other);
                Ok(())
            }
        }
    }
}

/// What is remembered of a VM while its host is away.
fn known(host: &Name, report: &VmReport) -> KnownVm {
    KnownVm {
        host: host.clone(),
        deployment: report.deployment.clone(),
        addresses: report.addresses.clone(),
        colouring: report.colouring,
    }
}

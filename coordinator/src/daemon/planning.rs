//! Who would take part in a snapshot, and whether it may begin.

use std::collections::BTreeSet;

use jiff::Timestamp;
use unasnap_protocol::control::Colouring;
use unasnap_protocol::guest::{MAX_EPOCH, MAX_MEMBER_PREFIXES, Prefix};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{
    MemberRecord, PhaseTimes, RequestError, RequestErrorKind, SnapshotRecord, SnapshotState,
};

use super::journal::Stored;
use super::owner::Owner;

/// Longest name of a deployment whose snapshots' names (`<deployment>-<epoch>`) are valid.
const MAX_DEPLOYMENT_BYTES: usize = 52;

type Result<T> = std::result::Result<T, RequestError>;

fn refused<T>(text: String) -> Result<T> {
    Err(RequestError::new(RequestErrorKind::Refused, text))
}

impl Owner {
    /// Who would take part; refuses while anybody is missing.
    pub(super) fn plan(&self, deployment: Option<Name>) -> Result<Stored> {
        let deployment = self.choose_deployment(deployment)?;
        if let Some(what) = self.open_course(&deployment) {
            return refused(format!(
                "{what} of deployment {deployment} is under way; try again when it has ended"
            ));
        }
        if deployment.as_str().len() > MAX_DEPLOYMENT_BYTES {
            return refused(format!(
                "the name of deployment {deployment} is longer than {MAX_DEPLOYMENT_BYTES} characters; shorten it"
            ));
        }
        let counters = self.journal.counters(&deployment);
        let epoch = counters.last_epoch + 1;
        if epoch >= MAX_EPOCH {
            return refused(format!("deployment {deployment} has used up its epochs; rename it"));
        }
        let (members, addresses) = self.members(&deployment)?;
        let id = Name::new(&format!("{deployment}-{epoch:06}"))
            .map_err(|error| RequestError::new(RequestErrorKind::Internal, error.to_string()))?;
        let ways: BTreeSet<_> = members.iter().map(|member| member.ram_way.as_str()).collect();
        let record = SnapshotRecord {
            id,
            deployment,
            epoch,
            state: SnapshotState::Open,
            failure: None,
            consistent: members.iter().all(|member| member.colouring != Colouring::None),
            ram_way: ways.into_iter().collect::<Vec<_>>().join(","),
            created: Timestamp::now().to_string(),
            members,
            phases: PhaseTimes::default(),
            skew_ms: None,
            skew_bound_ms: None,
            save_ms: None,
            global_ms: None,
        };
        let incarnation = counters.incarnation;
        let (undeleted, copies) = (Vec::new(), Vec::new());
        Ok(Stored { record, incarnation, addresses, closed: false, undeleted, copies })
    }

    pub(super) fn choose_deployment(&self, wanted: Option<Name>) -> Result<Name> {
        let known: BTreeSet<_> = self.journal.vms().values().map(|vm| &vm.deployment).collect();
        let known: Vec<_> = known.into_iter().collect();
        let list = known.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
        let not_found = |text: String| Err(RequestError::new(RequestErrorKind::NotFound, text));
        match (wanted, known.as_slice()) {
            (_, []) => not_found(
                "no VM is known yet; start the host agents, `unasnap vm list` shows their VMs".to_owned(),
            ),
            (Some(name), known) if known.contains(&&name) => Ok(name),
            (Some(name), _) => not_found(format!("no VM belongs to a deployment {name}; there are: {list}")),
            (None, [only]) => Ok((*only).clone()),
            (None, _) => refused(format!("there are several deployments; name one of: {list}")),
        }
    }

    /// Every VM of the deployment, known now or before; all of their hosts must be connected.
    fn members(&self, deployment: &Name) -> Result<(Vec<MemberRecord>, Vec<Prefix>)> {
        let (mut members, mut addresses, mut missing) = (Vec::new(), Vec::new(), Vec::new());
        let is_there = |host: &Name| self.registry.host(host).is_some();
        for (name, vm) in self.journal.vms().iter().filter(|(_, vm)| vm.deployment == *deployment) {
            match self.registry.report(&vm.host, name) {
                Some(report) => {
                    let way = report.ram_way.clone();
                    members.push(MemberRecord::new(name.clone(), vm.host.clone(), vm.colouring, way));
                    addresses.extend(&vm.addresses);
                }
                None if is_there(&vm.host) => missing.push(format!(
                    "host {} does not report VM {name} any more: its definition there may be wrong; mend it, or `unasnap vm delete {name}`",
                    vm.host
                )),
                None => missing.push(format!(
                    "VM {name} is on host {}, which is not connected: start the host agent there",
                    vm.host
                )),
            }
        }
        if !missing.is_empty() {
            return refused(missing.join("; "));
        }
        if addresses.len() > MAX_MEMBER_PREFIXES {
            return refused(format!(
                "deployment {deployment} has {} addresses, at most {MAX_MEMBER_PREFIXES} are possible; split it",
                addresses.len()
            ));
        }
        Ok((members, addresses))
    }
}

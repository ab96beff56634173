//! Members that stand still in the pauses of their cuts, and the word that all may run on.
//!
//! It keeps packets from being dropped, and nothing else depends on it: a host that misses it lets its VMs run on by itself.

use std::collections::BTreeSet;

use unasnap_protocol::control::{CoordinatorSession, Standing};
use unasnap_protocol::name::Name;

use super::owner::Owner;
use super::taking::Taking;

impl Owner {
    /// A member of this host stands still.
    pub(super) fn on_standing(&mut self, host: &Name, standing: Standing) {
        let taking = self.takings.values_mut().find(|taking| taking.stored.record.id == standing.snapshot);
        let Some(taking) = taking.filter(|taking| taking.hosts.get(&standing.vm) == Some(host)) else {
            return;
        };
        taking.standing.insert(standing.vm);
        let deployment = taking.stored.record.deployment.clone();
        self.let_run_on(&deployment);
    }

    /// Tells all hosts of a snapshot, once, when nobody is left who might take POSTSNAPSHOT packets before its cut.
    pub(super) fn let_run_on(&mut self, deployment: &Name) {
        let Some(taking) = self.takings.get_mut(deployment).filter(|taking| all_stand(taking)) else {
            return;
        };
        taking.standing.clear();
        let run_on = CoordinatorSession::RunOn(taking.stored.record.id.clone());
        for host in taking.hosts.values().collect::<BTreeSet<_>>() {
            self.registry.say(host, &run_on);
        }
    }
}

/// Is there somebody who waits, and nobody to be waited for?
fn all_stand(taking: &Taking) -> bool {
    let stands = |vm: &Name| taking.standing.contains(vm);
    let has_cut = |vm: &Name| taking.machine.members().get(vm).is_some_and(|member| member.cut.is_some());
    !taking.standing.is_empty() && taking.hosts.keys().all(|vm| stands(vm) || has_cut(vm))
}

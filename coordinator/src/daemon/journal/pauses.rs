//! Deployments that were put aside, and those that give way to users.

use std::collections::BTreeMap;

use unasnap_protocol::name::Name;

use super::{Journal, PAUSED, Result, YIELDING, Yielding, put, remove};

impl Journal {
    /// Deployments that were paused, each with its snapshot.
    pub fn pauses(&self) -> &BTreeMap<Name, Name> {
        &self.paused
    }

    /// The snapshot in which a deployment was paused.
    pub fn paused(&self, deployment: &Name) -> Option<&Name> {
        self.paused.get(deployment)
    }

    /// A deployment is paused in this snapshot, or not any more.
    pub fn set_paused(&mut self, deployment: &Name, snapshot: Option<Name>) -> Result<()> {
        self.write("paused", |write| match &snapshot {
            Some(id) => put(write, PAUSED, deployment, id),
            None => remove(write, PAUSED, deployment),
        })?;
        match snapshot {
            Some(id) => self.paused.insert(deployment.clone(), id),
            None => self.paused.remove(deployment),
        };
        Ok(())
    }

    /// Deployments that give way to the users of their hosts.
    pub fn all_yielding(&self) -> impl Iterator<Item = &Name> {
        self.yielding.keys()
    }

    /// Of one deployment; `None` where it does not give way.
    pub fn yielding(&self, deployment: &Name) -> Option<Yielding> {
        self.yielding.get(deployment).copied()
    }

    /// A deployment gives way to users, or not any more.
    pub fn set_yielding(&mut self, deployment: &Name, yielding: Option<Yielding>) -> Result<()> {
        if self.yielding(deployment) == yielding {
            return Ok(());
        }
        self.write("paused", |write| match &yielding {
            Some(value) => put(write, YIELDING, deployment, value),
            None => remove(write, YIELDING, deployment),
        })?;
        match yielding {
            Some(value) => self.yielding.insert(deployment.clone(), value),
            None => self.yielding.remove(deployment),
        };
        Ok(())
    }
}

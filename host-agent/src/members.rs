//! The VMs of this host as everybody sees them. Only [`Registry`](crate::registry::Registry) changes who is among them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use unasnap_protocol::name::Name;

use crate::member::Handle;

/// All members of this host, now.
#[derive(Clone, Default)]
pub struct Members(Arc<RwLock<BTreeMap<Name, Handle>>>);

impl Members {
    /// The member of this name.
    #[must_use]
    pub fn get(&self, vm: &Name) -> Option<Handle> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(vm).cloned()
    }

    /// All, in the order of their names.
    #[must_use]
    pub fn list(&self) -> Vec<Handle> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// A member is there (again).
    pub fn enter(&self, vm: Name, handle: Handle) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(vm, handle);
    }

    /// A member is there no more.
    pub fn leave(&self, vm: &Name) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(vm);
    }
}

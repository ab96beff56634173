//! The instance of a VM, locked, known to be there.

use std::ops::{Deref, DerefMut};

use tokio::sync::MutexGuard;

use crate::hypervisor::Vm;

const CHECKED: &str = "there was one when the guard was made, and only the guard can change that";

/// Stands for the VM itself. A guard of tokio's own that maps to it makes futures that cannot be proved to be `Send`.
pub(super) struct Living<'a>(MutexGuard<'a, Option<Box<dyn Vm>>>);

impl<'a> Living<'a> {
    /// `None` when there is no instance.
    pub(super) fn new(instance: MutexGuard<'a, Option<Box<dyn Vm>>>) -> Option<Self> {
        instance.is_some().then_some(Self(instance))
    }
}

impl Deref for Living<'_> {
    type Target = dyn Vm;

    fn deref(&self) -> &Self::Target {
        self.0.as_deref().expect(CHECKED)
    }
}

impl DerefMut for Living<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.0.as_deref_mut().expect(CHECKED)
    }
}

//! `host`: the programs hang on the VM's tap devices, mirrored; the guest knows nothing of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use unasnap_fault_points::{after, before};
use unasnap_guest_ebpf::{Late, StateWord};
use unasnap_loader::{
    Installation, Pins, Side, Site, attach,
    pins::{self, BPF_FS},
};
use unasnap_protocol::control::{Failure, FailureKind, Phase};
use unasnap_protocol::guest::SetMembers;
use unasnap_protocol::name::Name;

/// The programs on the taps of one VM.
pub trait TapPrograms: Send {
    /// Everything that stands in the way of a snapshot, in words.
    fn problems(&mut self) -> Vec<String>;

    /// Replaces the member table.
    ///
    /// # Errors
    /// The kernel refuses.
    fn set_members(&mut self, members: &SetMembers) -> Result<()>;

    /// Sets the word, whatever it was.
    ///
    /// # Errors
    /// The kernel refuses.
    fn set_word(&mut self, word: StateWord) -> Result<()>;

    /// Applies a transition to the word by compare-and-swap.
    ///
    /// # Errors
    /// The word stands elsewhere and is unchanged.
    fn change(
        &mut self,
        transition: &dyn Fn(StateWord) -> Result<StateWord, Late>,
    ) -> Result<StateWord, Late>;
}

/// Puts programs on taps and takes them off again. The calls block for some tens of milliseconds.
pub trait Taps: Send + Sync {
    /// Hangs the programs on the taps of a VM. Those that an earlier agent left there are taken over with their word.
    ///
    /// # Errors
    /// What is missing, in words.
    fn install(&self, vm: &Name, taps: &[String]) -> Result<Box<dyn TapPrograms>>;

    /// Takes them off whatever is left of the taps, and forgets their word. Success when there are none.
    ///
    /// # Errors
    /// The kernel refuses.
    fn remove(&self, vm: &Name, taps: &[String]) -> Result<()>;
}

/// The kernel's.
#[derive(Debug, Clone)]
pub struct KernelTaps {
    /// Pins of this agent's VMs, one folder each.
    directory: PathBuf,
}

impl KernelTaps {
    /// For the agent with this state folder: agents of one machine do not know of each other's VMs.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        let agent = blake3::hash(state_dir.as_os_str().as_encoded_bytes()).to_hex();
        Self { directory: Path::new(BPF_FS).join("unasnap-host").join(&agent[..12]) }
    }

    fn pins(&self, vm: &Name) -> Pins {
        Pins::at(self.directory.join(vm.as_str()))
    }

    /// Removes the pins of VMs that are not among `vms`: their definitions are gone.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn forget_all_but(&self, vms: &[Name]) -> Result<()> {
        for name in pins::subdirectories(&self.directory)? {
            if !vms.iter().any(|vm| vm.as_str() == name) {
                Pins::at(self.directory.join(name)).remove_all()?;
            }
        }
        Ok(())
    }

    /// Removes everything that this agent has pinned, which takes the programs off all taps.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn forget_all(&self) -> Result<()> {
        Pins::at(self.directory.clone()).remove_all()?;
        // Refused while another agent of this machine has pins there.
        let _ = self.directory.parent().map(std::fs::remove_dir);
        Ok(())
    }
}

impl Taps for KernelTaps {
    fn install(&self, vm: &Name, taps: &[String]) -> Result<Box<dyn TapPrograms>> {
        let site = Site::new(Side::Tap, self.pins(vm));
        Ok(Box::new(Installation::install(&site, taps, false)?))
    }

    fn remove(&self, vm: &Name, taps: &[String]) -> Result<()> {
        attach::detach_taps(&self.pins(vm), taps)
    }
}

/// Installs on a thread that may block.
pub(super) async fn install(
    taps: &Arc<dyn Taps>,
    vm: &Name,
    interfaces: &[String],
) -> std::result::Result<Box<dyn TapPrograms>, Failure> {
    let (taps, vm, interfaces) = (taps.clone(), vm.clone(), interfaces.to_vec());
    let installed = tokio::task::spawn_blocking(move || taps.install(&vm, &interfaces)).await;
    installed.map_err(|error| failure(&error.to_string()))?.map_err(|error| failure(&format!("{error:#}")))
}

/// Removes on a thread that may block. What stays is harmless, and goes with the taps.
pub(super) async fn remove(taps: &Arc<dyn Taps>, vm: &Name, interfaces: &[String]) {
    let (taps, name, interfaces) = (taps.clone(), vm.clone(), interfaces.to_vec());
    match tokio::task::spawn_blocking(move || taps.remove(&name, &interfaces)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%vm, "programs are left on its taps: {error:#}"),
        Err(error) => tracing::warn!(%vm, "programs are left on its taps: {error}"),
    }
}

/// Why this way cannot be had.
pub(super) fn failure(why: &str) -> Failure {
    Failure::new(FailureKind::Colouring, Phase::Prepare, format!("the host cannot colour: {why}"))
}

impl TapPrograms for Installation {
    fn problems(&mut self) -> Vec<String> {
        Self::problems(self)
    }

    fn set_members(&mut self, members: &SetMembers) -> Result<()> {
        before("word", "members")?;
        Self::set_members(self, members)?;
        Ok(after("word", "members")?)
    }

    fn set_word(&mut self, word: StateWord) -> Result<()> {
        before("word", "set")?;
        Self::set_word(self, word)?;
        Ok(after("word", "set")?)
    }

    fn change(
        &mut self,
        transition: &dyn Fn(StateWord) -> Result<StateWord, Late>,
    ) -> Result<StateWord, Late> {
        let late = |_| Late { found: self.maps().word.load() };
        before("word", "change").map_err(late)?;
        let changed = self.maps().word.change(transition)?;
        after("word", "change").map_err(late)?;
        Ok(changed)
    }
}

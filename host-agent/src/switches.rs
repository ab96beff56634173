//! Switches for tests of the protocol, from the environment: delays that drive the VMs' cuts apart, and mistakes.

use std::time::Duration;

use anyhow::{Context, Result};
use unasnap_protocol::fault::Fault;
use unasnap_protocol::name::Name;

/// `vm2=20,vm3=5` lets these VMs begin their cuts this many milliseconds late.
const TAKE_DELAY: &str = "UNASNAP_TEST_TAKE_DELAY_MS";

/// The same for PREPARE.
const PREPARE_DELAY: &str = "UNASNAP_TEST_PREPARE_DELAY_MS";

/// Set, VMs wait for nobody in their pauses: colours alone make the cuts consistent. So it is with every mistake.
const RESUME_ALONE: &str = "UNASNAP_TEST_RESUME_ALONE";

/// What tests want of one VM; by default nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Switches {
    /// How much later than ordered it prepares.
    pub prepare_delay: Duration,
    /// How much later than ordered its cut begins.
    pub take_delay: Duration,
    /// Does it wait for nobody in its pause?
    pub resumes_alone: bool,
    /// A mistake that is put back.
    pub fault: Fault,
    /// Another bound than the usual for a guest that is to shut down.
    pub shut_down_limit: Option<Duration>,
}

impl Switches {
    /// Those of this VM.
    ///
    /// # Errors
    /// A switch is set to something that it does not know.
    pub fn from_environment(vm: &Name) -> Result<Self> {
        let fault = match std::env::var(Fault::SWITCH) {
            Ok(label) => Fault::from_label(&label)
                .with_context(|| format!("{}: there is no fault {label:?}", Fault::SWITCH))?,
            Err(_) => Fault::None,
        };
        let (prepare_delay, take_delay) = (delay(PREPARE_DELAY, vm)?, delay(TAKE_DELAY, vm)?);
        let resumes_alone = fault != Fault::None || std::env::var_os(RESUME_ALONE).is_some();
        Ok(Self { prepare_delay, take_delay, resumes_alone, fault, shut_down_limit: None })
    }
}

fn delay(switch: &str, vm: &Name) -> Result<Duration> {
    let Ok(text) = std::env::var(switch) else { return Ok(Duration::ZERO) };
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    let mut own = pairs.filter(|(name, _)| *name == vm.as_str()).map(|(_, milliseconds)| milliseconds);
    let milliseconds =
        own.next_back().map_or(Ok(0), str::parse).with_context(|| format!("{switch} is wrong: {text}"))?;
    Ok(Duration::from_millis(milliseconds))
}

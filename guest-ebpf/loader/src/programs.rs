//! Loading the programs, and running them on a made-up packet.

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    programs::{SchedClassifier, TcAttachType, TestRun as _, TestRunOptions},
};
use aya_log::EbpfLogger;
use log::Log;
use unasnap_guest_ebpf::layout;

use crate::{attach::Side, pins::Pins};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/unasnap-tc"));

/// Log levels above 0 make the programs log; 0 makes the verifier remove the code that would.
const SILENT: u8 = 0;
const VERBOSE: u8 = aya_log::Level::Debug as u8;
/// The map through which programs log, and its size where they do not: the smallest there can be.
const LOG_MAP: &str = "AYA_LOGS";
const PAGE_BYTES: u32 = 4096;

/// One of the two places where a packet meets a program, as the VM sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that leave the VM.
    Egress,
    /// Packets that come to the VM.
    Ingress,
}

impl Hook {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Egress, Self::Ingress];

    /// `egress` or `ingress`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }

    /// Name of the program for this hook.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Egress => layout::EGRESS,
            Self::Ingress => layout::INGRESS,
        }
    }

    /// The hook of the interface: on a tap, what leaves the VM comes in.
    #[must_use]
    pub fn attach_type(self, side: Side) -> TcAttachType {
        match (self, side) {
            (Self::Egress, Side::Guest) | (Self::Ingress, Side::Tap) => TcAttachType::Egress,
            (Self::Ingress, Side::Guest) | (Self::Egress, Side::Tap) => TcAttachType::Ingress,
        }
    }
}

/// Both programs, in the kernel.
pub struct Programs {
    object: Ebpf,
}

impl Programs {
    /// Loads the programs. They use the maps that are pinned already, and pin those that are not yet.
    ///
    /// # Errors
    /// The kernel refuses a program or a map (not root, or older than Linux 5.12).
    pub fn load(pins: &Pins, logging: bool) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        let level = if logging { VERBOSE } else { SILENT };
        loader.btf(None).default_map_pin_directory(pins.directory());
        loader.override_global(aya_log::LEVEL, &level, true);
        if !logging {
            loader.map_max_entries(LOG_MAP, PAGE_BYTES);
        }
        let object = loader.load(OBJECT).context("the kernel refuses the eBPF object")?;
        let mut programs = Self { object };
        for hook in Hook::ALL {
            let program = programs.get(hook)?;
            program.load().with_context(|| format!("the kernel refuses the {} program", hook.name()))?;
        }
        Ok(programs)
    }

    /// The program for a hook.
    ///
    /// # Errors
    /// The object does not hold it.
    pub fn get(&mut self, hook: Hook) -> Result<&mut SchedClassifier> {
        let name = hook.program();
        let program =
            self.object.program_mut(name).with_context(|| format!("no program {name} in the object"))?;
        Ok(program.try_into()?)
    }

    /// What the programs log from now on, as lines of `logger`.
    ///
    /// # Errors
    /// The programs were loaded without logging.
    pub fn log<L: Log + 'static>(&mut self, logger: L) -> Result<EbpfLogger<L>> {
        Ok(EbpfLogger::init_with_logger(&mut self.object, logger)?)
    }

    /// Runs a program on `frame`: what it answers, and the frame as it is afterwards.
    ///
    /// # Errors
    /// The kernel cannot run it.
    pub fn try_out(&mut self, hook: Hook, frame: &[u8]) -> Result<(i32, Vec<u8>)> {
        let mut output = vec![0; frame.len()];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut output), ..TestRunOptions::default() };
        let result = self.get(hook)?.test_run(options)?;
        Ok((result.return_value.cast_signed(), output))
    }
}

//! How the packets of one VM are coloured (protocol.md section 3), and the flips of its cuts.
//!
//! | way | who colours | the flip | asks of the guest |
//! |---|---|---|---|
//! | [`host`] | programs on the VM's taps | one compare-and-swap in the pause | nothing |
//! | [`memory`] | programs in the guest | one write into its RAM in the pause | the guest agent |
//! | [`guest`] | programs in the guest | send before the stop, receive after the resume | the guest agent |
//! | none | nobody | | nothing |
//!
//! The definition says what is wanted. What works is found out when the instance begins and again at every PREPARE;
//! where it is not the first choice, [`Colours::note`] says why. With `auto` the host comes first: it asks nothing of
//! the guest, its word is right before a restored VM has run one instruction, and no guest can lie to it.

use std::sync::Arc;

use unasnap_guest_ebpf::StateWord;
use unasnap_protocol::access::{Said, Turn};
use unasnap_protocol::control::{self, Failure, FailureKind, Phase};
use unasnap_protocol::fault::Fault;
use unasnap_protocol::guest::{Epoch, Prefix, WordState};
use unasnap_protocol::name::Name;

use crate::definition::{Colouring, VmDefinition};
use crate::guest_channel::{GuestChannel, GuestError, Pace, member_table};
use crate::hypervisor::Vm;
use crate::works::hypervisor_failure;

pub use self::cut::Cut;
use self::host::{TapPrograms, Taps};
use self::memory::MemoryWord;

mod cut;
mod guest;
pub mod host;
pub mod memory;

/// The colours of one VM.
pub struct Colours {
    vm: Name,
    wanted: Colouring,
    taps: Arc<dyn Taps>,
    /// The guest agent. In `host` mode there need not be one.
    guest: GuestChannel,
    /// May an earlier agent have left the guest in the middle of a cut?
    left_open: bool,
    /// Did it answer when it was asked last?
    guest_answers: Option<bool>,
    way: Way,
    /// Has everything been tried that the definition allows?
    settled: bool,
    note: String,
    /// Connections of the guest to addresses that are not members, as counted at PREPARE.
    outside: Option<u32>,
    /// For tests: a mistake that is put back.
    fault: Fault,
}

/// The way that works, with what it needs.
enum Way {
    None,
    Guest,
    /// The word is known from PREPARE to the end of the cut.
    Memory(Option<MemoryWord>),
    /// Without programs if they could not be attached.
    Host(Option<Box<dyn TapPrograms>>),
}

impl Way {
    fn label(&self) -> control::Colouring {
        match self {
            Self::None => control::Colouring::None,
            Self::Guest => control::Colouring::Guest,
            Self::Memory(_) => control::Colouring::Memory,
            Self::Host(_) => control::Colouring::Host,
        }
    }
}

impl Colours {
    /// Of a VM that does not run.
    #[must_use]
    pub fn new(definition: &VmDefinition, taps: Arc<dyn Taps>, fault: Fault) -> Self {
        let way = match definition.colouring {
            Colouring::None => Way::None,
            Colouring::Memory => Way::Memory(None),
            Colouring::Guest => Way::Guest,
            Colouring::Auto | Colouring::Host => Way::Host(None),
        };
        Self {
            vm: definition.name.clone(),
            wanted: definition.colouring,
            taps,
            guest: GuestChannel::new(std::path::PathBuf::new(), Pace::PORT, 0),
            left_open: false,
            guest_answers: None,
            way,
            settled: false,
            note: String::new(),
            outside: None,
            fault,
        }
    }

    /// The way that works, as far as is known.
    #[must_use]
    pub fn way(&self) -> control::Colouring {
        self.way.label()
    }

    /// Why that is not the first choice; empty when it is.
    #[must_use]
    pub fn note(&self) -> &str {
        &self.note
    }

    /// Did the guest agent answer when it was asked last?
    #[must_use]
    pub fn guest_answers(&self) -> bool {
        self.guest_answers == Some(true)
    }

    /// Can the VM be snapshotted only with its guest agent?
    #[must_use]
    pub fn needs_guest(&self) -> bool {
        matches!(self.way, Way::Guest | Way::Memory(_))
    }

    /// Connections to the outside, as counted at PREPARE.
    #[must_use]
    pub fn outside(&self) -> Option<u32> {
        self.outside
    }

    /// The VM has an instance: adopted with the programs that an earlier agent may have left on its taps, or a fresh
    /// one. What cannot be attached is a note; a VM runs without colours until it is to be snapshotted.
    pub async fn begin(&mut self, vm: &mut dyn Vm, adopted: bool) {
        let (path, pace) = (vm.guest_channel_path().to_owned(), vm.guest_channel_pace());
        self.guest = GuestChannel::new(path, pace, vm.incarnation());
        self.guest_answers = None;
        self.left_open = adopted;
        self.settled = false;
        if !adopted || !self.wants_host() {
            host::remove(&self.taps, &self.vm, vm.host_interfaces()).await;
        }
        if self.wants_host() {
            match host::install(&self.taps, &self.vm, vm.host_interfaces()).await {
                Ok(mut programs) => {
                    if adopted {
                        close(programs.as_mut());
                    }
                    self.settle(Way::Host(Some(programs)), String::new());
                }
                Err(failure) => {
                    tracing::warn!(vm = %self.vm, "{failure}");
                    failure.text.clone_into(&mut self.note);
                    self.way = if self.wanted == Colouring::Auto { Way::Guest } else { Way::Host(None) };
                }
            }
        }
    }

    /// The VM has no instance any more: its programs and their word go.
    pub async fn end(&mut self, taps: &[String]) {
        self.guest_answers = None;
        if let Way::Host(programs) = &mut self.way {
            *programs = None;
        }
        host::remove(&self.taps, &self.vm, taps).await;
    }

    /// An operator's turn, to the guest: the port is one, so that it is asked where the colours are.
    ///
    /// # Errors
    /// The guest does not answer, or nothing that fits.
    pub async fn access(&mut self, turn: &Turn) -> Result<Said, GuestError> {
        self.guest.access(turn).await
    }

    fn wants_host(&self) -> bool {
        matches!(self.wanted, Colouring::Auto | Colouring::Host)
    }

    fn settle(&mut self, way: Way, note: String) {
        if !note.is_empty() && note != self.note {
            tracing::warn!(vm = %self.vm, "coloured by {:?}, because {note}", way.label());
        }
        (self.way, self.note, self.settled) = (way, note, true);
    }

    /// Asks the guest agent whether it is there, and tries what could not be tried before it was.
    pub async fn look(&mut self, vm: &mut dyn Vm) {
        if self.guest_answers() && self.settled && self.guest.was_heard() {
            return;
        }
        let identity = self.guest.identify().await;
        let answers = identity.is_ok();
        self.guest_answers = Some(answers);
        if let Ok(identity) = identity {
            self.close_guest(identity.word).await;
        }
        if answers
            && !self.settled
            && let Err(failure) = self.choose(vm).await
        {
            tracing::warn!(vm = %self.vm, "{failure}");
        }
    }

    /// The cut that an earlier agent was in the middle of has gone with it, and no ABORT comes for what nobody remembers.
    async fn close_guest(&mut self, word: WordState) {
        let open = word.colouring || word.strict || word.send != word.receive;
        if !std::mem::take(&mut self.left_open) || !open || !self.needs_guest() {
            return;
        }
        tracing::info!(vm = %self.vm, "an earlier agent left colouring on");
        if let Err(failure) = self.set_word(WordState::idle(word.send.max(word.receive)), Phase::Abort).await
        {
            tracing::warn!(vm = %self.vm, "colouring stays on until the next snapshot: {failure}");
        }
    }

    /// Takes the first way that works of those that the definition allows.
    async fn choose(&mut self, vm: &mut dyn Vm) -> Result<(), Failure> {
        let mut reasons = Vec::new();
        let ways = self.wanted.ways();
        for (place, way) in ways.iter().enumerate() {
            match self.attempt(*way, vm).await {
                Ok(way) => {
                    if let (Way::Host(old @ Some(_)), false) = (&mut self.way, matches!(way, Way::Host(_))) {
                        *old = None;
                        host::remove(&self.taps, &self.vm, vm.host_interfaces()).await;
                    }
                    self.settle(way, reasons.join("; "));
                    return Ok(());
                }
                Err(failure) if place + 1 == ways.len() => {
                    reasons.push(failure.text);
                    return Err(Failure { text: reasons.join("; "), ..failure });
                }
                Err(failure) => reasons.push(failure.text),
            }
        }
        self.settle(Way::None, String::new());
        Ok(())
    }

    async fn attempt(&mut self, way: control::Colouring, vm: &mut dyn Vm) -> Result<Way, Failure> {
        match way {
            control::Colouring::None => Ok(Way::None),
            control::Colouring::Guest => {
                self.guest.self_check().await.map_err(|error| error.during(Phase::Prepare))?;
                Ok(Way::Guest)
            }
            control::Colouring::Memory => self.find_word(vm).await.map(|word| Way::Memory(Some(word))),
            control::Colouring::Host => self.check_taps(vm).await.map(|programs| Way::Host(Some(programs))),
        }
    }

    async fn check_taps(&mut self, vm: &mut dyn Vm) -> Result<Box<dyn TapPrograms>, Failure> {
        let kept = if let Way::Host(programs) = &mut self.way { programs.take() } else { None };
        let mut programs = match kept {
            Some(programs) => programs,
            None => host::install(&self.taps, &self.vm, vm.host_interfaces()).await?,
        };
        let problems = programs.problems();
        if problems.is_empty() {
            return Ok(programs);
        }
        Err(host::failure(&problems.join("; ")))
    }

    async fn find_word(&mut self, vm: &mut dyn Vm) -> Result<MemoryWord, Failure> {
        let guest_failure = |error: GuestError| error.during(Phase::Prepare);
        self.guest.self_check().await.map_err(guest_failure)?;
        let located = self.guest.locate_word().await.map_err(guest_failure)?;
        let failure = |text: String| Failure::new(FailureKind::Colouring, Phase::Prepare, text);
        let ram = vm.ram().map_err(|error| hypervisor_failure(&error, Phase::Prepare))?;
        MemoryWord::find(ram, located).map_err(|error| failure(error.to_string()))
    }

    /// PREPARE: chooses the way, and tells it who the members are.
    ///
    /// # Errors
    /// No way works; the words of all that were tried.
    pub async fn prepare(
        &mut self,
        vm: &mut dyn Vm,
        members: Vec<Prefix>,
        epoch: Epoch,
    ) -> Result<(), Failure> {
        self.outside = None;
        self.choose(vm).await?;
        let table = member_table(members);
        match &mut self.way {
            Way::None | Way::Host(None) => {}
            Way::Host(Some(programs)) => {
                programs.set_members(&table).map_err(|error| kernel_failure(&error, Phase::Prepare))?;
                if self.guest_answers != Some(false) {
                    // Not needed, so not waited for: but programs of its own must not judge what these have judged.
                    self.outside = guest::stand_aside(&mut self.guest, table, epoch).await;
                }
            }
            Way::Guest | Way::Memory(_) => {
                let failure = |error: GuestError| error.during(Phase::Prepare);
                self.guest.set_members(table).await.map_err(failure)?;
                // Asked now: between TAKE and the cut every question would widen the skew.
                self.outside = Some(self.guest.count_outside().await.map_err(failure)?);
            }
        }
        Ok(())
    }

    /// Sets the word, whatever it was.
    ///
    /// # Errors
    /// Kernel or guest agent do not.
    pub async fn set_word(&mut self, word: WordState, phase: Phase) -> Result<(), Failure> {
        self.left_open = false;
        match &mut self.way {
            Way::None | Way::Host(None) => Ok(()),
            Way::Host(Some(programs)) => {
                let word = StateWord::new(word.send, word.receive, word.colouring, word.strict);
                programs.set_word(word).map_err(|error| kernel_failure(&error, phase))
            }
            Way::Guest | Way::Memory(_) => {
                self.guest.set_word(word).await.map_err(|error| error.during(phase))
            }
        }
    }

    /// ARM: strict. The last moment at which `memory` can be given up for `guest`.
    ///
    /// # Errors
    /// The member advanced by itself; kernel or guest agent do not obey.
    pub async fn arm(&mut self, epoch: Epoch) -> Result<(), Failure> {
        if !self.fault.is_strict() {
            return Ok(());
        }
        match &mut self.way {
            Way::None | Way::Host(None) => return Ok(()),
            Way::Host(Some(programs)) => {
                let armed = programs.change(&|word| word.set_strict(epoch));
                return armed.map(drop).map_err(|late| late_failure(late.found, Phase::Arm));
            }
            Way::Guest | Way::Memory(_) => {
                self.guest.set_strict(epoch).await.map_err(|error| error.during(Phase::Arm))?;
            }
        }
        if let Way::Memory(word) = &self.way
            && let Err(reason) = word.as_ref().map_or(Ok(()), |word| word.check_armed(epoch))
        {
            self.settle(Way::Guest, reason.to_string());
        }
        Ok(())
    }

    /// A restored VM, still paused: members are known and the word is right before it runs.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn before_start(&mut self, members: &[Prefix], epoch: Epoch) -> Result<(), Failure> {
        if let Way::Host(Some(programs)) = &mut self.way {
            let table = member_table(members.to_vec());
            programs.set_members(&table).map_err(|error| kernel_failure(&error, Phase::Start))?;
            self.set_word(WordState::idle(epoch), Phase::Start).await?;
        }
        Ok(())
    }

    /// A restored VM that runs: its agent learns what it cannot know. Answers what could not be told, in words.
    ///
    /// # Errors
    /// A guest agent whose programs colour does not answer: the member would go on straddling.
    pub async fn after_start(&mut self, members: Vec<Prefix>, epoch: Epoch) -> Result<Vec<String>, Failure> {
        let (needed, table) = (self.needs_guest(), member_table(members));
        let told = match self.way {
            Way::None => return Ok(vec!["colouring is none: the guest was told nothing".to_owned()]),
            _ => guest::wake(&mut self.guest, table, epoch, needed).await,
        };
        self.guest_answers = Some(told.is_ok());
        match told {
            Ok(problems) => Ok(problems),
            Err(error) if needed => Err(error.during(Phase::Start)),
            Err(error) => Ok(vec![format!("clock, entropy and neighbours were not told: {error}")]),
        }
    }
}

/// As [`Colours::close_guest`], for programs on taps.
fn close(programs: &mut dyn TapPrograms) {
    let idle = |word: StateWord| {
        let epoch = word.send().max(word.receive());
        Ok(StateWord::new(epoch, epoch, false, false))
    };
    // It has no state from which it could be refused.
    let _ = programs.change(&idle);
}

fn kernel_failure(error: &anyhow::Error, phase: Phase) -> Failure {
    Failure::new(FailureKind::Colouring, phase, format!("the programs on the VM's taps: {error:#}"))
}

fn late_failure(found: StateWord, phase: Phase) -> Failure {
    let text = format!("the member's word is {found:?}: it has advanced by itself or was never prepared");
    Failure::new(FailureKind::LateCut, phase, text)
}

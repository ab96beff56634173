//! A guest agent on a unix socket, taps and a hypervisor in memory, writing what happens into one log.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use unasnap_guest_ebpf::{Late, StateWord};
use unasnap_host::colouring::host::{TapPrograms, Taps};
use unasnap_host::definition::VmDefinition;
use unasnap_host::guest_channel::Pace;
use unasnap_host::hypervisor::{
    CutTimes, FrozenDisks, Ground, GuestRam, Hypervisor, HypervisorError, InPause, Pending, SavedVm, Vm,
    VmState,
};
use unasnap_host::store::manifest::{Accel, Facts, FileRole, RamWay, Saved, SavedFile};
use unasnap_protocol::access::Said;
use unasnap_protocol::frame::{Decoder, MAX_GUEST_PAYLOAD};
use unasnap_protocol::guest::{
    AttachKind, GuestReply, GuestRequest, Identity, Located, ReplyHead, SetMembers, WordState,
};
use unasnap_protocol::name::Name;

/// What happened, in order, on both sides.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub fn add(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    pub fn taken(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// How the guest agent behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    Healthy,
    /// Reads and never answers.
    Silent,
    /// Its word stands in the middle of a cut from epoch 6.
    InACut,
    /// The member advanced by itself between the two flips.
    AdvancesInTheStraddle,
    /// It names a place in RAM where its word is not.
    Lies,
}

/// Where the guest's word is.
const WORD_AT: u64 = 4096;
const NONCE: u64 = 0x0123_4567_89ab_cdef;

/// Two pages of the guest's RAM; the second begins with the word and its nonce.
#[derive(Debug, Clone)]
pub struct Ram(Arc<Mutex<Vec<u8>>>, Log);

impl Ram {
    fn new(log: Log) -> Self {
        let ram = Self(Arc::new(Mutex::new(vec![0; 8192])), log);
        ram.put(WORD_AT + 8, NONCE);
        ram
    }

    pub fn set_word(&self, word: StateWord) {
        self.put(WORD_AT, word.bits());
    }

    pub fn word(&self) -> StateWord {
        let mut bytes = [0; 8];
        self.read(WORD_AT, &mut bytes).unwrap();
        StateWord::from_bits(u64::from_le_bytes(bytes))
    }

    fn put(&self, at: u64, value: u64) {
        let at = usize::try_from(at).unwrap();
        self.0.lock().unwrap()[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
}

impl GuestRam for Ram {
    fn read(&self, at: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        let at = usize::try_from(at).unwrap();
        bytes.copy_from_slice(&self.0.lock().unwrap()[at..at + bytes.len()]);
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.1.add(if at == WORD_AT { "ram: flip" } else { "ram: nonce" });
        let at = usize::try_from(at).unwrap();
        self.0.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

/// How the taps behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TapState {
    Healthy,
    /// The kernel refuses programs.
    Refused,
    /// A tap vanished after the programs were attached.
    Vanished,
    /// The member advances by itself before the flip.
    Advanced,
}

/// Taps in memory.
pub struct FakeTaps(pub TapState, pub Log);

struct FakePrograms(TapState, Log, StateWord);

impl Taps for FakeTaps {
    fn install(&self, _: &Name, _: &[String]) -> anyhow::Result<Box<dyn TapPrograms>> {
        self.1.add("tap: install");
        anyhow::ensure!(self.0 != TapState::Refused, "the kernel has no BPF");
        Ok(Box::new(FakePrograms(self.0, self.1.clone(), StateWord::default())))
    }

    fn remove(&self, _: &Name, _: &[String]) -> anyhow::Result<()> {
        self.1.add("tap: remove");
        Ok(())
    }
}

impl TapPrograms for FakePrograms {
    fn problems(&mut self) -> Vec<String> {
        let vanished = self.0 == TapState::Vanished;
        vanished.then(|| "there is no interface us0".to_owned()).into_iter().collect()
    }

    fn set_members(&mut self, _: &SetMembers) -> anyhow::Result<()> {
        self.1.add("tap: members");
        Ok(())
    }

    fn set_word(&mut self, word: StateWord) -> anyhow::Result<()> {
        self.1.add(format!("tap: word {word:?}"));
        self.2 = word;
        Ok(())
    }

    fn change(
        &mut self,
        transition: &dyn Fn(StateWord) -> Result<StateWord, Late>,
    ) -> Result<StateWord, Late> {
        let armed = self.2.strict();
        if armed && self.0 == TapState::Advanced {
            self.2 = self.2.self_advanced();
        }
        self.2 = transition(self.2)?;
        self.1.add(format!("tap: word {:?}", self.2));
        Ok(self.2)
    }
}

/// What the guest does when an operator asks.
#[derive(Debug, Clone)]
pub enum Told {
    Says(Said),
    Nothing,
}

/// Serves one guest channel.
pub fn serve_guest(path: &Path, behaviour: Guest, says: &'static [Told], log: Log) {
    let mut says = says.iter();
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut decoder = Decoder::resync(MAX_GUEST_PAYLOAD);
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                decoder.push(&buffer[..count]);
                while let Ok(Some(frame)) = decoder.next_frame() {
                    let (head, request) = GuestRequest::decode(&frame).unwrap();
                    log.add(describe(&request));
                    if matches!(request, GuestRequest::Access(_)) {
                        if let Some(Told::Says(said)) = says.next() {
                            let reply = GuestReply::Access(said.clone());
                            let head = ReplyHead { sequence: head.sequence };
                            stream.write_all(&reply.encode(&head)).await.unwrap();
                        }
                    } else if behaviour != Guest::Silent {
                        let head = ReplyHead { sequence: head.sequence };
                        stream.write_all(&reply(&request, behaviour).encode(&head)).await.unwrap();
                    }
                }
            }
        }
    });
}

fn describe(request: &GuestRequest) -> String {
    match request {
        GuestRequest::SetWord(word) => {
            let colouring = if word.colouring { "on" } else { "off" };
            let strict = if word.strict { ", strict" } else { "" };
            format!("word {} {} {colouring}{strict}", word.send, word.receive)
        }
        other => other.name().to_owned(),
    }
}

fn reply(request: &GuestRequest, behaviour: Guest) -> GuestReply {
    match request {
        GuestRequest::SelfCheck(()) => GuestReply::Health(vec![]),
        GuestRequest::Identify(()) => GuestReply::Identity(Identity {
            agent_version: "1".into(),
            kernel: "6.12".into(),
            boot_id: "b".into(),
            hostname: "vm1".into(),
            interfaces: vec![],
            attach: AttachKind::Tcx,
            word: match behaviour {
                Guest::InACut => WordState { send: 7, ..WordState::colouring(6) },
                _ => WordState::idle(0),
            },
        }),
        GuestRequest::CountOutside(()) => GuestReply::Outside(3),
        GuestRequest::LocateWord(()) => {
            let guest_physical = if behaviour == Guest::Lies { 0 } else { WORD_AT };
            GuestReply::Located(Located { guest_physical, nonce: NONCE })
        }
        GuestRequest::FlipReceive(flip) if behaviour == Guest::AdvancesInTheStraddle => {
            GuestReply::Late(WordState::colouring(flip.to))
        }
        _ => GuestReply::Done(()),
    }
}

/// How the VM behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    Healthy,
    /// Its process has ended.
    Dead,
    /// Its process ends while it is being saved.
    DiesWhileSaving,
    /// Saving takes for ever.
    SavesForEver,
    /// Its RAM cannot be reached.
    NoRam,
    /// It does not hear the first time that it is to give up a cut.
    HangsWhenUndone,
    /// Its guest does not mind the power button.
    Deaf,
    /// It was loaded, and nobody has let it run yet.
    Loaded,
    /// It was stopped because a disk could not be written.
    NoDisk,
}

/// One VM in memory.
pub struct FakeVm {
    pub behaviour: Machine,
    pub log: Log,
    pub socket: PathBuf,
    pub pace: Pace,
    pub folder: Option<PathBuf>,
    pub space_needed: u64,
    pub ram: Ram,
    pub fenced: bool,
    pub paused: bool,
}

impl FakeVm {
    pub fn new(behaviour: Machine, log: Log, socket: PathBuf, space_needed: u64) -> Self {
        Self {
            behaviour,
            ram: Ram::new(log.clone()),
            log,
            socket,
            pace: Pace::PORT,
            folder: None,
            space_needed,
            fenced: false,
            paused: false,
        }
    }
}

fn gone() -> HypervisorError {
    HypervisorError::Gone { vm: "vm1".into(), what: "saving".into(), log: "qemu.log".into() }
}

impl Vm for FakeVm {
    fn incarnation(&self) -> u64 {
        4
    }

    fn guest_channel_path(&self) -> &Path {
        &self.socket
    }

    fn guest_channel_pace(&self) -> Pace {
        self.pace
    }

    fn host_interfaces(&self) -> &[String] {
        &[]
    }

    fn ram(&self) -> Result<Box<dyn GuestRam>, HypervisorError> {
        if self.behaviour == Machine::NoRam { Err(gone()) } else { Ok(Box::new(self.ram.clone())) }
    }

    fn state(&mut self) -> Pending<'_, VmState> {
        let state = match self.behaviour {
            Machine::Dead => VmState::Dead,
            Machine::NoDisk => VmState::IoError,
            Machine::Loaded => VmState::Paused,
            _ if self.paused || self.fenced => VmState::Paused,
            _ => VmState::Running,
        };
        Box::pin(async move { Ok(state) })
    }

    fn space_needed(&self) -> u64 {
        self.space_needed
    }

    fn prepare_cut<'a>(&'a mut self, folder: &'a Path) -> Pending<'a, ()> {
        self.log.add("overlays");
        self.folder = Some(folder.to_owned());
        Box::pin(async { Ok(()) })
    }

    fn arm_cut(&mut self) -> Pending<'_, ()> {
        self.log.add("flush");
        Box::pin(async { Ok(()) })
    }

    fn cut<'a>(&'a mut self, in_pause: InPause<'a>) -> Pending<'a, CutTimes> {
        self.log.add("stop");
        (in_pause.stopped)();
        self.log.add("fix");
        (in_pause.fixed)();
        self.log.add("resume after the cut");
        Box::pin(async {
            Ok(CutTimes { stopped_at: 10, instant: 20, resumed_at: 30, parts: vec![("stop", 1)] })
        })
    }

    fn save(&mut self) -> Pending<'_, Saved> {
        Box::pin(async {
            self.log.add("save");
            match self.behaviour {
                Machine::DiesWhileSaving => return Err(gone()),
                Machine::SavesForEver => tokio::time::sleep(Duration::from_secs(3600)).await,
                _ => {}
            }
            let folder = self.folder.clone().expect("prepared");
            std::fs::write(folder.join("ram"), b"all of it").expect("writable");
            let files = vec![SavedFile { name: "ram".into(), role: FileRole::MigrationStream, blake3: None }];
            Ok(Saved { hypervisor: facts(), files, bases: vec![] })
        })
    }

    fn discard_cut(&mut self) -> Pending<'_, ()> {
        if self.behaviour == Machine::HangsWhenUndone {
            self.behaviour = Machine::Healthy;
            return Box::pin(std::future::pending());
        }
        self.log.add("discard");
        Box::pin(async { Ok(()) })
    }

    fn fence(&mut self) -> Pending<'_, ()> {
        self.log.add("fence");
        self.fenced = true;
        Box::pin(async { Ok(()) })
    }

    fn is_fenced(&self) -> bool {
        self.fenced
    }

    fn lift_fence(&mut self) -> Pending<'_, ()> {
        self.log.add("lift");
        self.fenced = false;
        Box::pin(async { Ok(()) })
    }

    fn pause(&mut self) -> Pending<'_, ()> {
        self.log.add("pause");
        self.paused = true;
        Box::pin(async { Ok(()) })
    }

    fn awaits_resume(&self) -> bool {
        self.behaviour == Machine::Loaded
    }

    fn press_power(&mut self) -> Pending<'_, ()> {
        self.log.add("power button");
        if self.behaviour != Machine::Deaf {
            self.behaviour = Machine::Dead;
        }
        Box::pin(async { Ok(()) })
    }

    fn resume(&mut self) -> Pending<'_, ()> {
        self.log.add("resume");
        self.fenced = false;
        self.paused = false;
        if self.behaviour == Machine::NoDisk {
            self.behaviour = Machine::Healthy;
        }
        Box::pin(async { Ok(()) })
    }
}

pub fn facts() -> Facts {
    Facts {
        kind: "fake".into(),
        version: "1".into(),
        machine: "none".into(),
        accel: Accel::Tcg,
        ram_way: RamWay::StopAndSave,
    }
}

/// Restores VMs in memory.
pub struct FakeHypervisor {
    pub facts: Facts,
    pub log: Log,
    pub socket: PathBuf,
}

impl Hypervisor for FakeHypervisor {
    fn about(&self) -> &Facts {
        &self.facts
    }

    fn start<'a>(&'a self, vm: &'a VmDefinition, _: u64) -> Pending<'a, Box<dyn Vm>> {
        self.log.add("boot");
        let machine = if vm.name.as_str() == "deaf" { Machine::Deaf } else { Machine::Healthy };
        let vm = FakeVm::new(machine, self.log.clone(), self.socket.clone(), 0);
        Box::pin(async move { Ok(Box::new(vm) as Box<dyn Vm>) })
    }

    fn adopt<'a>(&'a self, _: &'a VmDefinition) -> Pending<'a, Option<Box<dyn Vm>>> {
        Box::pin(async { Ok(None) })
    }

    fn restore<'a>(&'a self, _: &'a VmDefinition, _: SavedVm<'a>, _: u64) -> Pending<'a, Box<dyn Vm>> {
        self.log.add("load");
        let (log, socket) = (self.log.clone(), self.socket.clone());
        let vm = FakeVm::new(Machine::Healthy, log, socket, 0);
        Box::pin(async move { Ok(Box::new(vm) as Box<dyn Vm>) })
    }

    fn destroy<'a>(&'a self, _: &'a Name) -> Pending<'a, ()> {
        self.log.add("destroy");
        Box::pin(async { Ok(()) })
    }

    fn make<'a>(&'a self, _: &'a VmDefinition, _: Ground<'a>, _: u64) -> Pending<'a, ()> {
        self.log.add("make");
        Box::pin(async { Ok(()) })
    }

    fn forget<'a>(&'a self, _: &'a Name) -> Pending<'a, ()> {
        self.log.add("forget");
        Box::pin(async { Ok(()) })
    }

    fn freeze<'a>(&'a self, vm: &'a VmDefinition) -> Pending<'a, FrozenDisks> {
        self.log.add("freeze");
        let what = format!("the disks of {} are nowhere", vm.name);
        Box::pin(async move { Err(HypervisorError::Unsupported { what }) })
    }

    fn disk_files(&self, vm: &VmDefinition) -> Result<Vec<Vec<PathBuf>>, HypervisorError> {
        Ok(vm.disks.iter().map(|disk| vec![disk.image.clone()]).collect())
    }
}

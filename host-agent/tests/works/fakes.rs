//! A guest agent on a unix socket and a hypervisor in memory, writing what happens into one log.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use unasnap_host::definition::VmDefinition;
use unasnap_host::hypervisor::{
    CutTimes, Hypervisor, HypervisorError, InPause, Pending, SavedVm, Vm, VmState,
};
use unasnap_host::store::manifest::{Accel, Facts, FileRole, RamWay, Saved, SavedFile};
use unasnap_protocol::frame::{Decoder, MAX_GUEST_PAYLOAD};
use unasnap_protocol::guest::{GuestReply, GuestRequest, ReplyHead, WordState};
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
    /// The member advanced by itself between the two flips.
    AdvancesInTheStraddle,
}

/// Serves one guest channel.
pub fn serve_guest(path: &Path, behaviour: Guest, log: Log) {
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
                    if behaviour != Guest::Silent {
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
            format!("word {} {} {}", word.send, word.receive, if word.colouring { "on" } else { "off" })
        }
        other => other.name().to_owned(),
    }
}

fn reply(request: &GuestRequest, behaviour: Guest) -> GuestReply {
    match request {
        GuestRequest::SelfCheck(()) => GuestReply::Health(vec![]),
        GuestRequest::CountOutside(()) => GuestReply::Outside(3),
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
}

/// One VM in memory.
pub struct FakeVm {
    pub behaviour: Machine,
    pub log: Log,
    pub socket: PathBuf,
    pub folder: Option<PathBuf>,
    pub space_needed: u64,
}

fn gone() -> HypervisorError {
    HypervisorError::Gone { vm: "vm1".into(), what: "saving".into(), log: "qemu.log".into() }
}

impl Vm for FakeVm {
    fn incarnation(&self) -> u64 {
        0
    }

    fn guest_channel_path(&self) -> &Path {
        &self.socket
    }

    fn host_interfaces(&self) -> &[String] {
        &[]
    }

    fn state(&mut self) -> Pending<'_, VmState> {
        let state = if self.behaviour == Machine::Dead { VmState::Dead } else { VmState::Running };
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
        self.log.add("cut");
        in_pause();
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
                Machine::Healthy | Machine::Dead => {}
            }
            let folder = self.folder.clone().expect("prepared");
            std::fs::write(folder.join("ram"), b"all of it").expect("writable");
            let files = vec![SavedFile { name: "ram".into(), role: FileRole::MigrationStream, blake3: None }];
            Ok(Saved { hypervisor: facts(), files, bases: vec![] })
        })
    }

    fn discard_cut(&mut self) -> Pending<'_, ()> {
        self.log.add("discard");
        Box::pin(async { Ok(()) })
    }

    fn resume(&mut self) -> Pending<'_, ()> {
        self.log.add("resume");
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

    fn start<'a>(&'a self, _: &'a VmDefinition, _: u64) -> Pending<'a, Box<dyn Vm>> {
        Box::pin(async { Err(gone()) })
    }

    fn adopt<'a>(&'a self, _: &'a VmDefinition) -> Pending<'a, Option<Box<dyn Vm>>> {
        Box::pin(async { Ok(None) })
    }

    fn restore<'a>(&'a self, _: &'a VmDefinition, _: SavedVm<'a>, _: u64) -> Pending<'a, Box<dyn Vm>> {
        self.log.add("load");
        let (log, socket) = (self.log.clone(), self.socket.clone());
        let vm = FakeVm { behaviour: Machine::Healthy, log, socket, folder: None, space_needed: 0 };
        Box::pin(async move { Ok(Box::new(vm) as Box<dyn Vm>) })
    }

    fn destroy<'a>(&'a self, _: &'a Name) -> Pending<'a, ()> {
        self.log.add("destroy");
        Box::pin(async { Ok(()) })
    }
}

//! One living instance: what it is doing, and its cuts.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use unasnap_channel::steady_ns;
use unasnap_protocol::name::Name;

use super::super::process::Process;
use super::super::{CutTimes, GuestRam, HypervisorError, InPause, Pending, Vm, VmState, base_image};
use super::guest_ram::QemuRam;
use super::instance::{Instance, VmFolder};
use super::qmp::Qmp;
use super::ram::{Saving, Taking};
use super::urgency::Urgent;
use super::{devices, disks, ram};
use crate::store::files;
use crate::store::manifest::{FileRole, RamWay, Saved, SavedFile};

/// How long `cont` may be refused because a migration is still tidying up.
const RESUME_PATIENCE: Duration = Duration::from_secs(5);
/// Allowance for device state and for the tables of a new qcow2 layer, bytes per VM and per disk.
const SLACK_BYTES: u64 = 8 << 20;

/// A QEMU that runs, and the connection to it.
#[derive(Debug)]
pub(super) struct QemuVm {
    name: Name,
    pub(super) folder: VmFolder,
    pub(super) instance: Instance,
    pub(super) qmp: Qmp,
    stage: Stage,
}

/// How far the cut under way has come.
#[derive(Debug)]
enum Stage {
    Idle,
    /// From the first step of a preparation on; RAM's part is there once all of it is done.
    Prepared(Cut),
    /// From just before the vCPUs stop: whatever happened since is found out by asking QEMU.
    Cutting(Cut),
    /// The VM runs on.
    Cut(Cut),
}

/// A cut under way.
#[derive(Debug)]
struct Cut {
    /// The folder for its files.
    folder: PathBuf,
    /// RAM's part, until it is saved.
    ram: Option<Taking>,
    /// While RAM is being saved.
    saving: Option<Saving>,
    /// From shortly before the cut until the VM runs on.
    urgent: Option<Urgent>,
}

impl Stage {
    fn cut(&mut self) -> Option<&mut Cut> {
        match self {
            Self::Idle => None,
            Self::Prepared(cut) | Self::Cutting(cut) | Self::Cut(cut) => Some(cut),
        }
    }
}

impl QemuVm {
    pub(super) fn new(name: Name, folder: VmFolder, instance: Instance, qmp: Qmp) -> Self {
        Self { name, folder, instance, qmp, stage: Stage::Idle }
    }

    fn process(&self) -> Result<Process, HypervisorError> {
        let alive = self.instance.process.filter(|process| process.is_alive());
        alive.ok_or_else(|| HypervisorError::Gone {
            vm: self.name.to_string(),
            what: "its process has ended".to_owned(),
            log: self.folder.log.clone(),
        })
    }

    fn wrong_state(&self, wanted: &'static str, why: &str) -> HypervisorError {
        HypervisorError::WrongState { vm: self.name.to_string(), wanted, why: why.to_owned() }
    }

    fn way(&self) -> RamWay {
        self.instance.facts.ram_way
    }

    /// Fills a process that waits for a saved VM.
    pub(super) async fn load(&mut self, way: RamWay, saved: &Path) -> Result<(), HypervisorError> {
        ram::load(&self.qmp, self.name.as_str(), way, saved).await
    }

    async fn ask_state(&self) -> Result<VmState, HypervisorError> {
        if self.process().is_err() {
            return Ok(VmState::Dead);
        }
        Ok(match self.qmp.text("query-status", "status").await?.as_str() {
            "running" => VmState::Running,
            "io-error" => VmState::IoError,
            "shutdown" | "internal-error" | "guest-panicked" => VmState::Dead,
            _ => VmState::Paused,
        })
    }

    async fn do_prepare(&mut self, target: &Path) -> Result<(), HypervisorError> {
        if !matches!(self.stage, Stage::Idle) {
            return Err(self.wrong_state("prepare a cut", "another one is under way: discard it first"));
        }
        if self.ask_state().await? != VmState::Running {
            return Err(self.wrong_state("prepare a cut", "it does not run: resume or restart it"));
        }
        let (disks, nics) = (self.instance.disks.len(), self.instance.taps.len());
        devices::check(&self.qmp, self.name.as_str(), disks, nics).await?;
        self.stage =
            Stage::Prepared(Cut { folder: target.to_owned(), ram: None, saving: None, urgent: None });
        disks::stop_merges(&self.qmp, self.name.as_str()).await?;
        disks::settle(&self.qmp, &mut self.instance.disks, &self.folder).await?;
        for (index, chain) in self.instance.disks.iter_mut().enumerate() {
            chain.next = Some(chain.following(index));
        }
        self.instance.write(&self.folder)?;
        disks::open_overlays(&self.qmp, &self.instance.disks, &self.folder).await?;
        let process = self.process()?;
        let mut begun = Taking::begin(&self.qmp, self.way(), target, self.instance.memory_bytes).await?;
        let caught_up = begun.catch_up(&self.qmp, &process, self.name.as_str()).await;
        self.keep_or_explain(begun, caught_up)
    }

    /// Keeps RAM's part of the cut if `outcome` is good; otherwise the error is the one that came first.
    fn keep_or_explain(
        &mut self,
        taking: Taking,
        outcome: Result<(), HypervisorError>,
    ) -> Result<(), HypervisorError> {
        match outcome {
            Ok(()) => {
                if let Some(cut) = self.stage.cut() {
                    cut.ram = Some(taking);
                }
                Ok(())
            }
            Err(seen) => Err(taking.failure().unwrap_or(seen)),
        }
    }

    /// Stopping makes QEMU flush every disk. Done once before, that finds little left to write in the pause.
    async fn do_arm(&mut self) -> Result<(), HypervisorError> {
        let ram = match &mut self.stage {
            Stage::Prepared(cut) => cut.ram.take(),
            _ => None,
        };
        let Some(ram) = ram else { return Err(self.wrong_state("arm a cut", "prepare it first")) };
        ram.draw_near();
        let alive = ram.check(&self.qmp, self.name.as_str()).await;
        self.keep_or_explain(ram, alive)?;
        for chain in &self.instance.disks {
            sync(&self.folder.disks.join(&chain.active().file)).await?;
        }
        let process = self.process()?;
        if let Some(cut) = self.stage.cut() {
            cut.urgent = Some(Urgent::raise(&process));
        }
        Ok(())
    }

    async fn do_cut(&mut self, in_pause: InPause<'_>) -> Result<CutTimes, HypervisorError> {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Prepared(cut @ Cut { ram: Some(_), .. }) => Stage::Cutting(cut),
            other => {
                self.stage = other;
                return Err(self.wrong_state("cut", "prepare it first"));
            }
        };
        let result = self.pause_and_fix(in_pause).await;
        match (&result, std::mem::replace(&mut self.stage, Stage::Idle)) {
            (Ok(_), Stage::Cutting(mut cut)) => {
                cut.urgent = None;
                self.stage = Stage::Cut(cut);
            }
            (_, stage) => {
                self.stage = stage;
                // Which step failed does not matter: nothing may leave the VM standing.
                self.run_on().await?;
            }
        }
        result
    }

    /// What QEMU has to do goes out in two bursts: before the RAM's instant, and after it.
    async fn pause_and_fix(&mut self, in_pause: InPause<'_>) -> Result<CutTimes, HypervisorError> {
        let vm = self.name.as_str();
        let Some(Cut { folder, ram: Some(ram), .. }) = self.stage.cut() else {
            return Err(self.wrong_state("cut", "prepare it first"));
        };
        let mut watch = Watch::start();
        let stopped_at = steady_ns();
        let rest = [("disks", disks::switch(&self.instance.disks)), ("devices", ram.enter_pause())];
        let (names, rest): (Vec<_>, Vec<_>) =
            rest.into_iter().filter_map(|(name, command)| Some((name, command?))).unzip();
        let mut begun = self.qmp.begin([vec![("stop", json!({}))], rest].concat()).await;
        if let Some(stopped) = begun.next().await? {
            watch.lap_at("stop", stopped);
        }
        ram.stopped();
        (in_pause.stopped)();
        for name in names {
            if let Some(done) = begun.next().await? {
                watch.lap_at(name, done);
            }
        }
        ram.fix(&self.qmp, vm, folder).await?;
        watch.lap("ram");
        let instant = steady_ns();
        (in_pause.fixed)();
        watch.lap("flip");
        if let Some(command) = ram.leave_pause() {
            self.qmp.execute(command.0, command.1).await?;
        }
        watch.lap("tidy");
        in_pause.run_on.await;
        watch.lap("others");
        self.run_on().await?;
        watch.lap("resume");
        let resumed_at = steady_ns();
        for chain in &mut self.instance.disks {
            chain.layers.extend(chain.next.take());
        }
        Ok(CutTimes { stopped_at, instant, resumed_at, parts: watch.parts })
    }

    /// `cont`, again and again while a migration is tidying up.
    pub(super) async fn run_on(&self) -> Result<(), HypervisorError> {
        let deadline = Instant::now() + RESUME_PATIENCE;
        loop {
            match self.qmp.execute("cont", json!({})).await {
                Err(HypervisorError::Refused { reason, .. })
                    if reason.contains("not finalized") && Instant::now() < deadline => {}
                other => return other.map(drop),
            }
        }
    }

    async fn do_save(&mut self) -> Result<Saved, HypervisorError> {
        let Stage::Cut(cut) = &mut self.stage else {
            return Err(self.wrong_state("save", "there is no cut whose bytes are to be saved"));
        };
        let target = cut.folder.clone();
        if let Some(ram) = cut.ram.take() {
            cut.saving = ram.save(&self.qmp).await;
        }
        if let Some(saving) = &mut cut.saving {
            ended(saving, &target).await?;
            cut.saving = None;
        }
        // Only now, as the overlays of a cut are known to be its overlays either way.
        self.instance.write(&self.folder)?;
        let mut files = Vec::new();
        for (name, role) in ram::files(self.way()) {
            sync(&target.join(name)).await?;
            files.push(SavedFile { name: (*name).to_owned(), role: *role, blake3: None });
        }
        files.extend(self.link_layers(&target).await?);
        disks::digest_bases(&mut self.instance.disks).await?;
        sync(&target).await?;
        self.instance.write(&self.folder)?;
        let bases = self.instance.disks.iter().map(|chain| chain.base.clone()).collect();
        self.stage = Stage::Idle;
        // The snapshot is whole, also if the VM has died since its cut.
        if let Err(error) = disks::start_merges(&self.qmp, &self.instance.disks).await {
            tracing::warn!(vm = %self.name, %error, "disk layers are not merged");
        }
        Ok(Saved { hypervisor: self.instance.facts.clone(), files, bases })
    }

    /// Puts every frozen layer into the snapshot's folder. What a layer holds is synced and hashed once.
    async fn link_layers(&mut self, target: &Path) -> Result<Vec<SavedFile>, HypervisorError> {
        let mut saved = Vec::new();
        for (index, chain) in self.instance.disks.iter_mut().enumerate() {
            let (_active, frozen) = chain.layers.split_last_mut().expect("a chain has an active layer");
            for layer in frozen {
                let from = self.folder.disks.join(&layer.file);
                if layer.blake3.is_none() {
                    sync(&from).await?;
                    layer.blake3 = Some(base_image::digest(&from).await?);
                }
                let to = target.join(&layer.file);
                files::link_or_copy(&from, &to).map_err(HypervisorError::file("link", &to))?;
                let (name, role) = (layer.file.clone(), FileRole::DiskLayer(index));
                saved.push(SavedFile { name, role, blake3: layer.blake3.clone() });
            }
        }
        Ok(saved)
    }

    async fn do_discard(&mut self) -> Result<(), HypervisorError> {
        // The files go first, and also when QEMU is dead: on a full disk their space is what the VM waits for.
        self.unless_dead(Self::end_migration).await?;
        if let Some(Cut { folder: target, ram, saving, .. }) = self.stage.cut() {
            // Whoever still writes a file of the cut ends first; with what result does not matter any more.
            drop(ram.take());
            if let Some(saving) = saving {
                drop(ended(saving, target).await);
            }
            let layers = self.instance.disks.iter().flat_map(|chain| chain.layers.iter());
            let names =
                [ram::RAM_FILE, ram::DEVICES_FILE].into_iter().chain(layers.map(|layer| &*layer.file));
            for path in names.map(|name| target.join(name)) {
                files::remove_if_there(&path).map_err(HypervisorError::file("delete", &path))?;
            }
        }
        self.unless_dead(Self::settle_and_run).await?;
        self.stage = Stage::Idle;
        Ok(())
    }

    /// Does something with QEMU; success when there is none any more.
    async fn unless_dead(
        &mut self,
        what: impl AsyncFnOnce(&mut Self) -> Result<(), HypervisorError>,
    ) -> Result<(), HypervisorError> {
        if self.process().is_err() {
            return Ok(());
        }
        match what(self).await {
            Err(HypervisorError::Gone { .. }) => Ok(()),
            other => other,
        }
    }

    async fn end_migration(&mut self) -> Result<(), HypervisorError> {
        ram::cancel(&self.qmp, self.name.as_str()).await
    }

    async fn settle_and_run(&mut self) -> Result<(), HypervisorError> {
        disks::settle(&self.qmp, &mut self.instance.disks, &self.folder).await?;
        let state = self.ask_state().await?;
        if matches!(state, VmState::Paused | VmState::IoError) && !self.stays_stopped() {
            self.run_on().await?;
        }
        self.instance.write(&self.folder)?;
        // Discarded cuts make the chains longer, too.
        disks::stop_merges(&self.qmp, self.name.as_str()).await?;
        disks::start_merges(&self.qmp, &self.instance.disks).await
    }
}

impl Vm for QemuVm {
    fn incarnation(&self) -> u64 {
        self.instance.incarnation
    }

    fn guest_channel_path(&self) -> &Path {
        &self.folder.guest
    }

    fn host_interfaces(&self) -> &[String] {
        &self.instance.taps
    }

    fn ram(&self) -> Result<Box<dyn GuestRam>, HypervisorError> {
        Ok(Box::new(QemuRam::open(self.process()?, self.instance.memory_bytes)?))
    }

    fn state(&mut self) -> Pending<'_, VmState> {
        Box::pin(self.ask_state())
    }

    fn space_needed(&self) -> u64 {
        self.instance.memory_bytes + SLACK_BYTES * (1 + self.instance.disks.len() as u64)
    }

    fn prepare_cut<'a>(&'a mut self, folder: &'a Path) -> Pending<'a, ()> {
        Box::pin(self.do_prepare(folder))
    }

    fn arm_cut(&mut self) -> Pending<'_, ()> {
        Box::pin(self.do_arm())
    }

    fn cut<'a>(&'a mut self, in_pause: InPause<'a>) -> Pending<'a, CutTimes> {
        Box::pin(self.do_cut(in_pause))
    }

    fn save(&mut self) -> Pending<'_, Saved> {
        Box::pin(self.do_save())
    }

    fn discard_cut(&mut self) -> Pending<'_, ()> {
        Box::pin(self.do_discard())
    }

    fn fence(&mut self) -> Pending<'_, ()> {
        Box::pin(self.do_fence())
    }

    fn is_fenced(&self) -> bool {
        self.instance.fenced
    }

    fn lift_fence(&mut self) -> Pending<'_, ()> {
        Box::pin(self.do_lift_fence())
    }

    fn resume(&mut self) -> Pending<'_, ()> {
        Box::pin(self.do_resume())
    }

    fn pause(&mut self) -> Pending<'_, ()> {
        Box::pin(self.do_pause())
    }

    fn awaits_resume(&self) -> bool {
        self.instance.awaits_resume
    }

    fn press_power(&mut self) -> Pending<'_, ()> {
        Box::pin(self.do_press_power())
    }
}

/// The result of a thread that saves RAM into `folder`.
async fn ended(saving: &mut Saving, folder: &Path) -> Result<(), HypervisorError> {
    let gone = |error| HypervisorError::file("save RAM to", folder)(std::io::Error::other(error));
    saving.await.map_err(gone)?
}

/// Flushes a file or folder, on a thread of its own.
async fn sync(path: &Path) -> Result<(), HypervisorError> {
    let owned = path.to_owned();
    let result =
        tokio::task::spawn_blocking(move || files::sync(&owned)).await.map_err(std::io::Error::other);
    result.and_then(|synced| synced).map_err(HypervisorError::file("flush", path))
}

/// Times of the steps of a pause.
struct Watch {
    last: Instant,
    parts: Vec<(&'static str, u64)>,
}

impl Watch {
    fn start() -> Self {
        Self { last: Instant::now(), parts: Vec::new() }
    }

    fn lap(&mut self, step: &'static str) {
        self.lap_at(step, Instant::now());
    }

    fn lap_at(&mut self, step: &'static str, now: Instant) {
        let took = u64::try_from((now - self.last).as_nanos()).unwrap_or(u64::MAX);
        self.parts.push((step, took));
        self.last = now;
    }
}

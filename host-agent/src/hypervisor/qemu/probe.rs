//! What this host's QEMU can do, found out by letting it do it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::process::{Child, Command};

use super::super::HypervisorError;
use super::command::{BINARY, Begin, machine};
use super::qmp::Qmp;
use super::{QemuConfig, ram};
use crate::store::files::write_durably;
use crate::store::manifest::{Accel, Facts, RamWay};

/// RAM of the probe's VM, MiB.
const PROBE_MEMORY_MB: u64 = 32;
/// How long the probe's QEMU may take to open its monitor.
const SPAWN_PATIENCE: Duration = Duration::from_secs(20);
/// How long the boot sector may take; it needs 0.2 s under emulation.
const BOOT_PATIENCE: Duration = Duration::from_secs(5);
/// What the boot sector writes to QEMU's exit device, and what QEMU makes an exit code of.
const BOOT_VALUE: u8 = 0x2a;
const BOOT_EXIT_CODE: i32 = ((BOOT_VALUE as i32) << 1) | 1;

/// The cached answer to "does KVM boot a guest here?".
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct CachedAccel {
    qemu: String,
    kernel: String,
    accel: Accel,
}

/// Probes; about half a second, plus up to [`BOOT_PATIENCE`] the first time on a host with `/dev/kvm`.
pub(super) async fn probe(config: &QemuConfig) -> Result<Facts, HypervisorError> {
    let mut facts = Facts {
        kind: "qemu".to_owned(),
        version: String::new(),
        machine: "pc".to_owned(),
        accel: Accel::Tcg,
        ram_way: RamWay::StopAndSave,
    };
    remove_clutter(&config.state_dir);
    let probe = Probe::spawn(&config.state_dir, &facts).await?;
    facts.version = probe.version().await?;
    facts.machine = probe.machine_type().await?;
    facts.ram_way = match config.ram_way {
        Some(forced) => ram::probe(&probe.qmp, forced).await.map(|()| forced)?,
        None => probe.best_ram_way().await,
    };
    drop(probe);
    facts.accel = match config.accel {
        Some(Accel::VirtualBox) => {
            let what = "qemu.accel is \"virtualbox\": use \"auto\", \"kvm\" or \"tcg\"".to_owned();
            return Err(HypervisorError::Unsupported { what });
        }
        Some(forced) => forced,
        None => cached_accel(&config.state_dir, &facts.version).await?,
    };
    Ok(facts)
}

/// A QEMU without a guest, killed when this is dropped.
struct Probe {
    _child: Child,
    qmp: Qmp,
    folder: PathBuf,
}

impl Probe {
    async fn spawn(state_dir: &Path, facts: &Facts) -> Result<Self, HypervisorError> {
        let folder = state_dir.join(format!("probe-{}", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(HypervisorError::file("create", &folder))?;
        let (socket, log) = (folder.join("qmp.sock"), folder.join("log"));
        let output = std::fs::File::create(&log).map_err(HypervisorError::file("create", &log))?;
        let mut command = Command::new(BINARY);
        command.args(machine(facts, PROBE_MEMORY_MB, Begin::Boot)).arg("-S").arg("-qmp");
        command.arg(format!("unix:{},server=on,wait=off", socket.display()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        dies_with_agent(&mut command);
        let mut child = command.spawn().map_err(|error| {
            let reason = format!("{error}: install QEMU (Debian: qemu-system-x86 and qemu-utils)");
            HypervisorError::Tool { command: BINARY.to_owned(), reason }
        })?;
        let deadline = Instant::now() + SPAWN_PATIENCE;
        let qmp = loop {
            let ended = child.try_wait().map_err(HypervisorError::file("wait for", Path::new(BINARY)))?;
            match Qmp::connect("(probe)", &socket, &log).await {
                Ok(qmp) => break qmp,
                Err(_) if ended.is_none() && Instant::now() < deadline => {}
                Err(error) => {
                    let words = std::fs::read_to_string(&log).unwrap_or_default();
                    let reason = if words.is_empty() { error.to_string() } else { words };
                    return Err(HypervisorError::Tool { command: BINARY.to_owned(), reason });
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        Ok(Self { _child: child, qmp, folder })
    }

    async fn version(&self) -> Result<String, HypervisorError> {
        let answer = self.qmp.execute("query-version", json!({})).await?;
        let number = |part: &str| answer["qemu"][part].as_u64().unwrap_or(0);
        let package = answer["package"].as_str().unwrap_or_default().trim().to_owned();
        let version = format!("{}.{}.{} {package}", number("major"), number("minor"), number("micro"));
        Ok(version.trim().to_owned())
    }

    /// The versioned machine type for which `pc` stands in this QEMU.
    async fn machine_type(&self) -> Result<String, HypervisorError> {
        let machines = self.qmp.execute("query-machines", json!({})).await?;
        let pc = machines.as_array().into_iter().flatten().find(|machine| machine["alias"] == "pc");
        Ok(pc.and_then(|machine| machine["name"].as_str()).unwrap_or("pc").to_owned())
    }

    async fn best_ram_way(&self) -> RamWay {
        match ram::probe(&self.qmp, RamWay::Live).await {
            Ok(()) => RamWay::Live,
            Err(error) => {
                tracing::warn!(%error, "this QEMU is older than 8.2: VMs stand still while they are saved");
                RamWay::StopAndSave
            }
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // Its process is killed by `kill_on_drop`.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Nobody adopts a probe: it is killed when it is dropped, and when the agent is killed.
fn dies_with_agent(command: &mut Command) {
    command.kill_on_drop(true);
    let agent = getpid();
    let die_with_it = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        // The agent may have died before this was heard.
        if getppid() == agent { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: between fork and exec only prctl and getppid are called, both async-signal-safe, and nothing is allocated.
    unsafe { command.pre_exec(die_with_it) };
}

/// What probes of agents that were killed have left.
fn remove_clutter(state_dir: &Path) {
    for entry in std::fs::read_dir(state_dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("probe-") {
            let path = entry.path();
            let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        }
    }
}

async fn cached_accel(state_dir: &Path, qemu: &str) -> Result<Accel, HypervisorError> {
    let path = state_dir.join("accel.json");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let cached: Option<CachedAccel> =
        std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
    if let Some(cached) = cached.filter(|cached| cached.qemu == qemu && cached.kernel == kernel) {
        return Ok(cached.accel);
    }
    let accel = if kvm_boots(state_dir).await? { Accel::Kvm } else { Accel::Tcg };
    let cached = CachedAccel { qemu: qemu.to_owned(), kernel, accel };
    let text = serde_json::to_vec(&cached).map_err(std::io::Error::from);
    text.and_then(|text| write_durably(&path, &text)).map_err(HypervisorError::file("write", &path))?;
    Ok(accel)
}

/// Boots a boot sector through the firmware under KVM. The device node proves nothing: some hosts have one
/// that runs only kernels made for it.
async fn kvm_boots(state_dir: &Path) -> Result<bool, HypervisorError> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(false);
    }
    let image = state_dir.join(format!("probe-{}.img", std::process::id()));
    std::fs::write(&image, boot_image()).map_err(HypervisorError::file("write", &image))?;
    let text = "-nodefaults -no-user-config -display none -no-reboot -machine pc,accel=kvm -cpu host -m 32M \
                -device isa-debug-exit,iobase=0xf4,iosize=1 -device floppy,drive=boot -boot a";
    let mut command = Command::new(BINARY);
    command.args(text.split_whitespace()).arg("-blockdev");
    let path = image.to_string_lossy();
    let file = json!({"driver": "file", "filename": path, "read-only": true});
    command.arg(json!({"driver": "raw", "node-name": "boot", "read-only": true, "file": file}).to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    dies_with_agent(&mut command);
    let ended = tokio::time::timeout(BOOT_PATIENCE, command.status()).await;
    std::fs::remove_file(&image).map_err(HypervisorError::file("delete", &image))?;
    Ok(matches!(ended, Ok(Ok(status)) if status.code() == Some(BOOT_EXIT_CODE)))
}

/// A floppy whose boot sector does `cli; xor ax,ax; mov ds,ax; mov al,BOOT_VALUE; out 0xf4,al; hlt; jmp $-1`.
fn boot_image() -> Vec<u8> {
    let code = [0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0xb0, BOOT_VALUE, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd];
    let mut image = vec![0; 1_474_560];
    image[..code.len()].copy_from_slice(&code);
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    image
}

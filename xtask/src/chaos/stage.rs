//! The cluster on which rows are played: arming, striking, mending.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Output;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::table::{Blow, Victim};
use super::traffic::Watch;
use crate::lab::bank::Members;
use crate::lab::cluster::Cluster;
use crate::lab::console::Console;
use crate::lab::disk::SmallDisk;
use crate::lab::namespaces::Lab;
use crate::lab::record::{Listed, Restored, Taken};
use crate::lab::shell;
use crate::lab::waiting::{Talk, wait_for_hosts};
use crate::process::{output, run};

/// Longest time for any command of the operator.
const COMMAND: Duration = Duration::from_secs(150);
const QUICK: Duration = Duration::from_secs(30);

/// A cluster with everything that is needed to hurt it.
pub struct Stage<'a> {
    /// What is told meanwhile.
    pub talk: Talk,
    /// Where it is.
    pub lab: &'a Lab,
    /// Its daemons.
    pub cluster: Cluster<'a>,
    /// What its guests print.
    pub consoles: Vec<Console>,
    /// What flows between them.
    pub watch: Watch,
    /// Their workload.
    pub members: Members<'a>,
    /// Where `h2` keeps its snapshots.
    pub disk: SmallDisk,
}

/// A command of the operator that goes on beside everything else.
pub struct Asking(JoinHandle<Result<Output>>);

impl Asking {
    /// Has it ended?
    pub fn has_ended(&self) -> bool {
        self.0.is_finished()
    }

    /// What it said, once it has ended: `Ok` when it was done, its words otherwise.
    ///
    /// # Errors
    /// It did not end in time.
    pub fn end(self) -> Result<std::result::Result<(), String>> {
        let output = self.0.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Ok(if output.status.success() { Ok(()) } else { Err(words) })
    }
}

impl Stage<'_> {
    /// Arms a fault point.
    ///
    /// # Errors
    /// The file cannot be written, or the VM does not take it.
    pub fn arm(&self, victim: Victim, trigger: &str) -> Result<()> {
        match daemon(victim) {
            Some(daemon) => {
                let path = self.cluster.fault_file(daemon);
                std::fs::write(&path, trigger).with_context(|| format!("writing {}", path.display()))
            }
            None => self.in_guest(victim, &format!("echo '{trigger}' >/run/fault-point")),
        }
    }

    /// Takes it back.
    ///
    /// # Errors
    /// As of [`arm`](Self::arm).
    pub fn disarm(&self, victim: Victim) -> Result<()> {
        let Some(daemon) = daemon(victim) else {
            return self.in_guest(victim, "rm -f /run/fault-point");
        };
        match std::fs::remove_file(self.cluster.fault_file(daemon)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("disarming"),
            _ => Ok(()),
        }
    }

    fn in_guest(&self, victim: Victim, command: &str) -> Result<()> {
        let Victim::Guest(vm) = victim else { bail!("{victim:?} is no guest") };
        shell::run(self.lab, vm, command)
    }

    fn words(&self, victim: Victim) -> PathBuf {
        match (daemon(victim), victim) {
            (Some(daemon), _) => self.cluster.log(daemon),
            (None, Victim::Guest(vm)) => self.consoles[vm as usize - 1].path.clone(),
            (None, _) => PathBuf::new(),
        }
    }

    /// How much a victim has said so far.
    pub fn mark(&self, victim: Victim) -> u64 {
        std::fs::metadata(self.words(victim)).map_or(0, |data| data.len())
    }

    /// Has it reached the point since?
    pub fn has_reached(&self, victim: Victim, mark: u64, point: &str) -> bool {
        let bytes = std::fs::read(self.words(victim)).unwrap_or_default();
        let from = usize::try_from(mark).unwrap_or(usize::MAX).min(bytes.len());
        String::from_utf8_lossy(&bytes[from..]).contains(&format!("fault point {point} reached"))
    }

    /// Begins a command of the operator.
    pub fn begin(&self, arguments: &[&str]) -> Asking {
        let mut command = self.cluster.operator(arguments);
        let name = format!("unasnap {}", arguments.join(" "));
        Asking(std::thread::spawn(move || output(&name, &mut command, COMMAND)))
    }

    /// Usable snapshots, the oldest first.
    ///
    /// # Errors
    /// The coordinator does not answer.
    pub fn snapshots(&self) -> Result<Vec<String>> {
        let listed: Listed = self.cluster.ask(&["snapshot", "list"])?;
        Ok(listed.snapshots.into_iter().map(|entry| entry.id).collect())
    }

    /// Takes a snapshot.
    ///
    /// # Errors
    /// What the coordinator says.
    pub fn take(&self) -> Result<String> {
        Ok(self.cluster.ask::<Taken>(&["snapshot", "take"])?.snapshot.id)
    }

    /// Restores the newest snapshot.
    ///
    /// # Errors
    /// What the coordinator says.
    pub fn restore_newest(&self) -> Result<()> {
        let newest = self.snapshots()?.pop().context("there is no snapshot to restore")?;
        self.cluster.ask::<Restored>(&["restore", &newest]).map(drop)
    }

    /// Strikes from outside; what a program does to itself is no blow here.
    ///
    /// # Errors
    /// It could not be done.
    pub fn strike(&mut self, blow: Blow) -> Result<()> {
        match blow {
            Blow::Kill | Blow::Error | Blow::Late(_) => Ok(()),
            Blow::KillQemu(vm) => self.signal(vm, Signal::SIGKILL),
            Blow::HangQemu(vm) => self.signal(vm, Signal::SIGSTOP),
            Blow::KillGuestAgent(vm) => shell::run(self.lab, vm, "kill -9 $(pidof unasnap-guest)"),
            Blow::Unplug(machine) => self.lab.set_cable(machine, false),
            Blow::FillDisk(left) => self.disk.fill(left),
            Blow::Reboot(host) => self.cut_power(host),
        }
    }

    fn signal(&self, vm: u32, signal: Signal) -> Result<()> {
        let path = self.vm_folder(vm).join("qemu.pid");
        let pid = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let pid = pid.trim().parse().context("a process id")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to the QEMU of vm{vm}"))
    }

    /// Folder of a VM's instance.
    pub fn vm_folder(&self, vm: u32) -> PathBuf {
        self.cluster.state().join(format!("h{}/vms/vm{vm}", host_of(vm)))
    }

    /// What a host loses with its power: processes, devices, programs in the kernel; and half of a fault file.
    fn cut_power(&self, host: usize) -> Result<()> {
        let namespace = &self.lab.hosts[host - 1];
        namespace.kill_everything()?;
        let mut list = namespace.command("ip".as_ref());
        let listed = output("ip link", list.args(["-o", "link"]), QUICK)?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let names = listed.lines().filter_map(|line| line.split(": ").nth(1));
        for tap in names.filter(|name| name.starts_with("us")) {
            namespace.ip(&format!("link delete {}", tap.trim()))?;
        }
        let mut detach = namespace.command(&self.cluster.program("unasnap-host"));
        detach.args(["detach", "--config"]).arg(self.cluster.state().join(format!("h{host}.toml")));
        run("unasnap-host detach", &mut detach, QUICK)
    }

    /// Everything that the blow took away comes back, as an operator would see to it; daemons that have ended are
    /// started again.
    ///
    /// # Errors
    /// It could not be done, or a host does not find its coordinator again.
    pub fn mend(&mut self, blow: Blow) -> Result<()> {
        match blow {
            Blow::HangQemu(vm) => self.signal(vm, Signal::SIGCONT)?,
            Blow::Unplug(machine) => self.lab.set_cable(machine, true)?,
            _ => {}
        }
        self.disk.free()?;
        self.raise_the_dead()?;
        wait_for_hosts(&mut self.cluster)
    }

    /// Starts daemons that have ended.
    ///
    /// # Errors
    /// One cannot be started.
    pub fn raise_the_dead(&mut self) -> Result<()> {
        for daemon in 0..=self.lab.hosts.len() {
            if self.cluster.daemon(daemon).ended()?.is_some() {
                self.cluster.restart_one(daemon)?;
            }
        }
        Ok(())
    }

    /// Starts the victim anew.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn restart(&mut self, victim: Victim) -> Result<()> {
        match daemon(victim) {
            Some(daemon) => self.cluster.restart_one(daemon),
            None => self.in_guest(victim, "kill -9 $(pidof unasnap-guest)"),
        }
    }

    /// A local snapshot that an agent which died has left half written.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn leave_half_a_snapshot(&self) -> Result<()> {
        let folder = self.cluster.state().join("h1/snapshots/left/vm1.partial");
        std::fs::create_dir_all(&folder).context("making half a snapshot")?;
        let file = folder.join("ram");
        std::fs::write(&file, [1; 5000]).context("making half a snapshot")?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o400)).context("its mode")
    }

    /// Waits until all streams flow again.
    ///
    /// # Errors
    /// One does not within `limit`.
    pub fn wait_for_traffic(&self, silent: &[u32], since: Instant, limit: Duration) -> Result<()> {
        let start = Instant::now();
        while let Some(missing) = self.watch.missing(silent, since) {
            if start.elapsed() > limit {
                bail!("I4: no {missing} for {} s", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// As the cluster counts daemons; guests have none.
fn daemon(victim: Victim) -> Option<usize> {
    match victim {
        Victim::Coordinator => Some(0),
        Victim::Host(host) => Some(host),
        Victim::Guest(_) => None,
    }
}

/// VMs are dealt out in turn.
pub fn host_of(vm: u32) -> usize {
    if vm.is_multiple_of(2) { 2 } else { 1 }
}

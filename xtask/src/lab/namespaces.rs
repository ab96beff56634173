//! Network namespaces in place of machines: one per host, one for the coordinator, one for the LAN between them.
//!
//! ```text
//!   unasnap-lab-PID-h1                 ...-lan                  ...-coordinator
//!   br0 (10.77.0.11) -- up0 ===veth=== port1  br0  port0 ===veth=== up0 (10.77.0.1)
//!    |  taps of VMs (10.77.1.N)
//! ```
//! Whatever runs in a namespace of the lab belongs to it: that is how everything is found and killed at the end,
//! QEMUs that have outlived their parents included.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::interrupt::{self, OnInterrupt};
use crate::process::{Group, output, run, text};

/// Start of every namespace's name; the process id follows.
const PREFIX: &str = "unasnap-lab-";

const QUICK: Duration = Duration::from_secs(30);

/// How long killed processes may take to be gone.
const DEATH: Duration = Duration::from_secs(20);

/// A namespace, as its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace(String);

/// The lab; everything in it ends with it.
#[derive(Debug)]
pub struct Lab {
    lan: Namespace,
    /// Where the coordinator runs.
    pub coordinator: Namespace,
    /// Where the host agents run.
    pub hosts: Vec<Namespace>,
    all: Arc<Vec<Namespace>>,
    _on_interrupt: OnInterrupt,
}

impl Lab {
    /// Address of the coordinator.
    pub const COORDINATOR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

    /// Address at the LAN's bridge, among the guests; no member.
    pub const WATCH: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 253);

    /// The coordinator's machine among the guests, from where workloads are asked; no member.
    const AMONG_GUESTS: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 254);

    /// Makes the namespaces and connects them. Remains of commands that were killed are removed first.
    ///
    /// # Errors
    /// `ip` is not allowed to.
    pub fn new(hosts: u32) -> Result<Self> {
        remove_remains()?;
        let name = |role: &str| Namespace(format!("{PREFIX}{}-{role}", std::process::id()));
        let (lan, coordinator) = (name("lan"), name("coordinator"));
        let hosts: Vec<_> = (1..=hosts).map(|number| name(&format!("h{number}"))).collect();
        let mut all = vec![lan.clone(), coordinator.clone()];
        all.extend(hosts.iter().cloned());
        let all = Arc::new(all);
        let for_interrupt = Arc::clone(&all);
        let on_interrupt = interrupt::begin().register(move || remove(&for_interrupt));
        // From here on the drop removes whatever has been made.
        let lab = Self { lan, coordinator, hosts, all, _on_interrupt: on_interrupt };
        for namespace in lab.all.iter() {
            ip(&format!("netns add {}", namespace.0))?;
            namespace.ip("link set lo up")?;
        }
        add_bridge(&lab.lan)?;
        lab.lan.ip(&format!("addr add {}/24 dev br0", Self::WATCH))?;
        lab.coordinator.plug(&lab.lan, 0)?;
        lab.coordinator.ip(&format!("addr add {}/24 dev up0", Self::COORDINATOR))?;
        lab.coordinator.ip(&format!("addr add {}/24 dev up0", Self::AMONG_GUESTS))?;
        for (number, host) in (1..).zip(&lab.hosts) {
            add_bridge(host)?;
            host.plug(&lab.lan, number)?;
            host.ip("link set up0 master br0")?;
            host.ip(&format!("addr add 10.77.0.{}/24 dev br0", 10 + number))?;
        }
        Ok(lab)
    }

    /// Lets the network between the hosts clear the DSCP of every packet, or no longer.
    ///
    /// # Errors
    /// `nft` is not allowed to.
    pub fn bleach(&self, on: bool) -> Result<()> {
        let rule = "add chain bridge bleach forward { type filter hook forward priority 0; }; \
                    add rule bridge bleach forward ip dscp set cs0; \
                    add rule bridge bleach forward ip6 dscp set cs0";
        // Added before it is removed, so that it need not be there.
        let table = "add table bridge bleach; delete table bridge bleach";
        let script = if on { format!("{table}; add table bridge bleach; {rule}") } else { table.to_owned() };
        run("nft", self.lan.command(Path::new("nft")).arg(script), QUICK)
    }

    /// Where the hosts' packets pass and can be watched: no machine, so that no cut link is in the way. Guests know it as
    /// [`WATCH`](Self::WATCH).
    pub fn lan(&self) -> &Namespace {
        &self.lan
    }

    /// Plugs a machine's cable out or in again: 0 is the coordinator's, others are the hosts'.
    ///
    /// # Errors
    /// `ip` is not allowed to.
    pub fn set_cable(&self, machine: usize, plugged: bool) -> Result<()> {
        self.lan.ip(&format!("link set port{machine} {}", if plugged { "up" } else { "down" }))
    }

    /// Kills everything in the lab with SIGKILL and returns how many processes that were.
    ///
    /// # Errors
    /// Something is still there after 20 s.
    pub fn kill_everything(&self) -> Result<usize> {
        kill_everything(&self.all)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        remove(&self.all);
    }
}

impl Namespace {
    /// A command that will run in here.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.0)).arg("--").arg(program);
        command
    }

    /// Starts a daemon in here, its words appended to `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, name: &str, command: &mut Command, log: &Path) -> Result<Group> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("opening {}", log.display()))?;
        let copy = file.try_clone().context("log file")?;
        Group::spawn(name, command.stdout(Stdio::from(copy)).stderr(Stdio::from(file)))
    }

    /// Processes in here.
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        processes(std::slice::from_ref(self))
    }

    /// As a power cut: everything in here ends at once.
    ///
    /// # Errors
    /// Something is still there after 20 s.
    pub fn kill_everything(&self) -> Result<usize> {
        kill_everything(std::slice::from_ref(self))
    }

    /// Does something on a thread in here; its sockets stay in here.
    ///
    /// # Errors
    /// The namespace cannot be entered, or what `act` says.
    pub fn enter<T: Send + 'static>(&self, act: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let path = Path::new("/run/netns").join(&self.0);
        let thread = std::thread::spawn(move || {
            let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
            setns(file, CloneFlags::CLONE_NEWNET).context("entering a namespace")?;
            act()
        });
        thread.join().unwrap_or_else(|_| bail!("a thread in a namespace panicked"))
    }

    /// `ip` in here.
    ///
    /// # Errors
    /// It fails.
    pub fn ip(&self, arguments: &str) -> Result<()> {
        ip(&format!("-n {} {arguments}", self.0))
    }

    /// Connects `up0` in here with the LAN's bridge.
    fn plug(&self, lan: &Self, port: u32) -> Result<()> {
        lan.ip(&format!("link add port{port} type veth peer name up0 netns {}", self.0))?;
        lan.ip(&format!("link set port{port} master br0 up"))?;
        self.ip("link set up0 up")
    }
}

/// A bridge that forwards from the start and does not look into multicast, which neighbour discovery uses.
fn add_bridge(namespace: &Namespace) -> Result<()> {
    namespace.ip("link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
    namespace.ip("link set br0 up")
}

fn ip(arguments: &str) -> Result<()> {
    run(&format!("ip {arguments}"), Command::new("ip").args(arguments.split(' ')), QUICK)
}

fn processes(namespaces: &[Namespace]) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for namespace in namespaces {
        // A namespace that does not exist (yet, or any more) has no processes.
        let listed =
            output("ip netns pids", Command::new("ip").args(["netns", "pids", &namespace.0]), QUICK)?;
        let pids = String::from_utf8_lossy(&listed.stdout).into_owned();
        found.extend(pids.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw));
    }
    Ok(found)
}

fn kill_everything(namespaces: &[Namespace]) -> Result<usize> {
    let start = Instant::now();
    let mut killed = Vec::new();
    loop {
        let living = processes(namespaces)?;
        if living.is_empty() {
            return Ok(killed.len());
        }
        if start.elapsed() > DEATH {
            bail!("processes {living:?} are still there {} s after SIGKILL", DEATH.as_secs());
        }
        for pid in living {
            // It may have ended by itself since it was listed.
            let _ = kill(pid, Signal::SIGKILL);
            if !killed.contains(&pid) {
                killed.push(pid);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Kills what runs in the namespaces and removes them; says what it could not do, as nobody can be told otherwise.
fn remove(namespaces: &[Namespace]) {
    if let Err(error) = kill_everything(namespaces) {
        eprintln!("warning: {error:#}");
    }
    for namespace in namespaces {
        if Path::new("/run/netns").join(&namespace.0).exists()
            && let Err(error) = ip(&format!("netns delete {}", namespace.0))
        {
            eprintln!("warning: {error:#}");
        }
    }
}

/// Removes namespaces of commands whose process is gone: those that were killed with SIGKILL.
fn remove_remains() -> Result<()> {
    let list = text("ip netns list", Command::new("ip").args(["netns", "list"]), QUICK)?;
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    let remains: Vec<_> = names.filter(|name| owner(name).is_some_and(is_gone)).collect();
    if !remains.is_empty() {
        eprintln!("lab: removing what a killed command left: {}", remains.join(", "));
        remove(&remains.into_iter().map(|name| Namespace(name.to_owned())).collect::<Vec<_>>());
    }
    Ok(())
}

/// The process id in a namespace's name.
fn owner(namespace: &str) -> Option<u32> {
    namespace.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn is_gone(pid: u32) -> bool {
    !Path::new("/proc").join(pid.to_string()).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_connects_its_hosts_and_leaves_nothing() {
        let lab = Lab::new(2).unwrap();
        let all = Arc::clone(&lab.all);
        let reach = |address: &str| {
            // A connection that is refused has arrived.
            let mut command = lab.hosts[0].command(Path::new("bash"));
            command.args(["-c", &format!("timeout 5 bash -c 'echo >/dev/tcp/{address}/9'")]);
            let output = output("bash", &mut command, QUICK).unwrap();
            String::from_utf8_lossy(&output.stderr).contains("Connection refused")
        };
        assert!(reach("10.77.0.1") && reach("10.77.0.12"));
        // In a session of its own, as QEMU is once it has daemonized.
        let mut sleeper = lab.hosts[1].command(Path::new("setsid"));
        run("setsid", sleeper.args(["--fork", "sleep", "600"]), QUICK).unwrap();
        assert_eq!(lab.kill_everything().unwrap(), 1);
        drop(lab);
        assert!(all.iter().all(|namespace| !Path::new("/run/netns").join(&namespace.0).exists()));
    }

    #[test]
    fn only_our_namespaces_have_an_owner() {
        assert_eq!(owner("unasnap-lab-123-h1"), Some(123));
        assert_eq!(owner("unasnap-lab-x-h1"), None);
        assert_eq!(owner("other-123"), None);
    }
}

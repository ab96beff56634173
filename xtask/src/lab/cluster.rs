//! The cluster as an operator would set it up: certificates, configuration files, daemons, the operator's command.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;

use super::console::{Console, address, encode};
use super::namespaces::Lab;
use crate::build::Artifacts;
use crate::process::{Group, run, text};

/// The only deployment.
pub const DEPLOYMENT: &str = "ring";

/// RAM of each VM, MiB.
pub const MEMORY_MB: u32 = 128;

const PORT: u16 = 7420;
const QUICK: Duration = Duration::from_secs(60);

/// Longest time for a command of the operator; the daemons have shorter limits of their own.
const COMMAND: Duration = Duration::from_secs(150);

/// The VMs of a cluster and what runs in them.
#[derive(Debug, Clone)]
pub struct Scene {
    /// Shell command of each VM, the first VM's first.
    pub commands: Vec<String>,
    /// How packets are coloured.
    pub colouring: Colouring,
    /// A VM whose cuts begin late on purpose, and by how many milliseconds.
    pub late: Option<(u32, u32)>,
    /// Can fault points be armed?
    pub faults: bool,
}

/// How the VMs' packets are coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Colouring {
    /// One VM by its host, the next by its memory, the next by its guest agent, and so on
    Mixed,
    /// What each host finds to be the best
    Auto,
    /// By programs on the VMs' taps
    Host,
    /// By programs in the guests, flipped in their RAM
    Memory,
    /// By programs in the guests, flipped by their agents
    Guest,
    /// Not at all: for control experiments
    #[value(skip)]
    None,
}

impl Colouring {
    /// What VM number `vm`, counted from 1, has in its definition.
    #[must_use]
    pub fn of(self, vm: u32) -> &'static str {
        match self {
            Self::Mixed => ["host", "memory", "guest"][(vm as usize - 1) % 3],
            Self::Auto => "auto",
            Self::Host => "host",
            Self::Memory => "memory",
            Self::Guest => "guest",
            Self::None => "none",
        }
    }
}

impl Scene {
    /// How many VMs there are.
    #[must_use]
    pub fn vms(&self) -> u32 {
        u32::try_from(self.commands.len()).unwrap_or(u32::MAX)
    }
}

/// Folders, files and running daemons.
#[derive(Debug)]
pub struct Cluster<'a> {
    lab: &'a Lab,
    artifacts: &'a Artifacts,
    scene: &'a Scene,
    state: PathBuf,
    logs: PathBuf,
    daemons: Vec<Group>,
    switches: Vec<(String, String)>,
}

impl<'a> Cluster<'a> {
    /// Writes all files of a new cluster into `folder/state`; logs will be in `folder/logs`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn create(lab: &'a Lab, artifacts: &'a Artifacts, folder: &Path, scene: &'a Scene) -> Result<Self> {
        let (state, logs) = (folder.join("state"), folder.join("logs"));
        for directory in [&state, &logs] {
            if directory.exists() {
                std::fs::remove_dir_all(directory)
                    .with_context(|| format!("emptying {}", directory.display()))?;
            }
            std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        }
        let cluster = Self { lab, artifacts, scene, state, logs, daemons: Vec::new(), switches: Vec::new() };
        cluster.make_certificates()?;
        cluster.write_configuration()?;
        cluster.write_vms()?;
        Ok(cluster)
    }

    /// What runs in here.
    pub fn scene(&self) -> &'a Scene {
        self.scene
    }

    /// The hosts' folders and files: `NAME-vms`, `NAME`, `NAME.toml`.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Where logs are.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Path of a program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.artifacts.programs.join(name)
    }

    /// Names of all hosts.
    pub fn host_names(&self) -> impl Iterator<Item = String> + use<> {
        (1..=self.lab.hosts.len()).map(|number| format!("h{number}"))
    }

    fn make_certificates(&self) -> Result<()> {
        let mut command = Command::new(self.program("unasnap"));
        command.args(["pki", "init", "--dir"]).arg(self.state.join("pki"));
        for host in self.host_names() {
            command.args(["--host", &host]);
        }
        text("unasnap pki init", &mut command, QUICK).map(|_| ())
    }

    fn write_configuration(&self) -> Result<()> {
        let address = format!("{}:{PORT}", Lab::COORDINATOR);
        let coordinator =
            format!("listen = \"{address}\"\nstate_dir = \"coordinator\"\n{}", tls("coordinator"));
        self.write("coordinator.toml", &coordinator)?;
        self.write("client.toml", &format!("coordinator = \"{address}\"\n{}", tls("operator")))?;
        for host in self.host_names() {
            let keys = tls(&format!("host-{host}"));
            // Disks are to fill up to the last byte.
            let reserve = if self.scene.faults { "reserve_mb = 0\n" } else { "" };
            let text = format!(
                "name = \"{host}\"\ncoordinator = \"{address}\"\nstate_dir = \"{host}\"\nvm_dir = \"{host}-vms\"\n{reserve}{keys}\n[transfer]\nlisten = \"0.0.0.0:7421\"\n\n[user]\nfile = \"{host}-user\"\n"
            );
            self.write(&format!("{host}.toml"), &text)?;
            let folder = self.state.join(format!("{host}-vms"));
            std::fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        }
        Ok(())
    }

    fn write_vms(&self) -> Result<()> {
        // Never written by VMs, so that all can have the same one.
        let disk = self.state.join("disk.qcow2");
        let mut make = Command::new("qemu-img");
        run("qemu-img", make.args(["create", "-q", "-f", "qcow2"]).arg(&disk).arg("64M"), QUICK)?;
        for (vm, host) in self.places() {
            self.write(&format!("{host}-vms/{}.toml", name(vm)), &self.definition(vm))?;
        }
        Ok(())
    }

    /// VMs are dealt out to the hosts in turn.
    fn places(&self) -> impl Iterator<Item = (u32, String)> {
        (1..=self.scene.vms()).zip(self.host_names().collect::<Vec<_>>().into_iter().cycle())
    }

    fn definition(&self, vm: u32) -> String {
        let run = encode(&self.scene.commands[vm as usize - 1]);
        let address = address(vm);
        // An emulated guest on a busy machine may miss the ticks by which the kernel checks its timer, and panics then.
        let append = format!(
            "console=ttyS0 quiet panic=1 no_timer_check unasnap.name={} unasnap.ip={address}/24 unasnap.run={run}",
            name(vm)
        );
        let agent = "unasnap.agent=UNASNAP_TEST_FAULT_POINT=@/run/fault-point unasnap.allow=exec";
        let (append, access) = if self.scene.faults {
            (format!("{append} {agent}"), "guest_access = [\"exec\"]\n")
        } else {
            (append, "")
        };
        let colouring = self.scene.colouring.of(vm);
        let (kernel, initrd) = (self.artifacts.kernel.display(), self.artifacts.initramfs.display());
        format!(
            "name = \"{}\"\ndeployment = \"{DEPLOYMENT}\"\nmemory_mb = {MEMORY_MB}\ncpus = 1\ncolouring = \"{colouring}\"\n{access}\
             kernel = \"{kernel}\"\ninitrd = \"{initrd}\"\nappend = \"{append}\"\n\n[[disk]]\nimage = \"../disk.qcow2\"\n\n\
             [[nic]]\nbridge = \"br0\"\nmac = \"52:54:00:77:00:{vm:02x}\"\naddresses = [\"{address}\"]\n",
            name(vm)
        )
    }

    /// Consoles of all VMs.
    pub fn consoles(&self) -> Vec<Console> {
        let path = |vm, host: &str| self.state.join(host).join("vms").join(name(vm)).join("console.log");
        self.places().map(|(vm, host)| Console::new(name(vm), &path(vm, &host))).collect()
    }

    /// Where the console of a VM is that lives on this host.
    pub fn console_at(&self, vm: &str, host: &str) -> Console {
        let path = self.state.join(host).join("vms").join(vm).join("console.log");
        Console::new(vm.to_owned(), &path)
    }

    /// Starts the coordinator and all host agents.
    ///
    /// # Errors
    /// A program cannot be started.
    pub fn start(&mut self) -> Result<()> {
        (0..=self.lab.hosts.len()).try_for_each(|daemon| {
            let group = self.start_one(daemon)?;
            self.daemons.push(group);
            Ok(())
        })
    }

    /// Kills one daemon, if it still runs, and starts it anew; 0 is the coordinator, others are the hosts' agents.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn restart_one(&mut self, daemon: usize) -> Result<()> {
        drop(self.daemons.remove(daemon));
        let group = self.start_one(daemon)?;
        self.daemons.insert(daemon, group);
        Ok(())
    }

    /// One daemon, counted as by [`restart_one`](Self::restart_one).
    pub fn daemon(&mut self, daemon: usize) -> &mut Group {
        &mut self.daemons[daemon]
    }

    fn start_one(&self, daemon: usize) -> Result<Group> {
        let (who, namespace) = match daemon {
            0 => ("coordinator".to_owned(), &self.lab.coordinator),
            host => (format!("h{host}"), &self.lab.hosts[host - 1]),
        };
        let program = self.program(if daemon == 0 { "unasnap" } else { "unasnap-host" });
        let mut command = namespace.command(&program);
        command.arg(if daemon == 0 { "coordinator" } else { "run" });
        command.arg("--config").arg(self.state.join(format!("{who}.toml")));
        command.envs(self.switches.iter().cloned());
        if self.scene.faults {
            command.env("UNASNAP_TEST_FAULT_POINT", format!("@{}", self.fault_file(daemon).display()));
        }
        if let Some((vm, milliseconds)) = self.scene.late.filter(|_| daemon > 0) {
            command.env("UNASNAP_TEST_TAKE_DELAY_MS", format!("{}={milliseconds}", name(vm)));
            // The other VMs would wait for this one, and colours would have nothing to do.
            command.env("UNASNAP_TEST_RESUME_ALONE", "1");
        }
        let title = if daemon == 0 { "the coordinator".to_owned() } else { format!("host agent {who}") };
        namespace.start(&title, &mut command, &self.log(daemon))
    }

    /// What a daemon writes, counted as by [`restart_one`](Self::restart_one).
    pub fn log(&self, daemon: usize) -> PathBuf {
        self.logs.join(if daemon == 0 { "coordinator.log".to_owned() } else { format!("h{daemon}.log") })
    }

    /// The file that arms a daemon's fault point.
    pub fn fault_file(&self, daemon: usize) -> PathBuf {
        self.state.join(format!("fault-{daemon}"))
    }

    /// Kills the daemons and starts them anew with these environment variables; the VMs go on.
    ///
    /// # Errors
    /// A program cannot be started.
    pub fn restart(&mut self, switches: &[(&str, &str)]) -> Result<()> {
        self.forget_daemons();
        self.switches = switches.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        self.start()
    }

    /// Forgets the daemons, after they were killed.
    pub fn forget_daemons(&mut self) {
        self.daemons.clear();
    }

    /// Process ids of the daemons.
    pub fn daemons(&mut self) -> Vec<u32> {
        self.daemons.iter_mut().map(|daemon| daemon.child().id()).collect()
    }

    /// Says which daemon has ended by itself.
    ///
    /// # Errors
    /// One has; its log says why.
    pub fn check_daemons(&mut self) -> Result<()> {
        for daemon in &mut self.daemons {
            let ended = daemon.ended()?;
            ensure!(
                ended.is_none(),
                "{} ended by itself ({ended:?}); see {}",
                daemon.name(),
                self.logs.display()
            );
        }
        Ok(())
    }

    /// Runs a command of the operator and reads its JSON.
    ///
    /// # Errors
    /// What the command says.
    pub fn ask<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let mut command = self.operator(arguments);
        let name = format!("unasnap {}", arguments.join(" "));
        let answer = text(&name, &mut command, COMMAND)?;
        serde_json::from_str(&answer)
            .with_context(|| format!("{name} printed something unexpected: {answer}"))
    }

    /// A command of the operator, to be run with a limit of one's own.
    pub fn operator(&self, arguments: &[&str]) -> Command {
        let mut command = self.lab.coordinator.command(&self.program("unasnap"));
        command.arg("--config").arg(self.state.join("client.toml")).arg("--json").args(arguments);
        command
    }

    /// The end of `what`: kills everything, keeps the guests' consoles beside the logs, and removes the rest (RAM, disks,
    /// keys), which stays for a look if it failed.
    ///
    /// # Errors
    /// It failed, or a file cannot be copied or removed.
    pub fn end<T>(&self, what: &str, consoles: &[Console], outcome: Result<T>) -> Result<T> {
        self.lab.kill_everything()?;
        self.forget_programs()?;
        self.keep_consoles(consoles)?;
        if outcome.is_ok() {
            std::fs::remove_dir_all(&self.state)
                .with_context(|| format!("removing {}", self.state.display()))?;
        }
        let (logs, state) = (self.logs.display(), self.state.display());
        outcome.with_context(|| format!("{what} failed; its logs are in {logs}, its state in {state}"))
    }

    /// What host agents have pinned outlives them and the taps.
    fn forget_programs(&self) -> Result<()> {
        for (host, namespace) in self.host_names().zip(&self.lab.hosts) {
            let mut agent = namespace.command(&self.program("unasnap-host"));
            agent.args(["detach", "--config"]).arg(self.state.join(format!("{host}.toml")));
            run("unasnap-host detach", &mut agent, QUICK)?;
        }
        Ok(())
    }

    fn keep_consoles(&self, consoles: &[Console]) -> Result<()> {
        for console in consoles.iter().filter(|console| console.path.exists()) {
            let copy = self.logs.join(format!("{}.console.log", console.vm));
            std::fs::copy(&console.path, &copy).with_context(|| format!("writing {}", copy.display()))?;
        }
        Ok(())
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.state.join(file);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }
}

fn name(vm: u32) -> String {
    format!("vm{vm}")
}

fn tls(who: &str) -> String {
    format!("\n[tls]\nca = \"pki/ca.pem\"\ncert = \"pki/{who}.pem\"\nkey = \"pki/{who}.key\"\n")
}

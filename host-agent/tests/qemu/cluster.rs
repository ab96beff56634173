//! A whole cluster of one host: the coordinator, the host agent and the operator's command, each the program that ships.

use std::cell::RefCell;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bench::{alone, from_environment, run, write_initrd};

const ADDRESS: &str = "127.0.0.1:7420";
/// Who runs the coordinator: nobody in particular.
const NOBODY: u32 = 65534;
/// An emulated guest takes some seconds to boot and to load the programs.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longest time for a command of the operator; those that wait for hosts have shorter limits of their own.
const COMMAND_LIMIT: Duration = Duration::from_secs(90);

/// Certificates, configurations and daemons, all at log level trace.
pub struct Cluster {
    folder: tempfile::TempDir,
    daemons: Vec<Child>,
    /// What the commands of the operator have said so far.
    said: RefCell<Vec<u8>>,
    _alone: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts the coordinator as nobody, and the host agent as root with these options of setpriv(1). It has one VM
    /// for each way of colouring, behind whose name may stand what operators may do in it.
    pub fn start(agent: &[String], colourings: &[&str]) -> Self {
        let alone = alone();
        run("ip", &["link", "set", "lo", "up"]);
        // A place for pins that ends with this test.
        run("mount", &["-t", "bpf", "bpf", "/sys/fs/bpf"]);
        let folder = tempfile::Builder::new().prefix("unasnap-").tempdir().unwrap();
        let mut cluster = Self { folder, daemons: Vec::new(), said: RefCell::default(), _alone: alone };
        cluster.configure(colourings);
        cluster.start_daemon("coordinator", &cluster.of_nobody());
        cluster.wait("the coordinator answers", |cluster| cluster.attempt(&["status"]).0 == 0);
        cluster.start_host(agent, colourings.len());
        cluster
    }

    fn start_host(&mut self, privileges: &[String], vms: usize) {
        self.start_daemon("host", privileges);
        self.wait("the host is connected", |cluster| {
            cluster.json(&["host", "list"])["hosts"][0]["connected"] == true
        });
        self.wait("all guests answer", |cluster| {
            let list = cluster.json(&["vm", "list"])["vms"].as_array().unwrap().clone();
            list.len() == vms && list.iter().all(|vm| vm["state"] == "running" && vm["guest_agent"] == true)
        });
    }

    /// Kills the host agent and starts another one, which finds the VMs running.
    pub fn restart_host(&mut self, privileges: &[String]) {
        let vms = self.processes().len() - self.daemons.len();
        self.kill_host();
        self.start_host(privileges, vms);
    }

    /// Starts the coordinator anew, with this before all else in its configuration.
    pub fn restart_coordinator(&mut self, with: &str) {
        let text = fs::read_to_string(self.path("coordinator.toml")).unwrap();
        self.write("coordinator.toml", &format!("{with}\n{text}"));
        let mut coordinator = self.daemons.remove(0);
        coordinator.kill().unwrap();
        coordinator.wait().unwrap();
        self.start_daemon("coordinator", &self.of_nobody());
        self.daemons.rotate_right(1);
        self.wait("all hosts are back", |cluster| {
            let (code, out) = cluster.attempt(&["host", "list", "--json"]);
            code == 0 && !out.contains("\"connected\":false")
        });
    }

    /// All that is lost with the first host: its processes, its VMs and its disk.
    pub fn lose_host(&mut self) {
        let qemus = self.processes().split_off(self.daemons.len());
        self.kill_host();
        for pid in qemus {
            run("kill", &["-9", &pid.to_string()]);
        }
        fs::remove_dir_all(self.path("h1")).unwrap();
    }

    fn of_nobody(&self) -> Vec<String> {
        let nobody = ["--reuid", &NOBODY.to_string(), "--regid", &NOBODY.to_string(), "--clear-groups"];
        [&nobody.map(str::to_owned)[..], &privileges("unasnap-coordinator.service")].concat()
    }

    /// Kills the host agent, if it has not ended by itself.
    pub fn kill_host(&mut self) {
        let mut agent = self.daemons.pop().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
        self.wait("its connection has ended", |cluster| {
            cluster.json(&["host", "list"])["hosts"][0]["connected"] == false
        });
    }

    /// Starts a host agent, whatever becomes of its VMs.
    pub fn boot_host(&mut self) {
        self.start_daemon("host", &[]);
        self.wait("the host is connected", |cluster| {
            cluster.json(&["host", "list"])["hosts"][0]["connected"] == true
        });
    }

    /// The agents reach this fault point next.
    pub fn strike_at(&self, point: &str) {
        self.write("fault-point", point);
    }

    fn configure(&self, colourings: &[&str]) {
        fs::set_permissions(self.path("."), Permissions::from_mode(0o755)).unwrap();
        // Where nobody may run it, wherever it was built.
        fs::copy(from_environment("UNASNAP_TEST_BIN").join("unasnap"), self.path("unasnap")).unwrap();
        assert_eq!(self.attempt(&["pki", "init", "--dir", "pki", "--host", "h1"]).0, 0, "{}", self.words());
        let tls = |stem: &str| {
            format!(
                "[tls]\nca = 'pki/ca.pem'\ncert = 'pki/{stem}.pem'\nkey = 'pki/{stem}.key'\ncrl = 'pki/crl.pem'\n"
            )
        };
        let kernels = from_environment("UNASNAP_TEST_KERNEL").parent().unwrap().display().to_string();
        let host = format!(
            "name = 'h1'\ncoordinator = '{ADDRESS}'\nstate_dir = 'h1'\nvm_dir = 'vms'\nimage_dirs = ['.', '{kernels}']\n"
        );
        self.write(
            "coordinator.toml",
            &format!("listen = '{ADDRESS}'\nstate_dir = 'state'\n{}", tls("coordinator")),
        );
        self.write("client.toml", &format!("coordinator = '{ADDRESS}'\n{}", tls("operator")));
        self.write("host.toml", &format!("{host}{}", tls("host-h1")));
        for made in ["state", "vms"] {
            fs::create_dir(self.path(made)).unwrap();
        }
        for its_own in ["pki", "pki/coordinator.key", "state"] {
            chown(self.path(its_own), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        write_initrd(&self.path("initrd"), include_bytes!("workload.sh"));
        run("qemu-img", &["create", "-q", "-f", "qcow2", &self.path("base.qcow2").to_string_lossy(), "64M"]);
        for (number, colouring) in (1..).zip(colourings) {
            let kernel = from_environment("UNASNAP_TEST_KERNEL");
            // Behind the way of colouring may stand what is allowed: to the agent in the guest, and by the definition.
            let mut words = colouring.split(' ');
            let (colouring, allowed) = (words.next().unwrap(), words.collect::<Vec<_>>());
            let allow = if allowed.contains(&"allow") { " allow" } else { "" };
            let access =
                if allowed.contains(&"guest_access") { "guest_access = ['exec', 'files']\n" } else { "" };
            let text = format!(
                "name = 'vm{number}'\ndeployment = 'test'\nmemory_mb = 128\ncolouring = '{colouring}'\nkernel = '{}'\n\
                 initrd = '../initrd'\nappend = 'console=ttyS0 rdinit=/workload quiet no_timer_check agent{allow}'\n{access}\
                 [[disk]]\nimage = '../base.qcow2'\n\
                 [[nic]]\nbridge = 'br0'\nmac = '52:54:00:00:00:0{number}'\naddresses = ['10.0.0.{number}']\n",
                kernel.display()
            );
            self.write(&format!("vms/vm{number}.toml"), &text);
        }
    }

    /// Another host agent, on this machine, which has no VMs. The two give files to each other.
    pub fn start_second_host(&mut self) {
        assert_eq!(self.attempt(&["pki", "add-host", "h2", "--dir", "pki"]).0, 0, "{}", self.words());
        let first = fs::read_to_string(self.path("host.toml")).unwrap();
        let second = first.replace("h1", "h2").replace("'vms'", "'vms2'");
        for (file, text, port) in [("host.toml", first, 7421), ("host2.toml", second, 7422)] {
            self.write(file, &format!("{text}[transfer]\nlisten = '127.0.0.1:{port}'\n"));
        }
        fs::create_dir(self.path("vms2")).unwrap();
        self.restart_host(&[]);
        // The first one's agent is the last of the list, for those that restart it.
        let first = self.daemons.pop().unwrap();
        self.start_daemon("host2", &[]);
        self.daemons.push(first);
        self.wait("the other host is connected", |cluster| {
            cluster.json(&["host", "list"])["hosts"][1]["connected"] == true
        });
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start_daemon(&mut self, name: &str, privileges: &[String]) {
        let (program, word) = match name {
            "host" | "host2" => (Path::new(env!("CARGO_BIN_EXE_unasnap-host")).to_owned(), "run"),
            other => (self.path("unasnap"), other),
        };
        let log = File::options().create(true).append(true).open(self.path(&format!("{name}.log"))).unwrap();
        let mut command = Command::new("setpriv");
        command.args(privileges).arg(program).args([word, "--config", &format!("{name}.toml")]);
        self.surround(&mut command).stdout(log.try_clone().unwrap()).stderr(log);
        self.daemons.push(command.spawn().unwrap());
    }

    fn surround<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.current_dir(self.folder.path()).stdin(Stdio::null()).env("RUST_LOG", "trace");
        command.env("UNASNAP_TEST_FAULT_POINT", format!("@{}", self.path("fault-point").display()));
        command.env("UNASNAP_CONFIG", "client.toml").env("SSLKEYLOGFILE", self.path("state/session-keys"))
    }

    /// Exit code and output of a command of the operator.
    pub fn attempt(&self, arguments: &[&str]) -> (i32, String) {
        let (out, err) = (self.path("stdout"), self.path("stderr"));
        let mut command = Command::new(self.path("unasnap"));
        self.surround(command.args(arguments));
        command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
        let (mut child, begun) = (command.spawn().unwrap(), Instant::now());
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if begun.elapsed() > COMMAND_LIMIT {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("`unasnap {}` did not end in {COMMAND_LIMIT:?}", arguments.join(" "));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let out = fs::read(out).unwrap();
        self.said.borrow_mut().extend([&out[..], &fs::read(err).unwrap()].concat());
        (status.code().unwrap(), String::from_utf8(out).unwrap())
    }

    /// Begins a command of the operator, whose output nobody reads but its errors.
    pub fn begin(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(self.path("unasnap"));
        let errors = File::options().create(true).append(true).open(self.path("begun.log")).unwrap();
        self.surround(command.args(arguments)).stdout(Stdio::null()).stderr(errors).spawn().unwrap()
    }

    /// What a command of the operator prints with `--json`; it must go well.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let (code, out) = self.attempt(&[arguments, &["--json"]].concat());
        assert_eq!(code, 0, "{arguments:?}: {}", self.words());
        serde_json::from_str(&out).unwrap()
    }

    pub fn wait(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} until {what}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// All that the programs have said so far.
    pub fn words(&self) -> String {
        let mut bytes = self.said.borrow().clone();
        for log in ["coordinator.log", "host.log", "host2.log", "begun.log"] {
            bytes.extend(fs::read(self.path(log)).unwrap_or_default());
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Process ids: coordinator, host agents, and a QEMU for each VM.
    pub fn processes(&self) -> Vec<u32> {
        let vms = ["h1/vms", "h2/vms"]
            .into_iter()
            .flat_map(|vms| fs::read_dir(self.path(vms)).into_iter().flatten());
        let files = vms.map(|entry| entry.unwrap().path().join("qemu.pid"));
        let pids = files.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
        self.daemons.iter().map(Child::id).chain(pids).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let qemus = self.processes().split_off(self.daemons.len());
        for daemon in &mut self.daemons {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
        for pid in qemus.into_iter().filter_map(|pid| i32::try_from(pid).ok()) {
            // One that has ended by itself needs no killing.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("host.log")).unwrap_or_default();
            let said = log.lines().filter(|line| !line.contains("TRACE"));
            eprintln!("--- host agent\n{}", said.collect::<Vec<_>>().join("\n"));
        }
    }
}

/// A line of a systemd unit, by its key.
fn setting(unit: &str, key: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/units").join(unit);
    let text = fs::read_to_string(path).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("{unit} does not say {key}")).to_owned()
}

/// Names of the capabilities that a unit allows, without `CAP_`, in small letters.
pub fn capabilities(unit: &str) -> Vec<String> {
    let names = setting(unit, "CapabilityBoundingSet");
    names.split_whitespace().map(|name| name.trim_start_matches("CAP_").to_lowercase()).collect()
}

/// The options of setpriv(1) that do what a unit says of privileges.
pub fn privileges(unit: &str) -> Vec<String> {
    assert_eq!(setting(unit, "NoNewPrivileges"), "yes");
    only(&capabilities(unit))
}

/// The options of setpriv(1) that leave these capabilities.
pub fn only(capabilities: &[String]) -> Vec<String> {
    let set = ["-all".to_owned()].into_iter().chain(capabilities.iter().map(|name| format!("+{name}")));
    vec!["--no-new-privs".to_owned(), format!("--bounding-set={}", set.collect::<Vec<_>>().join(","))]
}

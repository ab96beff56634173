//! A cluster for tests: the real coordinator and command as processes, and hosts that speak the real
//! protocol over real TLS and drive the real participants, with nothing behind them.

pub mod fault;
pub mod guest;
pub mod host;
pub mod house;

use std::fs::{self, File};
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use unasnap_channel::{Identity, TlsFiles};

/// Clusters at one time: each is a handful of processes with limits of seconds, on machines that may have two cores.
const MAX_CLUSTERS: usize = 4;

/// No command of these tests takes longer, on a busy machine either; longest is a course whose host does not answer.
const COMMAND_LIMIT: Duration = Duration::from_secs(45);
/// The coordinator's longest limit for a peer is 5 s; it says something every second to a host.
const PEER_LIMIT: Duration = Duration::from_secs(15);

static RUNNING: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// So many of the [`MAX_CLUSTERS`] places.
struct Places(usize);

impl Places {
    fn take(count: usize) -> Self {
        let full = |running: &mut usize| *running + count > MAX_CLUSTERS;
        *RUNNING.1.wait_while(RUNNING.0.lock().unwrap(), full).unwrap() += count;
        Self(count)
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        *RUNNING.0.lock().unwrap() -= self.0;
        RUNNING.1.notify_all();
    }
}

/// The program under test.
pub const UNASNAP: &str = env!("CARGO_BIN_EXE_unasnap");

/// Certificates, configuration and a coordinator of its own.
pub struct Cluster {
    folder: TempDir,
    port: u16,
    daemon: Option<Child>,
    _places: Places,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Cluster {
    /// Makes certificates of hosts h1 and h2 and starts the coordinator.
    pub fn start() -> Self {
        Self::in_places(1)
    }

    /// The same, while there is no other cluster: for large ones.
    pub fn start_alone() -> Self {
        Self::in_places(MAX_CLUSTERS)
    }

    fn in_places(count: usize) -> Self {
        let places = Places::take(count);
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut cluster = Self { folder, port, daemon: None, _places: places };
        assert_eq!(cluster.run(&["pki", "init", "--dir", "pki", "--host", "h1", "h2"]).code, 0);
        let coordinator = format!(
            "listen = \"127.0.0.1:{port}\"\nstate_dir = \"state\"\n{}crl = \"pki/crl.pem\"\n",
            tls("coordinator")
        );
        fs::write(cluster.path("coordinator.toml"), coordinator).unwrap();
        cluster.use_certificate("operator");
        cluster.start_daemon();
        cluster
    }

    /// Starts the coordinator anew, with these lines before the others of its configuration.
    pub fn configure(&mut self, lines: &str) {
        self.kill_daemon();
        let path = self.path("coordinator.toml");
        let known = fs::read_to_string(&path).unwrap();
        fs::write(path, format!("{lines}\n{known}")).unwrap();
        self.start_daemon();
    }

    /// Writes the operator's configuration with this certificate.
    pub fn use_certificate(&self, stem: &str) {
        let client = format!("coordinator = \"127.0.0.1:{}\"\n{}", self.port, tls(stem));
        fs::write(self.path("client.toml"), client).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn identity(&self, stem: &str) -> Identity {
        identity(&self.path("pki"), stem)
    }

    /// Starts the coordinator and waits until it answers.
    pub fn start_daemon(&mut self) {
        self.spawn_daemon("");
        wait_until("the coordinator answers", || self.run(&["status"]).code == 0);
    }

    /// Starts the coordinator with this fault point.
    pub fn spawn_daemon(&mut self, fault_point: &str) {
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = Command::new(UNASNAP);
        command.args(["coordinator", "--config", "coordinator.toml"]).current_dir(self.folder.path());
        command.env("UNASNAP_TEST_FAULT_POINT", fault_point);
        self.daemon = Some(command.stderr(log).stdin(Stdio::null()).spawn().unwrap());
    }

    /// Has the coordinator ended by itself?
    pub fn has_died(&mut self) -> bool {
        self.daemon.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    /// As a crash would end it.
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    /// The command, not yet run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(UNASNAP);
        command.args(arguments).current_dir(self.folder.path()).env("UNASNAP_CONFIG", "client.toml");
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ended {
        self.spawn(arguments).finish()
    }

    /// Runs beside the test.
    pub fn spawn(&self, arguments: &[&str]) -> Running {
        let mut command = self.command(arguments);
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Running { child, what: format!("unasnap {}", arguments.join(" ")) }
    }

    /// Runs with `--json`, which must go well.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let done = self.run(&[arguments, &["--json"]].concat());
        assert_eq!(done.code, 0, "{arguments:?}: {}", done.stderr);
        serde_json::from_str(&done.stdout).unwrap()
    }

    /// Waits until this many VMs are reported by connected hosts.
    pub fn wait_for_vms(&self, count: usize) {
        wait_until("the VMs are there", || {
            let vms = self.json(&["vm", "list"]);
            vms["vms"].as_array().unwrap().iter().filter(|vm| !vm["state"].is_null()).count() == count
        });
    }

    /// State of a snapshot in the catalogue.
    pub fn state(&self, id: &str) -> String {
        self.json(&["snapshot", "show", id])["snapshot"]["state"].as_str().unwrap().to_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            self.kill_daemon();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the coordinator\n{}", self.log());
        }
    }
}

/// A command that runs beside the test.
pub struct Running {
    child: Child,
    what: String,
}

impl Running {
    /// Waits for its end, [`COMMAND_LIMIT`] at most.
    pub fn finish(mut self) -> Ended {
        let pipes = (self.child.stdout.take().unwrap(), self.child.stderr.take().unwrap());
        // Both are emptied while it runs, or a talkative command would wait for us.
        let (stdout, stderr) = (text_of(pipes.0), text_of(pipes.1));
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if begun.elapsed() > COMMAND_LIMIT {
                self.kill();
                let said = stderr.join().unwrap();
                panic!("`{}` did not end in {COMMAND_LIMIT:?}; it said: {said}", self.what);
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
        Ended { code: status.code().unwrap(), stdout, stderr }
    }

    /// Without waiting.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// As an impatient operator ends it.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn text_of(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).unwrap();
        text
    })
}

/// Waits for what a peer does, [`PEER_LIMIT`] at most.
pub async fn within<T>(what: &str, done: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PEER_LIMIT, done).await;
    done.unwrap_or_else(|_| panic!("waited {PEER_LIMIT:?} for {what}"))
}

pub fn identity(folder: &Path, stem: &str) -> Identity {
    let mut files = TlsFiles {
        ca: "ca.pem".into(),
        cert: format!("{stem}.pem").into(),
        key: format!("{stem}.key").into(),
        crl: None,
    };
    files.resolve(folder);
    Identity::load(&files).unwrap()
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "waited 20 s until {what}");
        std::thread::sleep(Duration::from_millis(30));
    }
}

fn tls(stem: &str) -> String {
    format!("[tls]\nca = \"pki/ca.pem\"\ncert = \"pki/{stem}.pem\"\nkey = \"pki/{stem}.key\"\n")
}

//! A cluster that takes snapshots our way or the published one, with a hand in every guest.
//!
//! Guests boot with nothing but their gauge (`unasnap_tests::gauge`), through which workloads are started and ended.

use std::fmt::Display;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use unasnap_tests::gauge::{Answer, Request, Tcp};

use super::Workshop;
use super::workload::{self, Workload};
use crate::build::{self, Artifacts};
use crate::guest_image;
use crate::lab::cluster::{Cluster, Colouring, DEPLOYMENT, Scene};
use crate::lab::console::{Console, address};
use crate::lab::namespaces::Lab;
use crate::lab::record::Taken;
use crate::lab::waiting::{wait, wait_for_vms};
use crate::process::{Group, text};
use crate::setup::modules::IPTABLES;

/// TCP port of the gauges.
const PORT: u16 = 9002;
/// Where the observer is asked.
const OBSERVING_GAUGE: &str = "10.77.1.254:9002";
/// For guests to boot; emulation on two busy cores is slow.
const BOOT: Duration = Duration::from_secs(240);
/// For one answer of a gauge.
const ANSWER: Duration = Duration::from_secs(60);
/// For a snapshot of the published method.
const PUBLISHED: Duration = Duration::from_secs(300);
/// For a workload to begin.
const WARM_UP: Duration = Duration::from_secs(90);
/// How long the end of a snapshot may be felt: TCP's first time-outs are far shorter.
const AFTERMATH: Duration = Duration::from_millis(2500);

/// How snapshots are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By us, with this way of colouring.
    Ours(Colouring),
    /// The published steps on the same hypervisor.
    Published,
}

/// What a stage is to be.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// How snapshots are taken.
    pub method: Method,
    /// VMs, dealt out to the hosts in turn.
    pub vms: u32,
    /// Hosts.
    pub hosts: u32,
}

/// One global snapshot, milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Global {
    /// The longest pause of a VM.
    pub pause_ms: f64,
    /// Last instant minus first.
    pub skew_ms: f64,
    /// The slowest local snapshot.
    pub save_ms: f64,
    /// From the order to the cuts until everything was durable.
    pub global_ms: f64,
}

/// What a host of the published method answers.
#[derive(Debug, Deserialize)]
struct HostAnswer {
    pause_ms: f64,
    save_ms: f64,
    total_ms: f64,
    instants_ns: Vec<u64>,
}

/// The running cluster.
pub struct Stage<'a> {
    lab: &'a Lab,
    cluster: Cluster<'a>,
    consoles: Vec<Console>,
    setting: Setting,
    artifacts: &'a Artifacts,
    /// Hosts of the published method, and their sockets.
    published: Vec<(Group, PathBuf)>,
    /// On the coordinator's machine.
    observer: Option<Group>,
    taken: u32,
}

/// Sets a stage up, lets `play` use it, and clears it away.
///
/// # Errors
/// What cannot be set up, and those of `play`.
pub fn with<T>(
    workshop: &Workshop<'_>,
    setting: Setting,
    play: impl FnOnce(&mut Stage<'_>) -> Result<T>,
) -> Result<T> {
    eprintln!("bench: {} VMs on {} hosts, {}", setting.vms, setting.hosts, setting.method);
    let mut artifacts = build::build(workshop.layout)?;
    let mut prelude = String::new();
    if setting.method == Method::Published {
        artifacts.initramfs = guest_image::write_with_iptables(workshop.layout)?;
        prelude = format!("while read -r m; do insmod /lib/modules/$m; done </lib/modules/{IPTABLES}; ");
    }
    let lab = Lab::new(setting.hosts)?;
    let gauge = |vm| format!("{prelude}unasnap-ring gauge serve --listen {}:{PORT}", address(vm));
    let scene = Scene {
        commands: (1..=setting.vms).map(gauge).collect(),
        colouring: setting.method.colouring(),
        late: None,
        faults: false,
    };
    let folder = workshop.layout.target.join("bench/cluster");
    let cluster = Cluster::create(&lab, &artifacts, &folder, &scene)?;
    let consoles = cluster.consoles();
    let published = Vec::new();
    let mut stage = Stage {
        lab: &lab,
        cluster,
        consoles,
        setting,
        artifacts: &artifacts,
        published,
        observer: None,
        taken: 0,
    };
    let outcome = stage.begin(workshop).and_then(|()| play(&mut stage));
    stage.cluster.end(&format!("the cluster ({})", setting.method), &stage.consoles, outcome)
}

impl Method {
    fn colouring(self) -> Colouring {
        match self {
            Self::Ours(colouring) => colouring,
            Self::Published => Colouring::None,
        }
    }
}

impl Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ours(colouring) => write!(f, "colouring {}", colouring.of(1)),
            Self::Published => f.write_str("published method"),
        }
    }
}

impl Stage<'_> {
    fn begin(&mut self, workshop: &Workshop<'_>) -> Result<()> {
        match self.setting.method {
            Method::Ours(_) => {
                self.cluster.start()?;
                wait_for_vms(&mut self.cluster)?;
            }
            Method::Published => self.start_published(workshop)?,
        }
        for vm in 1..=self.setting.vms {
            self.ask(vm, &Request::Tcp).with_context(|| format!("the gauge of vm{vm}"))?;
        }
        let mut command = self.lab.coordinator.command(&self.artifacts.programs.join("unasnap-ring"));
        command.args(["gauge", "serve", "--listen", OBSERVING_GAUGE, "--observe", workload::OBSERVER]);
        let log = self.cluster.logs().join("observer.log");
        self.observer = Some(self.lab.coordinator.start("the observer", &mut command, &log)?);
        Ok(())
    }

    fn start_published(&mut self, workshop: &Workshop<'_>) -> Result<()> {
        for (number, (host, namespace)) in (1..).zip(self.cluster.host_names().zip(&self.lab.hosts)) {
            let folder = self.cluster.state().join(&host);
            std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
            let socket = self.cluster.state().join(format!("{host}.sock"));
            let mut command = namespace.command(workshop.program.path());
            command.arg("published").arg("--state").arg(&folder).arg("--socket").arg(&socket);
            command.arg("--vms").arg(self.cluster.state().join(format!("{host}-vms")));
            // Beside the guests, beyond their numbers.
            command.args(["--address", &format!("10.77.1.{}/24", 100 + number)]);
            let log = self.cluster.logs().join(format!("{host}.log"));
            let daemon =
                namespace.start(&format!("host {host} of the published method"), &mut command, &log)?;
            self.published.push((daemon, socket));
        }
        wait(BOOT, || {
            for (daemon, _) in &mut self.published {
                ensure!(daemon.ended()?.is_none(), "{} ended by itself; see its log", daemon.name());
            }
            let late = self.published.iter().find(|(_, socket)| !socket.exists());
            Ok(late.map(|(daemon, _)| daemon.name().to_owned()))
        })
    }

    /// Asks one guest's gauge.
    ///
    /// # Errors
    /// It does not answer, or could not do it.
    pub fn ask(&self, vm: u32, request: &Request) -> Result<Answer> {
        self.ask_gauge(&format!("{}:{PORT}", address(vm)), request)
    }

    fn ask_gauge(&self, gauge: &str, request: &Request) -> Result<Answer> {
        let question = serde_json::to_string(request).context("encoding a question")?;
        let mut command = self.lab.coordinator.command(&self.artifacts.programs.join("unasnap-ring"));
        command.args(["gauge", "ask", gauge, &question]);
        let answer = text(&format!("asking {gauge} for {question}"), &mut command, ANSWER)?;
        serde_json::from_str(&answer).with_context(|| format!("the answer of {gauge}"))
    }

    /// TCP's counters of all guests together.
    ///
    /// # Errors
    /// A guest does not answer.
    pub fn tcp(&self) -> Result<Tcp> {
        let mut sum = Tcp::default();
        for vm in 1..=self.setting.vms {
            let Answer::Tcp(counters) = self.ask(vm, &Request::Tcp)? else { bail!("no counters of vm{vm}") };
            sum.retransmissions += counters.retransmissions;
            sum.timeouts += counters.timeouts;
        }
        Ok(sum)
    }

    /// Starts a workload and waits until all guests tell progress.
    ///
    /// # Errors
    /// A guest does not answer, or its workload does not begin.
    pub fn start(&mut self, workload: &Workload) -> Result<()> {
        self.consoles.iter_mut().for_each(Console::skip);
        for (vm, command) in (1..).zip(&workload.commands) {
            let line = format!("setsid sh -c '{command}' >/dev/ttyS0 2>&1 & echo $! >/run/workload");
            self.ask(vm, &Request::Run(line))?;
        }
        wait(WARM_UP, || {
            self.check()?;
            let silent = self.consoles.iter().find(|console| !console.tells(workload.tag));
            Ok(silent.map(|console| format!("a workload in {}", console.vm)))
        })
    }

    /// Waits until what starting or ending a workload stirred up has calmed down.
    pub fn settle(&self) {
        std::thread::sleep(AFTERMATH);
    }

    /// Ends what [`Self::start`] started.
    ///
    /// # Errors
    /// A guest does not answer.
    pub fn stop(&mut self) -> Result<()> {
        for vm in 1..=self.setting.vms {
            self.ask(vm, &Request::Run("kill -9 -$(cat /run/workload)".into()))?;
        }
        Ok(())
    }

    /// The longest gap that the workload shows between now and some time after `action`, in milliseconds.
    ///
    /// # Errors
    /// Those of `action`, or a workload broke.
    pub fn gap_ms<T>(&mut self, action: impl FnOnce(&mut Self) -> Result<T>) -> Result<(f64, T)> {
        // What was before is forgotten. It may be nothing: this comes right after the end of the last one.
        self.ask_gauge(OBSERVING_GAUGE, &Request::Gap)?;
        let result = action(self)?;
        std::thread::sleep(AFTERMATH);
        self.check()?;
        match self.ask_gauge(OBSERVING_GAUGE, &Request::Gap)? {
            Answer::Gap(Some(ms)) => Ok((ms, result)),
            Answer::Gap(None) => bail!("the workload has stood still for all of {AFTERMATH:?}"),
            other => bail!("the observer answered {other:?}"),
        }
    }

    /// The ring's duration in seconds, once it has ended.
    ///
    /// # Errors
    /// A workload broke.
    pub fn ring_seconds(&mut self) -> Result<Option<f64>> {
        self.check()?;
        Ok(self.consoles[0].result()?.map(|result| result.seconds))
    }

    fn check(&mut self) -> Result<()> {
        self.cluster.check_daemons()?;
        match self.consoles.iter().find_map(Console::failure) {
            Some(failure) => bail!("a VM failed: {failure}"),
            None => Ok(()),
        }
    }

    /// Takes a global snapshot.
    ///
    /// # Errors
    /// It was not taken.
    pub fn snapshot(&mut self) -> Result<Global> {
        self.taken += 1;
        match self.setting.method {
            Method::Ours(_) => {
                let snapshot = self.cluster.ask::<Taken>(&["snapshot", "take", DEPLOYMENT])?.snapshot;
                let pauses = snapshot.members.iter().map(|member| member.pause_ms);
                Ok(Global {
                    pause_ms: pauses.fold(0.0, f64::max),
                    skew_ms: snapshot.skew_ms,
                    save_ms: snapshot.save_ms,
                    global_ms: snapshot.global_ms,
                })
            }
            Method::Published => self.snapshot_as_published(),
        }
    }

    /// Every host at once, and none waits for another.
    fn snapshot_as_published(&self) -> Result<Global> {
        let name = format!("published-{}", self.taken);
        let start = Instant::now();
        let answers = std::thread::scope(|scope| {
            let name = &name;
            let orders: Vec<_> =
                self.published.iter().map(|(_, socket)| scope.spawn(move || order(socket, name))).collect();
            let answers = orders.into_iter().map(|thread| {
                thread.join().map_err(|_| anyhow!("ordering a published snapshot panicked"))?
            });
            answers.collect::<Result<Vec<_>>>()
        })?;
        let longest = |time: fn(&HostAnswer) -> f64| answers.iter().map(time).fold(0.0, f64::max);
        let instants = || answers.iter().flat_map(|answer| &answer.instants_ns);
        let skew = instants().max().zip(instants().min()).map_or(0, |(last, first)| last - first);
        ensure!(longest(|answer| answer.total_ms) > 0.0, "the published method took no time");
        Ok(Global {
            pause_ms: longest(|answer| answer.pause_ms),
            skew_ms: skew as f64 / 1e6,
            save_ms: longest(|answer| answer.save_ms),
            global_ms: start.elapsed().as_secs_f64() * 1e3,
        })
    }
}

fn order(socket: &PathBuf, name: &str) -> Result<HostAnswer> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(PUBLISHED)).context("setting a time limit")?;
    writeln!(stream, "{name}").context("ordering a published snapshot")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("waiting for a published snapshot")?;
    serde_json::from_str(&line)
        .with_context(|| format!("a published snapshot failed ({line:?}); see the host's log"))
}

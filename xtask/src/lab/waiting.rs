//! Bounded waits that name whom they wait for, and what is told meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::cluster::{Cluster, Colouring};
use super::record::{Status, Vm};

/// For VMs to boot and their agents to answer; emulation on two busy cores is slow.
const BOOT: Duration = Duration::from_secs(180);

/// For killed daemons to find each other again.
const RECONNECT: Duration = Duration::from_secs(60);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// Waits until every VM runs and, where packets are coloured, its guest agent answers.
pub fn wait_for_vms(cluster: &mut Cluster<'_>) -> Result<()> {
    let scene = cluster.scene();
    let ready = |vm: &Vm| {
        vm.state.as_deref() == Some("running")
            && (scene.colouring == Colouring::None || vm.guest_agent == Some(true))
    };
    wait(BOOT, || {
        cluster.check_daemons()?;
        let Ok(status) = cluster.ask::<Status>(&["status"]) else {
            return Ok(Some("the coordinator".into()));
        };
        let known: Vec<_> = status.vms.iter().filter(|vm| ready(vm)).map(|vm| vm.name.as_str()).collect();
        let all = (1..=scene.vms()).map(|vm| format!("vm{vm}"));
        let missing: Vec<_> = all.filter(|vm| !known.contains(&vm.as_str())).collect();
        Ok((!missing.is_empty()).then(|| missing.join(", ")))
    })
    .context("waiting for the VMs")
}

/// Waits until every host that the coordinator knows is connected.
pub fn wait_for_hosts(cluster: &mut Cluster<'_>) -> Result<()> {
    wait(RECONNECT, || {
        cluster.check_daemons()?;
        let Ok(status) = cluster.ask::<Status>(&["status"]) else {
            return Ok(Some("the coordinator".into()));
        };
        let connected = |name: &str| status.hosts.iter().any(|host| host.connected && host.name == name);
        let away: Vec<_> = cluster.host_names().filter(|name| !connected(name)).collect();
        Ok((!away.is_empty()).then(|| away.join(", ")))
    })
    .context("waiting for the hosts to be connected again")
}

/// Waits until `missing` returns `None`; it names whom it waits for.
pub fn wait(limit: Duration, mut missing: impl FnMut() -> Result<Option<String>>) -> Result<()> {
    let start = Instant::now();
    while let Some(whom) = missing()? {
        ensure!(start.elapsed() < limit, "no sign of {whom} within {} s", limit.as_secs());
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// What a command tells while it runs, on standard error.
#[derive(Debug)]
pub struct Talk {
    who: &'static str,
    since: Instant,
}

impl Talk {
    /// Begins to count the seconds; `who` stands at the start of every line.
    pub fn begin(who: &'static str) -> Self {
        Self { who, since: Instant::now() }
    }

    /// One line.
    pub fn say(&self, what: &str) {
        eprintln!("{} {:6.1} s  {what}", self.who, self.since.elapsed().as_secs_f64());
    }
}

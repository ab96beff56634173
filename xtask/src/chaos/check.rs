//! What must hold when nothing is under way: protocol.md section 7.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::stage::{Stage, host_of};
use super::table::{Blow, Course, Row, Victim};
use crate::lab::record::{Listed, Status};
use crate::lab::waiting::wait;
use crate::process::text;

/// For what is under way to end, and merges of disk layers.
const SETTLED: Duration = Duration::from_secs(45);

/// Steps of the protocol, one of which a report must name.
const PHASES: [&str; 13] = [
    "PREPARE", "ARM", "TAKE", "SAVE", "CLEAR", "COMMIT", "ABORT", "POLL", "RESTORE", "START", "DELETE",
    "VERIFY", "CONTROL",
];

const WATCHING: &str = "add table bridge watch; delete table bridge watch; add table bridge watch; \
    add chain bridge watch forward { type filter hook forward priority 1; }; \
    add rule bridge watch forward ip dscp { 3, 5, 7 } counter";

const QUICK: Duration = Duration::from_secs(30);

impl Stage<'_> {
    /// Lets the LAN count packets that carry a colour.
    ///
    /// # Errors
    /// `nft` is not allowed to.
    pub fn count_colours(&self) -> Result<()> {
        let mut nft = self.lab.lan().command("nft".as_ref());
        text("nft", nft.arg(WATCHING), QUICK).map(drop)
    }

    fn coloured(&self) -> Result<u64> {
        let mut nft = self.lab.lan().command("nft".as_ref());
        let listed = text("nft", nft.args(["list", "table", "bridge", "watch"]), QUICK)?;
        let mut words = listed.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).and_then(|count| count.parse().ok()).context("nft's counter")
    }

    /// Waits until nothing is under way and nothing is left behind but snapshots that are listed.
    ///
    /// # Errors
    /// What is left, by the invariant that is broken.
    pub fn wait_until_settled(&mut self) -> Result<()> {
        wait(SETTLED, || {
            self.cluster.check_daemons()?;
            match self.residue() {
                Ok(residue) => Ok(residue),
                Err(error) => Ok(Some(format!("an answer ({error:#})"))),
            }
        })
        .context("I3, I5: after 45 s there is still something of it")
    }

    /// The first thing that should not be there.
    fn residue(&self) -> Result<Option<String>> {
        let status: Status = self.cluster.ask(&["status"])?;
        if let Some(course) = status.courses.first() {
            return Ok(Some(format!("the end of {} ({})", course.snapshot, course.phase)));
        }
        if let Some(vm) = status.vms.iter().find(|vm| vm.state.as_deref() != Some("running")) {
            return Ok(Some(format!("{} running, which is {:?}", vm.name, vm.state)));
        }
        if let Some(vm) = status.vms.iter().find(|vm| vm.guest_agent != Some(true)) {
            return Ok(Some(format!("the guest agent of {}", vm.name)));
        }
        let listed: Listed = self.cluster.ask(&["snapshot", "list", "--all"])?;
        if let Some(entry) = listed.snapshots.iter().find(|entry| !is_final(&entry.state)) {
            return Ok(Some(format!("a decision about {}, which is {}", entry.id, entry.state)));
        }
        let usable = listed.snapshots.into_iter().filter(|entry| entry.state == "committed");
        let usable: BTreeSet<_> = usable.map(|entry| entry.id).collect();
        for host in 1..=self.lab.hosts.len() {
            if let Some(found) = self.leftover(host, &usable)? {
                return Ok(Some(found));
            }
        }
        for vm in 1..=self.members.vms {
            if let Some(found) = self.stray_layer(vm)? {
                return Ok(Some(found));
            }
        }
        let before = self.coloured()?;
        std::thread::sleep(Duration::from_millis(250));
        Ok((self.coloured()? != before).then(|| "packets without a colour".to_owned()))
    }

    /// Folders of a host's store, and processes, that are not what they must be.
    fn leftover(&self, host: usize, usable: &BTreeSet<String>) -> Result<Option<String>> {
        let store = self.cluster.state().join(format!("h{host}/snapshots"));
        let found: BTreeSet<_> = names(&store)?.into_iter().filter(|name| !name.starts_with('.')).collect();
        if found != *usable {
            return Ok(Some(format!("agreement: h{host} has {found:?}, listed are {usable:?}")));
        }
        let vms: BTreeSet<_> =
            (1..=self.members.vms).filter(|vm| host_of(*vm) == host).map(|vm| format!("vm{vm}")).collect();
        let expected: BTreeSet<_> = vms.iter().cloned().chain(["committed".to_owned()]).collect();
        for snapshot in &found {
            let inside: BTreeSet<_> = names(&store.join(snapshot))?.into_iter().collect();
            if inside != expected {
                return Ok(Some(format!("order: {snapshot} on h{host} holds {inside:?}")));
            }
        }
        let processes = self.lab.hosts[host - 1].processes()?;
        let comm = |pid: &nix::unistd::Pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
        };
        let mut names: Vec<_> = processes.iter().map(comm).collect();
        names.sort();
        let mut wanted = vec!["qemu-system-x86".to_owned(); vms.len()];
        wanted.push("unasnap-host".to_owned());
        Ok((names != wanted).then(|| format!("order: on h{host} run {names:?}")))
    }

    /// A disk layer that no record knows, or that is recorded and not there.
    fn stray_layer(&self, vm: u32) -> Result<Option<String>> {
        let folder = self.vm_folder(vm);
        let record = std::fs::read(folder.join("instance.json")).context("a VM's record")?;
        let record: Value = serde_json::from_slice(&record).context("a VM's record")?;
        let layers = record["disks"].as_array().into_iter().flatten();
        let layers = layers.flat_map(|disk| disk["layers"].as_array().into_iter().flatten());
        let known: BTreeSet<_> =
            layers.filter_map(|layer| layer["file"].as_str()).map(str::to_owned).collect();
        let found: BTreeSet<_> = names(&folder.join("disks"))?.into_iter().collect();
        let text = || format!("order: vm{vm} has the layers {found:?}, its record {known:?}");
        Ok((found != known).then(text))
    }
}

fn is_final(state: &str) -> bool {
    matches!(state, "committed" | "aborted")
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    entries.map(|entry| Ok(entry.context("listing")?.file_name().to_string_lossy().into_owned())).collect()
}

/// What is missing in the words of a command that was not carried out: who, and in which step.
pub fn poor_words(row: &Row, words: &str) -> Option<String> {
    let host = |host: usize| match host {
        1 => vec!["h1", "vm1", "vm3"],
        _ => vec!["h2", "vm2"],
    };
    let vm = |vm: u32| match vm {
        1 => vec!["vm1", "h1"],
        2 => vec!["vm2", "h2"],
        _ => vec!["vm3", "h1"],
    };
    let mut culprits = match (row.blow, row.victim) {
        (Blow::KillQemu(number) | Blow::HangQemu(number) | Blow::KillGuestAgent(number), _) => vm(number),
        (Blow::Unplug(0), _) => vec!["coordinator", "connection", "vm"],
        (Blow::Unplug(number) | Blow::Reboot(number), _) => host(number),
        // What the coordinator does not send, its members do not answer.
        (Blow::Error, Victim::Coordinator) => vec!["coordinator", "vm"],
        (_, Victim::Coordinator) => vec!["coordinator", "vm2"],
        (_, Victim::Host(number)) => host(number),
        (_, Victim::Guest(number)) => vm(number),
    };
    if row.course == Course::Refused {
        // It would have been refused anyway, and that is what the operator hears.
        culprits.extend(host(2));
    }
    if !culprits.iter().any(|name| words.contains(name)) {
        return Some(format!("none of {culprits:?} is named"));
    }
    // What is done to single VMs has no steps; without a connection none was begun.
    let has_steps = !matches!(row.course, Course::Control | Course::Exec | Course::Console);
    let not_begun = ["lost the coordinator", "cannot reach", "is not connected"];
    let names_step =
        not_begun.iter().any(|text| words.contains(text)) || PHASES.iter().any(|phase| words.contains(phase));
    (has_steps && !names_step).then(|| "no step is named".to_owned())
}

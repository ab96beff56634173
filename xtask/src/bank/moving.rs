//! Restores with vm1 on the other host than before, and what befalls them: the host that gives the files dies in the middle,
//! the one that gets them does.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::course::HOSTS;
use crate::lab::cluster::Cluster;
use crate::lab::record::{Restore, Restored, Status};
use crate::lab::waiting::{Talk, wait, wait_for_hosts};
use crate::process::output;

/// For a blow to fall, and for a restore.
const PATIENCE: Duration = Duration::from_secs(150);

/// Whose agent dies, and where; in turn.
pub const BLOWS: [Option<(End, &str)>; 12] = [
    None,
    // In the middle of the RAM.
    Some((End::Source, "give.Chunk.after:60")),
    // When the manifest and the RAM are there, and more is to come.
    Some((End::Target, "seek.Read.before:3")),
    Some((End::Source, "answer.Evicted.before")),
    Some((End::Target, "store.accept.after")),
    Some((End::Target, "store.accept.before")),
    Some((End::Source, "give.Offer.after")),
    Some((End::Target, "answer.Fetched.before")),
    Some((End::Target, "seek.Open.after")),
    Some((End::Source, "give.End.before:2")),
    Some((End::Target, "store.receive.after")),
    Some((End::Target, "answer.Fetching.after")),
];

/// Of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The host that vm1 leaves.
    Source,
    /// The host to which it comes.
    Target,
}

/// Where vm1 is.
pub struct Moves {
    host: u32,
    done: usize,
}

impl Moves {
    /// Where it begins.
    pub fn new() -> Self {
        Self { host: 1, done: 0 }
    }

    /// Restores `snapshot`, which was just taken, with vm1 on the other host.
    ///
    /// # Errors
    /// It is not restored, or more is sent than has to be.
    pub fn restore(&mut self, talk: &Talk, cluster: &mut Cluster<'_>, snapshot: &str) -> Result<Restore> {
        let (from, to) = (self.host, HOSTS + 1 - self.host);
        let place = format!("vm1=h{to}");
        let command = ["restore", snapshot, "--place", &place];
        let restore = match BLOWS[self.done % BLOWS.len()] {
            None => cluster.ask::<Restored>(&command)?.restore,
            Some((End::Source, point)) => struck(talk, cluster, &command, from, point)?,
            Some((End::Target, point)) => struck(talk, cluster, &command, to, point)?,
        };
        let status: Status = cluster.ask(&["status"])?;
        let lives = status.vms.iter().find(|vm| vm.name == "vm1").map(|vm| vm.host.as_str());
        ensure!(lives == Some(&format!("h{to}")), "vm1 lives on {lives:?} after its restore on h{to}");
        // Where a restore broke off after the files had come, the next one has nothing to fetch.
        let (sent, total) = restore.fetched.first().map_or((0, 0), |member| (member.sent, member.total));
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let why = "all of it was sent, with its holes and what was there";
        ensure!(sent < total || total == 0, "{:.1} of {:.1} MB: {why}", mb(sent), mb(total));
        talk.say(&format!(
            "vm1 lives on h{to} now; {:.1} of {:.1} MB were sent in {:.0} ms",
            mb(sent),
            mb(total),
            restore.fetch_ms
        ));
        (self.host, self.done) = (to, self.done + 1);
        Ok(restore)
    }
}

/// A restore in which the agent of `host` dies at `point`, and is started again.
fn struck(
    talk: &Talk,
    cluster: &mut Cluster<'_>,
    command: &[&str],
    host: u32,
    point: &str,
) -> Result<Restore> {
    let daemon = host as usize;
    let file = cluster.fault_file(daemon);
    std::fs::write(&file, format!("{point}=kill")).with_context(|| format!("writing {}", file.display()))?;
    let mut operator = cluster.operator(command);
    let asking = std::thread::spawn(move || output("unasnap restore", &mut operator, PATIENCE));
    wait(PATIENCE, || Ok(cluster.daemon(daemon).ended()?.is_none().then(|| format!("h{host}'s death"))))?;
    std::fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
    cluster.restart_one(daemon)?;
    wait_for_hosts(cluster)?;
    let said = asking.join().map_err(|_| anyhow!("a thread panicked"))??;
    if said.status.success() {
        talk.say(&format!("h{host}'s agent died at {point}; the restore went on when it was back"));
        let restored: Restored = serde_json::from_slice(&said.stdout).context("the restore's answer")?;
        return Ok(restored.restore);
    }
    let words = String::from_utf8_lossy(&said.stderr).trim().to_owned();
    ensure!(words.contains("vm1"), "nobody is named in {words:?}");
    talk.say(&format!("h{host}'s agent died at {point}: {words}; restoring once more"));
    Ok(cluster.ask::<Restored>(command)?.restore)
}

//! The manager of a run: registration, ring order, START, statistics, verdict.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::walk::expected_value;
use super::wire::{FromManager, FromNode, Lines, NodeStatistics};
use crate::net::{PATIENCE, accept};

/// Most nodes of a ring; a cap on what a mistyped number can allocate.
pub const MAX_NODES: u64 = 4096;

/// How long the manager listens for further failures after the first one.
const FALLOUT: Duration = Duration::from_millis(500);

/// What is to be run.
#[derive(Debug, Clone)]
pub struct RunConfig {
    /// Nodes to wait for.
    pub nodes: u64,
    /// Number of the last token; at least one per node, so that each node works.
    pub tokens: u64,
    /// Steps of floating-point work per token.
    pub work: u32,
    /// What the run is called in its result.
    pub label: String,
    /// A line is appended to this file.
    pub csv: Option<PathBuf>,
}

/// The outcome, printed as one line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunResult {
    /// Tokens asked for.
    pub tokens: u64,
    /// What `final` must be.
    pub expected: u64,
    /// Number of the last token that the exit round carried.
    #[serde(rename = "final")]
    pub last: u64,
    /// Bits of the floating-point value that the last token carried.
    pub value: String,
    /// START to the last node's report, in seconds of the manager's monotonic clock.
    pub seconds: f64,
    /// The longest of the nodes' gaps, in milliseconds.
    pub longest_gap_ms: f64,
    /// Each node's report, in ring order.
    pub nodes: Vec<NodeStatistics>,
    /// What the run is called.
    pub label: String,
}

struct Member {
    name: String,
    address: SocketAddr,
    lines: Lines,
}

/// Runs one ring to its end.
///
/// # Errors
/// Names the node that did not come up, or that reported a violation, or the figure that is wrong at the end.
pub fn run(listener: &TcpListener, config: &RunConfig) -> Result<RunResult> {
    check(config)?;
    let mut members = register(listener, config.nodes)?;
    assign(&mut members, config)?;
    for member in &mut members {
        expect_ready(member)?;
    }
    let start = Instant::now();
    for member in &mut members {
        member.lines.send(&FromManager::Start)?;
    }
    let nodes = collect(members)?;
    let seconds = start.elapsed().as_secs_f64();
    let result = verdict(config, nodes, seconds)?;
    if let Some(path) = &config.csv {
        append_csv(path, &result).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(result)
}

fn check(config: &RunConfig) -> Result<()> {
    if !(2..=MAX_NODES).contains(&config.nodes) {
        bail!("a ring has 2 to {MAX_NODES} nodes, not {}", config.nodes);
    }
    if config.tokens < config.nodes {
        bail!("{} tokens do not reach all {} nodes: ask for at least as many", config.tokens, config.nodes);
    }
    Ok(())
}

fn register(listener: &TcpListener, nodes: u64) -> Result<Vec<Member>> {
    let mut members: Vec<Member> = Vec::new();
    let start = Instant::now();
    while (members.len() as u64) < nodes {
        let waiting = format!("{} of {nodes} nodes", nodes - members.len() as u64);
        let (stream, peer) = accept(&waiting, listener, PATIENCE.saturating_sub(start.elapsed()))?;
        stream.set_read_timeout(Some(PATIENCE)).context("setting a time limit")?;
        let mut lines = Lines::new(peer.to_string(), stream);
        let FromNode::Register { name, port } = lines.receive()? else {
            bail!("{peer} did not begin with its registration");
        };
        if members.iter().any(|member| member.name == name) {
            bail!("two nodes call themselves {name:?}: names must be unique");
        }
        lines.rename(format!("node {name}"));
        members.push(Member { name, address: SocketAddr::new(peer.ip(), port), lines });
    }
    members.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(members)
}

fn assign(members: &mut [Member], config: &RunConfig) -> Result<()> {
    let next: Vec<_> =
        members.iter().cycle().skip(1).take(members.len()).map(|m| (m.name.clone(), m.address)).collect();
    for (position, (member, (successor, address))) in (0..).zip(members.iter_mut().zip(next)) {
        let RunConfig { nodes, tokens, work, .. } = *config;
        member.lines.send(&FromManager::Assign { position, nodes, tokens, work, successor, address })?;
    }
    Ok(())
}

fn expect_ready(member: &mut Member) -> Result<()> {
    let lines = &mut member.lines;
    match lines.receive().context("waiting for the nodes to connect to their neighbours")? {
        FromNode::Ready => Ok(()),
        FromNode::Failed { reason } => bail!("node {}: {reason}", member.name),
        other => bail!("node {} said {other:?} instead of Ready", member.name),
    }
}

/// Waits for each node's report, without a limit: the run may sleep in a snapshot for a week. The first failure ends the
/// wait, whichever node it comes from, hence one thread per node. A broken ring breaks at every node, so those that
/// fail within [`FALLOUT`] of the first are named with it: the cause is among them.
fn collect(members: Vec<Member>) -> Result<Vec<NodeStatistics>> {
    let (sender, reports) = mpsc::channel();
    for (position, member) in members.into_iter().enumerate() {
        let sender = sender.clone();
        std::thread::spawn(move || {
            // The receiver is gone once another node has failed; then nobody wants this report.
            let _ = sender.send((position, report(member)));
        });
    }
    drop(sender);
    let mut nodes = Vec::new();
    while let Ok((position, report)) = reports.recv() {
        match report {
            Ok(statistics) => nodes.push((position, statistics)),
            Err(first) => {
                let mut failures = vec![format!("{first:#}")];
                while let Ok((_, report)) = reports.recv_timeout(FALLOUT) {
                    failures.extend(report.err().map(|error| format!("{error:#}")));
                }
                bail!("the ring broke: {}", failures.join("; "));
            }
        }
    }
    nodes.sort_by_key(|(position, _)| *position);
    Ok(nodes.into_iter().map(|(_, statistics)| statistics).collect())
}

fn report(mut member: Member) -> Result<NodeStatistics> {
    member.lines.stream().set_read_timeout(None).context("clearing the time limit")?;
    match member.lines.receive()? {
        FromNode::Done(statistics) => Ok(statistics),
        FromNode::Failed { reason } => bail!("node {}: {reason}", member.name),
        other => bail!("node {} said {other:?} in the middle of the run", member.name),
    }
}

fn verdict(config: &RunConfig, nodes: Vec<NodeStatistics>, seconds: f64) -> Result<RunResult> {
    let expected = config.tokens;
    let value = format!("{:016x}", expected_value(config.tokens, config.work).to_bits());
    for node in &nodes {
        if node.last != expected || node.value != value {
            bail!(
                "node {} ended with token {} and value {}, expected {expected} and {value}",
                node.name,
                node.last,
                node.value
            );
        }
    }
    let received: u64 = nodes.iter().map(|node| node.received).sum();
    if received != expected {
        bail!("the nodes received {received} tokens in all, expected {expected}");
    }
    let longest_gap_ms = nodes.iter().map(|node| node.longest_gap_ms).fold(0.0, f64::max);
    let label = config.label.clone();
    Ok(RunResult { tokens: expected, expected, last: expected, value, seconds, longest_gap_ms, nodes, label })
}

/// The published columns: tokens, seconds, label, date. Quotes are doubled as RFC 4180 says.
fn append_csv(path: &std::path::Path, result: &RunResult) -> Result<()> {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    if file.metadata()?.len() == 0 {
        writeln!(file, "tokens,seconds,label,date")?;
    }
    let label = result.label.replace('"', "\"\"");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    writeln!(file, "{},{:.3},\"{label}\",{}", result.tokens, result.seconds, utc(now.as_secs()))?;
    Ok(())
}

/// Seconds since 1970 as `YYYY-MM-DDThh:mm:ssZ` (Howard Hinnant's civil_from_days).
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(1_709_164_799), "2024-02-28T23:59:59Z");
        assert_eq!(utc(1_709_164_800), "2024-02-29T00:00:00Z");
        assert_eq!(utc(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn impossible_runs_are_refused() {
        let config = |nodes, tokens| RunConfig { nodes, tokens, work: 1, label: String::new(), csv: None };
        assert!(check(&config(1, 10)).is_err());
        assert!(check(&config(4, 3)).is_err());
        assert!(check(&config(4, 4)).is_ok());
    }
}

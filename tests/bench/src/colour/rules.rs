//! The published way of colouring, by rules: DSCP set on what leaves, a drop by DSCP on what arrives.
//!
//! The rules have no addresses, so they colour packets to everybody: fewer and cheaper rules than members need, in favour of
//! the alternative. Code points are the published ones, 16 and 32.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::pair::Pair;
use crate::namespace::{feed, run};

/// Commands whose mean is one figure.
const SWITCHES: u32 = 3;

/// The published code points.
const PRE: u8 = 16;
const POST: u8 = 32;

/// What makes the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// iptables on its own kernel tables.
    IptablesLegacy,
    /// iptables in front of nftables.
    IptablesNft,
    /// nftables.
    Nft,
}

impl Tool {
    /// All.
    pub const ALL: [Self; 3] = [Self::IptablesLegacy, Self::IptablesNft, Self::Nft];

    /// Its name in results.
    pub fn key(self) -> &'static str {
        match self {
            Self::IptablesLegacy => "iptables_legacy",
            Self::IptablesNft => "iptables_nft",
            Self::Nft => "nft",
        }
    }

    /// Program names for IPv4 and IPv6, of the tools that have two.
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::IptablesLegacy => &["iptables-legacy", "ip6tables-legacy"],
            Self::IptablesNft => &["iptables-nft", "ip6tables-nft"],
            Self::Nft => &[],
        }
    }
}

const NFT_RULES: &str = "
table inet colour {
    chain out { type filter hook postrouting priority mangle
        ip dscp set 16
        ip6 dscp set 16
    }
    chain in { type filter hook input priority filter
        ip dscp 32 drop
        ip6 dscp 32 drop
    }
}
";

/// Rules in force at both ends of a pair.
#[derive(Debug)]
pub struct Rules {
    tool: Tool,
    /// Handle of the rule that is replaced, where rules have handles.
    handle: String,
}

impl Rules {
    /// Puts the rules in force.
    ///
    /// # Errors
    /// The tool is not installed, or the kernel cannot do what it asks.
    pub fn install(tool: Tool, pair: &Pair) -> Result<Self> {
        pair.far.within(|| install(tool))?;
        let handle = pair.near.within(|| install(tool))?;
        Ok(Self { tool, handle })
    }

    /// What made them.
    pub fn tool(&self) -> Tool {
        self.tool
    }

    /// Nanoseconds of one switch of the IPv4 colour at the near end, by the command that replaces the rule.
    ///
    /// # Errors
    /// The command fails.
    pub fn switch_ns(&self, pair: &Pair) -> Result<f64> {
        pair.near.within(|| {
            let mut total = 0;
            for turn in 0..SWITCHES {
                let line = self.replacement(if turn % 2 == 0 { POST } else { PRE });
                let mut words = line.split_whitespace();
                let mut command = Command::new(words.next().context("a command")?);
                command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                let start = Instant::now();
                let status = command.status().with_context(|| format!("running {line}"))?;
                total += start.elapsed().as_nanos();
                ensure!(status.success(), "{line}: {status}");
            }
            // As it was: packets are measured with it.
            run(&self.replacement(PRE))?;
            Ok(total as f64 / f64::from(SWITCHES))
        })
    }

    fn replacement(&self, dscp: u8) -> String {
        match self.tool.programs() {
            [program, ..] => format!("{program} -t mangle -R POSTROUTING 1 -j DSCP --set-dscp {dscp}"),
            [] => format!("nft replace rule inet colour out handle {} ip dscp set {dscp}", self.handle),
        }
    }
}

/// In the calling thread's namespace; answers the handle of the rule that colours IPv4.
fn install(tool: Tool) -> Result<String> {
    for program in tool.programs() {
        run(&format!("{program} -t mangle -A POSTROUTING -j DSCP --set-dscp {PRE}"))?;
        run(&format!("{program} -A INPUT -m dscp --dscp {POST} -j DROP"))?;
    }
    if tool != Tool::Nft {
        return Ok(String::new());
    }
    feed("nft -f -", NFT_RULES)?;
    let listed = run("nft --handle list chain inet colour out")?;
    let rule = listed.lines().find(|line| line.contains("ip dscp set")).context("nft lists no rule")?;
    let (_, handle) = rule.rsplit_once("handle ").context("nft names no handle")?;
    Ok(handle.trim().to_owned())
}

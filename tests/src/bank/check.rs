//! The offline proof: do the restored states of one global snapshot keep I1 and I2 of docs/protocol.md?
//!
//! The states are read out some time after the restore, when all members have stopped sending. So each member's book holds
//! what it knew at its cut and what it did since, and the books of both ends of a channel must tell the same story:
//!
//! | found | means |
//! |---|---|
//! | received, but under this number nothing was sent | an orphan (I1) |
//! | a datagram received with other contents than it was sent with | an orphan (I1): the sender's restore undid it |
//! | a stream received with other contents than it was sent with | an orphan (I1), or bytes lost or doubled (I2) |
//! | a stream's transfers that never arrive, or a broken connection | loss (I2) |
//! | balances that do not add up though all has arrived | the books themselves are wrong |
//!
//! Datagrams that are lost or repeated mean nothing. Of each channel the first number that breaks is told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::book::{Datagrams, Log, MAX_MEMBERS, OPENING, Peer, State, Stream, Transport};
use super::record::Digest;

#[cfg(test)]
mod tests;

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Breach {
    /// Received, never sent.
    NeverSent,
    /// Received with other contents than it was sent with.
    Foreign,
    /// Sent on a stream, never received.
    NeverReceived,
    /// The connection broke.
    Broken(String),
}

/// A number on a channel at which an invariant is broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// `I1`, `I2`, or both when it may be either.
    pub invariant: &'static str,
    /// How it travelled.
    pub transport: Transport,
    /// The channel's sender.
    pub from: u32,
    /// The channel's receiver.
    pub to: u32,
    /// The first transfer that is wrong.
    pub number: u64,
    /// In which way.
    pub breach: Breach,
}

/// What the check found, and how much it has looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Verdict {
    /// One per channel and transport at most.
    pub violations: Vec<Violation>,
    /// Transfers over streams that arrived as they were sent.
    pub transfers: u64,
    /// Datagrams whose contents were compared.
    pub datagrams: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        let Self { invariant, from, to, number, breach, .. } = self;
        write!(f, "{invariant} broken on channel {transport} {from}->{to} at number {number}: ")?;
        match breach {
            Breach::NeverSent => write!(f, "{to} has received it, but {from} has not sent it"),
            Breach::Foreign => write!(f, "{to} has received other contents than {from} has sent"),
            Breach::NeverReceived => write!(f, "{from} has sent it, but {to} does not receive it"),
            Breach::Broken(why) => write!(f, "the connection broke: {why}"),
        }
    }
}

/// Checks the states of all members of one restored snapshot.
///
/// # Errors
/// The states are not those of all members, once each, all of them frozen; or the balances do not add up although
/// every transfer has arrived.
pub fn check(states: &[State]) -> Result<Verdict> {
    let by_member = complete(states)?;
    let mut verdict = Verdict::default();
    for sender in states {
        for Peer { member: to, sent, .. } in &sender.peers {
            let receiver = by_member.get(to).and_then(|state| state.peer(sender.member));
            let received =
                &receiver.with_context(|| format!("{to} does not know {}", sender.member))?.received;
            let tell = |transport, (invariant, number, breach)| Violation {
                invariant,
                transport,
                from: sender.member,
                to: *to,
                number,
                breach,
            };
            let stream = stream(&sent.tcp, &received.tcp);
            verdict.transfers += stream.as_ref().map_or(received.tcp.last, |(_, number, _)| number - 1);
            verdict.violations.extend(stream.map(|found| tell(Transport::Tcp, found)));
            let (compared, found) = datagrams(&sent.udp, &received.udp);
            verdict.datagrams += compared;
            verdict.violations.extend(found.map(|found| tell(Transport::Udp, found)));
        }
    }
    // What is certainly an orphan stands first.
    verdict.violations.sort_by_key(|violation| violation.invariant);
    let sum: i64 = states.iter().map(|state| state.balance).sum();
    let opening = OPENING * i64::try_from(states.len()).unwrap_or(i64::MAX);
    ensure!(
        !verdict.violations.is_empty() || sum == opening,
        "every transfer has arrived, but the balances add up to {sum} instead of {opening}"
    );
    Ok(verdict)
}

fn complete(states: &[State]) -> Result<BTreeMap<u32, &State>> {
    let by_member: BTreeMap<_, _> = states.iter().map(|state| (state.member, state)).collect();
    let members = states.first().context("no states were given")?.members;
    let wanted: BTreeSet<_> = (1..=members.min(MAX_MEMBERS)).collect();
    ensure!(
        by_member.len() == states.len() && by_member.keys().copied().collect::<BTreeSet<_>>() == wanted,
        "the states of members 1 to {members} are needed, each once; given are those of {:?}",
        states.iter().map(|state| state.member).collect::<Vec<_>>()
    );
    for state in states {
        ensure!(state.frozen, "member {} has not stopped sending: freeze all, then read out", state.member);
    }
    Ok(by_member)
}

type Found = (&'static str, u64, Breach);

/// The first number at which a stream's two ends disagree.
fn stream(sent: &Stream, received: &Stream) -> Option<Found> {
    if let Some(number) = first_difference(&sent.log, &received.log) {
        return Some(("I1 or I2", number, Breach::Foreign));
    }
    if received.last > sent.last {
        return Some(("I1", sent.last + 1, Breach::NeverSent));
    }
    let next = received.last + 1;
    if received.last < sent.last {
        return Some(("I2", next, Breach::NeverReceived));
    }
    if (sent.chain, sent.amount) != (received.chain, received.amount) {
        return Some(("I1 or I2", received.last.max(1), Breach::Foreign));
    }
    let broken = sent.broken.as_ref().or(received.broken.as_ref())?;
    Some(("I2", next, Breach::Broken(broken.clone())))
}

/// The first number that both logs have and that differs.
fn first_difference(sent: &Log, received: &Log) -> Option<u64> {
    let sent = numbers(sent);
    let mut received = received.0.iter();
    received.find(|(number, digest)| sent.get(number).is_some_and(|own| own != digest)).map(|entry| entry.0)
}

/// How many datagrams were compared, and the lowest number among the received ones that was not sent so. Those that the
/// sender's log has forgotten are not judged.
fn datagrams(sent: &Datagrams, received: &Datagrams) -> (u64, Option<Found>) {
    let log = numbers(&sent.log);
    let mut compared = 0;
    let mut lowest: Option<Found> = None;
    for (number, digest) in &received.log.0 {
        let breach = match log.get(number) {
            Some(own) if own == digest => None,
            Some(_) => Some(Breach::Foreign),
            None if *number > sent.last => Some(Breach::NeverSent),
            None => continue,
        };
        compared += 1;
        if let Some(breach) = breach
            && lowest.as_ref().is_none_or(|(_, known, _)| number < known)
        {
            lowest = Some(("I1", *number, breach));
        }
    }
    (compared, lowest)
}

fn numbers(log: &Log) -> BTreeMap<u64, Digest> {
    log.0.iter().copied().collect()
}

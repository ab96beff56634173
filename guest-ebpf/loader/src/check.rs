//! Self-check: is everything in place that a snapshot will need?

use anyhow::{Context, Result, ensure};
use unasnap_guest_ebpf::{CodePoints, Egress, egress};
use unasnap_protocol::guest::Prefix;

use crate::{
    attach::Attached,
    maps::Maps,
    programs::{Hook, Programs},
};

/// `TC_ACT_UNSPEC`: the packet goes on.
const GOES_ON: i32 = -1;

/// Problems in words; none means healthy.
pub fn problems(programs: &mut Programs, attached: &Attached, maps: &Maps) -> Vec<String> {
    let mut problems = Vec::new();
    let mut note = |what: String, outcome: Result<()>| {
        if let Err(error) = outcome {
            problems.push(format!("{what}: {error:#}"));
        }
    };
    for interface in attached.names() {
        for hook in Hook::ALL {
            let outcome = attached.verify(programs, &interface, hook);
            note(format!("the {} program does not hang on {interface}", hook.name()), outcome);
        }
    }
    note("the maps cannot be read".to_owned(), maps.counters().map(drop));
    note("the mapped word is not the kernel's".to_owned(), same_word(maps));
    note("colouring does not work".to_owned(), colours(programs, maps));
    problems
}

fn same_word(maps: &Maps) -> Result<()> {
    let mapped = maps.word.load();
    let found = maps.word_by_syscall()?;
    // The programs may advance the word between the two loads.
    ensure!(found == mapped || maps.word.load() != mapped, "{mapped:?} in memory, {found:?} by system call");
    Ok(())
}

/// Runs the egress program on a packet to a member; without members there is nothing to colour.
fn colours(programs: &mut Programs, maps: &Maps) -> Result<()> {
    let member = maps.members()?.into_iter().find_map(|prefix| match prefix {
        Prefix::V4(address, _) => Some(address),
        Prefix::V6(..) => None,
    });
    let Some(member) = member else { return Ok(()) };
    let code_points = maps.config()?.code_points;
    let word = maps.word.load();
    let (before, expected) = sample(word, code_points);
    let (answer, after) = programs.try_out(Hook::Egress, &frame_to(member, before))?;
    if maps.word.load() != word {
        return Ok(());
    }
    ensure!(answer == GOES_ON, "the egress program answers {answer}");
    let after = after.get(15).context("the frame came back short")? >> 2;
    ensure!(after == expected, "DSCP {before} to a member left as {after}, not {expected}");
    Ok(())
}

/// A DSCP that the rule has to change under this word, and what it has to become.
fn sample(word: unasnap_guest_ebpf::StateWord, code_points: CodePoints) -> (u8, u8) {
    let ours = code_points.values()[0];
    match egress(word, ours, code_points) {
        Egress::Colour(code) => (0, code),
        Egress::Sanitise => (ours, 0),
        Egress::Leave => (0, 0),
    }
}

/// An Ethernet frame with an IPv4 header and 26 bytes of nothing.
fn frame_to(destination: [u8; 4], dscp: u8) -> Vec<u8> {
    let ethernet = [0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x08, 0x00];
    let head = [0x45, dscp << 2, 0, 46, 0, 0, 0, 0, 64, 253, 0, 0, 192, 0, 2, 1];
    [&ethernet[..], &head, &destination, &[0; 26]].concat()
}

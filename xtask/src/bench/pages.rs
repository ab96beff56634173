//! What is shown of the figures: one table and one picture per page.

use super::Part;
use super::figures::{Figures, Spread, star};

/// One table and its picture.
#[derive(Debug)]
pub struct Page {
    /// The heading; the picture's file is called after it.
    pub title: &'static str,
    /// Of every figure.
    pub unit: &'static str,
    /// What is to be known to read it.
    pub note: &'static str,
    /// The table's columns.
    pub columns: &'static [Column],
}

/// One column.
#[derive(Debug)]
pub struct Column {
    /// The heading.
    pub heading: &'static str,
    /// Keys of its figures; what stands for the star names the row.
    pub keys: &'static str,
    /// Is it part of the picture?
    pub drawn: bool,
}

const fn drawn(heading: &'static str, keys: &'static str) -> Column {
    Column { heading, keys, drawn: true }
}

const fn told(heading: &'static str, keys: &'static str) -> Column {
    Column { heading, keys, drawn: false }
}

/// Pages of a part.
pub fn of(part: Part) -> &'static [Page] {
    match part {
        Part::Colour => &COLOUR,
        Part::Pause => &PAUSE,
        Part::Restore => &RESTORE,
        Part::Stall => &STALL,
        Part::Global => &GLOBAL,
        Part::Overhead => &OVERHEAD,
        Part::GuestAgent => &GUEST_AGENT,
    }
}

const COLOUR: [Page; 3] = [
    Page {
        title: "Switching the colour",
        unit: "ns",
        note: "Until the next packet leaves with the other colour: a store into the mapped word, the bpf() system call, or the \
               command that replaces the rule, from its start to its end.",
        columns: &[drawn("one switch", "colour.switch_ns.*")],
    },
    Page {
        title: "Cost per packet",
        unit: "ns",
        note: "A UDP datagram of 64 bytes across a veth pair: both stacks, and the programs or rules of both ends. What is \
               added is the difference to `none` within the same turn. `empty program` is a TC program that does nothing: \
               less cannot be had on these hooks. The rules are the published two, set the DSCP and drop by DSCP, without \
               addresses.",
        columns: &[
            told("IPv4", "colour.per_packet_ns.*"),
            drawn("added", "colour.added_ns.*"),
            told("IPv6", "colour.per_packet6_ns.*"),
            drawn("added (IPv6)", "colour.added6_ns.*"),
        ],
    },
    Page {
        title: "The programs alone",
        unit: "ns",
        note: "One run by BPF_PROG_TEST_RUN, IPv4. The kernel uses the same packet again and again, so none of these runs \
               rewrites it.",
        columns: &[drawn("one run", "colour.test_run_ns.*")],
    },
];

const PAUSE: [Page; 3] = [
    Page {
        title: "Pause",
        unit: "ms",
        note: "One cut of one VM, by way of taking RAM, size of RAM in MiB, and load. A quarter of the RAM was filled before. \
               `idle` is a timer of 1 ms; `dirty` writes that quarter page by page, as fast as it goes. The gap is the longest \
               time between two of the load's events as the host sees them (a guest's clock stands still with it), from before \
               the cut is prepared until all bytes are durable; beside it is the same for 0.4 s without a snapshot. Until durable is counted from the cut, preparing up to it.",
        columns: &[
            drawn("pause", "pause.*.pause_ms"),
            drawn("longest gap", "pause.*.gap_ms"),
            told("gap without a snapshot", "pause.*.undisturbed_gap_ms"),
            told("preparing", "pause.*.before_ms"),
            told("until durable", "pause.*.total_ms"),
        ],
    },
    Page {
        title: "Parts of the pause",
        unit: "ms",
        note: "Where the time of the pause goes.",
        columns: &[drawn("part", "pause_parts.*_ms")],
    },
    Page {
        title: "Several VMs of one host",
        unit: "ms",
        note: "VMs of the least RAM, idle, cut at the same moment; the figures of the one that fared worst.",
        columns: &[
            drawn("pause", "pause_at_once.*.pause_ms"),
            drawn("longest gap", "pause_at_once.*.gap_ms"),
            told("until durable", "pause_at_once.*.total_ms"),
        ],
    },
];

const RESTORE: [Page; 1] = [Page {
    title: "Restore",
    unit: "ms",
    note: "From the order until the snapshot is loaded, until the VM runs, and until a program in the guest has answered over \
           TCP, by way of taking RAM and size of RAM in MiB, of which a quarter was filled. The snapshot's files are in the page \
           cache.",
    columns: &[
        told("loaded", "restore.*.loaded_ms"),
        drawn("running", "restore.*.running_ms"),
        drawn("answers", "restore.*.answers_ms"),
    ],
}];

const STALL: [Page; 2] = [
    Page {
        title: "A TCP stream during a snapshot",
        unit: "ms, segments, time-outs",
        note: "A busy request/response stream between two VMs on two hosts; the longest time between two answers as a \
               third machine sees it, and the segments sent again, of both kernels, from before the snapshot until 2.5 s after it. By way of colouring; the \
               baseline is the published method on the same hypervisor.",
        columns: &[
            drawn("longest gap", "stall.*.gap_ms"),
            told("without a snapshot", "stall.*.undisturbed_gap_ms"),
            told("pause", "stall.*.pause_ms"),
            told("skew", "stall.*.skew_ms"),
            told("gap - pause - skew", "stall.*.beyond_ms"),
            told("retransmissions", "stall.*.retransmissions"),
            told("time-outs", "stall.*.timeouts"),
        ],
    },
    Page {
        title: "A ring during a snapshot",
        unit: "ms",
        note: "The longest time between two tokens at a node, as a third machine sees it; the same VMs.",
        columns: &[
            drawn("longest gap", "stall.*.ring_gap_ms"),
            told("without a snapshot", "stall.*.ring_undisturbed_gap_ms"),
        ],
    },
];

const GLOBAL: [Page; 1] = [Page {
    title: "Global snapshots",
    unit: "ms",
    note: "A token runs around a ring of all VMs meanwhile. Global is from the order to cut until everything is durable on all \
           hosts; local is the slowest VM's part. The published method stops each VM, saves everything, and colours by \
           iptables commands in the guests, in the order of its publication and without a barrier; the VMs of a host \
           take each step at the same time, in its favour. The disturbance is the ring's longest gap without what it is at \
           rest.",
    columns: &[
        told("pause", "global.*.pause_ms"),
        told("skew", "global.*.skew_ms"),
        told("local", "global.*.save_ms"),
        drawn("global", "global.*.global_ms"),
        told("global - local", "global.*.coordination_ms"),
        told("ring's gap", "global.*.gap_ms"),
        drawn("disturbance", "global.*.disturbance_ms"),
    ],
}];

const OVERHEAD: [Page; 1] = [Page {
    title: "A ring with and without snapshots",
    unit: "s",
    note: "By number of tokens; four VMs on two hosts, a snapshot every 10 s.",
    columns: &[
        drawn("without", "overhead.*.plain_s"),
        drawn("with", "overhead.*.with_snapshots_s"),
        told("snapshots", "overhead.*.snapshots"),
        told("with / without", "overhead.*.relative"),
    ],
}];

const GUEST_AGENT: [Page; 1] = [Page {
    title: "Guest agent at rest",
    unit: "KiB, percent of a core",
    note: "In an emulated guest whose host asks for its health every second.",
    columns: &[drawn("figure", "guest_agent.*")],
}];

impl Column {
    /// The figure of a row.
    pub fn figure(&self, figures: &Figures, row: &str) -> Option<Spread> {
        figures.spread(&self.keys.replacen('*', row, 1))
    }
}

impl Page {
    /// Names of the rows, in the order in which they were first measured.
    pub fn rows<'a>(&self, figures: &'a Figures) -> Vec<&'a str> {
        let mut rows = Vec::new();
        for (key, _) in figures.rounds() {
            for row in self.columns.iter().filter_map(|column| star(column.keys, key)) {
                if !rows.contains(&row) {
                    rows.push(row);
                }
            }
        }
        rows
    }

    /// The table in Markdown.
    pub fn table(&self, figures: &Figures) -> String {
        let headings: Vec<_> = self.columns.iter().map(|column| column.heading).collect();
        let mut text =
            format!("| | {} |\n|---|{}\n", headings.join(" | "), "---|".repeat(self.columns.len()));
        for row in self.rows(figures) {
            text.push_str(&format!("| {} |", words(row)));
            for column in self.columns {
                text.push_str(&column.figure(figures, row).map_or_else(|| " |".into(), cell));
            }
            text.push('\n');
        }
        text
    }
}

fn cell(spread: Spread) -> String {
    let Spread { median, min, max } = spread;
    if min < max {
        format!(" {} ({}-{}) |", round(median), round(min), round(max))
    } else {
        format!(" {} |", round(median))
    }
}

/// A row as a reader wants it: `live.128.idle` is `live 128 idle`.
pub fn words(row: &str) -> String {
    row.replace(['.', '_'], " ")
}

/// Three digits that say something.
pub fn round(value: f64) -> String {
    let magnitude = value.abs();
    let digits = match magnitude {
        0.0 => 0,
        // Not below 10: there the digits before the point are enough.
        _ if magnitude >= 100.0 => 0,
        _ => (2 - magnitude.log10().floor() as i32).clamp(0, 9),
    };
    format!("{value:.*}", usize::try_from(digits).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_are_left() {
        let shown = [0.0, 1_106_022.7, 123.4, 26.04, 9.99, 0.000_024_6, -3.333].map(round);
        assert_eq!(shown, ["0", "1106023", "123", "26.0", "9.99", "0.0000246", "-3.33"]);
    }
}

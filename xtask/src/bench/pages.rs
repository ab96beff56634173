//! What is shown of the figures: one table and one picture per page.

use super::Part;
use super::figures::{Figures, Spread};

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

impl Column {
    /// The row that a key belongs to.
    fn row<'a>(&self, key: &'a str) -> Option<&'a str> {
        let (before, after) = self.keys.split_once('*')?;
        key.strip_prefix(before)?.strip_suffix(after).filter(|row| !row.is_empty())
    }

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
            for row in self.columns.iter().filter_map(|column| column.row(key)) {
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

    #[test]
    fn the_star_names_the_row() {
        let column = told("gap", "pause.*.gap_ms");
        assert_eq!(column.row("pause.live.128.idle.gap_ms"), Some("live.128.idle"));
        assert_eq!(column.row("pause.live.128.idle.pause_ms"), None);
        assert_eq!(column.row("pause..gap_ms"), None);
    }
}

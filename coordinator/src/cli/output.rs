//! Tables for people, JSON for programs; both on stdout.

use std::io::{IsTerminal, Write, stdout};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::failure::{CliError, Result, plain, steers};

/// Counts up when a field of the JSON changes its meaning or goes.
const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Versioned<'a, T> {
    schema: u32,
    #[serde(flatten)]
    body: &'a T,
}

/// Prints `body`'s fields in one object with the schema version.
pub fn json<T: Serialize>(body: &T) -> Result<()> {
    let text = serde_json::to_string(&Versioned { schema: SCHEMA, body })
        .map_err(|error| CliError::internal(format!("cannot write the answer as JSON: {error}")))?;
    // JSON lets the controls from 0x7f on stand as they are, in its strings, where alone they can be.
    let escaped = |letter: char| match steers(letter) {
        true => format!("\\u{:04x}", u32::from(letter)),
        false => letter.to_string(),
    };
    line(&text.chars().map(escaped).collect::<String>())
}

/// Prints one line. A reader that has gone away (`| head`) wants no more, and no complaint either.
pub fn line(text: &str) -> Result<()> {
    match writeln!(stdout(), "{}", plain(text)) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CliError::internal(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints rows under a header, as wide as the terminal allows.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    if stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    // A line break in a name would look like another row.
    table.add_rows(rows.into_iter().map(|row| row.into_iter().map(|cell| cell.replace('\n', "\\u{a}"))));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for row in table.lines() {
        line(row.trim_end())?;
    }
    Ok(())
}

/// Milliseconds with one digit, or a dash.
pub fn ms(value: Option<f64>) -> String {
    value.map_or_else(dash, |value| format!("{value:.1}"))
}

/// Milliseconds with two digits, or a dash.
pub fn fine_ms(value: Option<f64>) -> String {
    value.map_or_else(dash, |value| format!("{value:.2}"))
}

/// Bytes in the largest unit that leaves a digit before the point.
pub fn bytes(value: Option<u64>) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let Some(value) = value else { return dash() };
    let mut size = value as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value} B") } else { format!("{size:.1} {}", UNITS[unit]) }
}

/// The text, or a dash for what is not known.
pub fn known(value: Option<impl ToString>) -> String {
    value.map_or_else(dash, |value| value.to_string())
}

fn dash() -> String {
    "-".to_owned()
}

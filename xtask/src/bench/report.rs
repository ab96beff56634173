//! Results for machines and for readers.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::Part;
use super::figures::Figures;
use super::machine::Machine;
use super::pages::{self, Page, round};
use super::{plot, targets};

/// Everything that a run found out.
#[derive(Debug)]
pub struct Report<'a> {
    /// The figures.
    pub figures: Figures,
    /// Where they were measured.
    pub machine: Machine,
    /// What was measured.
    pub parts: &'a [Part],
    /// Were there only few rounds?
    pub quick: bool,
}

impl Report<'_> {
    /// The one JSON object.
    pub fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("schema".into(), json!(1));
        object.insert("quick".into(), json!(self.quick));
        object.insert("machine".into(), json!(self.machine));
        object.extend(self.figures.tree());
        object.insert("spread".into(), self.figures.spreads());
        object.insert("missing".into(), json!(self.figures.missing()));
        object.insert("targets".into(), json!(targets::all(&self.figures)));
        Value::Object(object)
    }

    /// The page for readers.
    pub fn markdown(&self) -> String {
        let mut text = self.head();
        for page in self.pages() {
            let (title, unit) = (page.title, page.unit);
            let _ = writeln!(text, "## {title} ({unit})\n\n{}\n\n{}", page.note, page.table(&self.figures));
        }
        text
    }

    /// Pages that have something to show.
    fn pages(&self) -> impl Iterator<Item = &'static Page> {
        let pages = self.parts.iter().flat_map(|part| pages::of(*part));
        pages.filter(|page| !page.rows(&self.figures).is_empty())
    }

    fn head(&self) -> String {
        let Machine { cpu, cores, memory_mb, kernel, qemu, date, load } = &self.machine;
        let quick = if self.quick { " --quick" } else { "" };
        let names: Vec<_> = self.parts.iter().map(|part| part.name()).collect();
        let mut text = format!(
            "# Benchmarks\n\nWritten by `cargo xtask bench{quick} {}` on {date} UTC.\n\n\
             {cores} x {cpu}, {memory_mb} MiB, Linux {kernel}, QEMU {qemu}; load before the run {load:.2} per core.\n\n\
             The candidates of each table are measured in turn, round after round. A cell is the median of the rounds, with \
             the least and the most in parentheses.\n\n",
            names.join(" ")
        );
        let targets = targets::all(&self.figures);
        if !targets.is_empty() {
            text.push_str("## Targets\n\n| target | at most | reached | | |\n|---|---|---|---|---|\n");
        }
        for target in targets {
            let verdict = if target.met { "met" } else { "**not met**" };
            let (goal, reached) = (round(target.goal), round(target.reached));
            let _ =
                writeln!(text, "| {} | {goal} | {reached} | {verdict} | {} |", target.name, target.remark);
        }
        for (what, why) in self.figures.missing() {
            let _ = writeln!(text, "\nNot measured: `{what}`: {why}");
        }
        text.push('\n');
        text
    }

    /// Writes `result.json`, `rounds.csv`, `report.md` and one SVG per table.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let mut files = vec![
            ("result.json".to_owned(), format!("{:#}\n", self.json())),
            ("rounds.csv".to_owned(), self.figures.csv()),
            ("report.md".to_owned(), self.markdown()),
        ];
        for page in self.pages() {
            let name = page.title.to_lowercase().replace(' ', "-");
            files.push((format!("{name}.svg"), plot::bars(page, &self.figures)?));
        }
        for (name, text) in files {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report<'static> {
        let mut figures = Figures::default();
        for value in [20.0, 30.0, 26.0] {
            figures.add("colour.switch_ns.mapped_store", value);
            figures.add("colour.switch_ns.iptables_legacy", value * 40_000.0);
        }
        figures.add("colour.added_ns.idle", 46.0);
        Report { figures, machine: super::super::machine::facts(), parts: &[Part::Colour], quick: false }
    }

    #[test]
    fn the_json_has_the_promised_fields() {
        let json = report().json();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["colour"]["switch_ns"]["mapped_store"], 26.0);
        assert_eq!(json["spread"]["colour.switch_ns.mapped_store"]["max"], 30.0);
        assert_eq!(json["targets"][0]["met"], true);
        assert!(json["machine"]["kernel"].is_string());
    }

    #[test]
    fn pages_tell_the_figures() {
        let page = report().markdown();
        assert!(page.contains("| mapped store | 26.0 (20.0-30.0) |"), "{page}");
        assert!(
            page.contains("| colour switch, mapped store / iptables-legacy | 0.00100 | 0.0000250 | met |"),
            "{page}"
        );
        assert!(page.contains("| idle | | 46.0 |"), "{page}");
    }

    #[test]
    fn everything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        report().write(folder.path()).unwrap();
        let picture = std::fs::read_to_string(folder.path().join("switching-the-colour.svg")).unwrap();
        assert!(picture.contains("mapped store") && !picture.contains("NaN"), "{picture}");
        let lines = std::fs::read_to_string(folder.path().join("rounds.csv")).unwrap();
        assert!(lines.contains("colour.switch_ns.mapped_store,3,26\n"));
    }
}

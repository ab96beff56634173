//! All figures of a run: medians and spread, by key.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use unasnap_tests::sample::{Record, median};

/// Every round of every figure, in the order in which they were first measured.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    rounds: Vec<(String, Vec<f64>)>,
    missing: BTreeMap<String, String>,
}

/// How the rounds of one figure spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Figures {
    /// Takes one figure of one round.
    pub fn add(&mut self, key: &str, value: f64) {
        match self.rounds.iter_mut().find(|(known, _)| known == key) {
            Some((_, values)) => values.push(value),
            None => self.rounds.push((key.to_owned(), vec![value])),
        }
    }

    /// Takes what a measuring program said.
    pub fn take(&mut self, record: Record) {
        match record {
            Record::Sample { key, value } => self.add(&key, value),
            Record::Missing { key, missing } => {
                eprintln!("bench: {key} is not measured: {missing}");
                self.missing.insert(key, missing);
            }
        }
    }

    /// What could not be measured, and why.
    pub fn missing(&self) -> &BTreeMap<String, String> {
        &self.missing
    }

    /// Was this measured, or was it said why not?
    pub fn accounts_for(&self, key: &str) -> bool {
        self.missing.contains_key(key) || self.rounds.iter().any(|(known, _)| known == key)
    }

    /// Every figure with its rounds.
    pub fn rounds(&self) -> impl Iterator<Item = (&str, &[f64])> {
        self.rounds.iter().map(|(key, values)| (key.as_str(), values.as_slice()))
    }

    /// One figure's spread.
    pub fn spread(&self, key: &str) -> Option<Spread> {
        let (_, values) = self.rounds.iter().find(|(known, _)| known == key)?;
        let fold = |least: fn(f64, f64) -> f64| values.iter().copied().reduce(least);
        Some(Spread { median: median(values)?, min: fold(f64::min)?, max: fold(f64::max)? })
    }

    /// One figure's median.
    pub fn median(&self, key: &str) -> Option<f64> {
        self.spread(key).map(|spread| spread.median)
    }

    /// Medians of all keys that fit a pattern with a star, with what stands for the star.
    pub fn fitting<'a>(&'a self, pattern: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.rounds.iter().filter_map(move |(key, _)| Some((star(pattern, key)?, self.median(key)?)))
    }

    /// All medians, as objects in objects.
    pub fn tree(&self) -> Map<String, Value> {
        let mut tree = Map::new();
        for (key, _) in &self.rounds {
            insert(&mut tree, key, json!(self.median(key)));
        }
        tree
    }

    /// Least, most and number of rounds of every figure, by its whole key.
    pub fn spreads(&self) -> Value {
        let spread = |(key, values): &(String, Vec<f64>)| {
            let found = self.spread(key)?;
            Some((key.clone(), json!({"min": found.min, "max": found.max, "rounds": values.len()})))
        };
        Value::Object(self.rounds.iter().filter_map(spread).collect())
    }

    /// One line per figure and round.
    pub fn csv(&self) -> String {
        let mut text = "key,round,value\n".to_owned();
        for (key, values) in &self.rounds {
            for (round, value) in (1..).zip(values) {
                text.push_str(&format!("{key},{round},{value}\n"));
            }
        }
        text
    }
}

/// What stands for the pattern's star in `key`; `None` when it does not fit.
pub fn star<'a>(pattern: &str, key: &'a str) -> Option<&'a str> {
    let (before, after) = pattern.split_once('*')?;
    key.strip_prefix(before)?.strip_suffix(after).filter(|found| !found.is_empty())
}

fn insert(tree: &mut Map<String, Value>, key: &str, value: Value) {
    let Some((first, rest)) = key.split_once('.') else {
        tree.insert(key.to_owned(), value);
        return;
    };
    let below = tree.entry(first).or_insert_with(|| json!({}));
    if let Value::Object(below) = below {
        insert(below, rest, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_star_stands_for_what_differs() {
        assert_eq!(star("pause.*.gap_ms", "pause.live.128.idle.gap_ms"), Some("live.128.idle"));
        assert_eq!(star("pause.*.gap_ms", "pause.live.128.idle.pause_ms"), None);
        assert_eq!(star("pause.*.gap_ms", "pause..gap_ms"), None);
    }

    #[test]
    fn rounds_become_medians_in_a_tree() {
        let mut figures = Figures::default();
        for value in [3.0, 9.0, 1.0] {
            figures.add("pause.live.128.idle.pause_ms", value);
        }
        figures.add("pause.live.128.idle.gap_ms", 5.0);
        let tree = Value::Object(figures.tree());
        assert_eq!(tree["pause"]["live"]["128"]["idle"], json!({"pause_ms": 3.0, "gap_ms": 5.0}));
        assert_eq!(
            figures.spreads()["pause.live.128.idle.pause_ms"],
            json!({"min": 1.0, "max": 9.0, "rounds": 3})
        );
        assert!(figures.csv().contains("pause.live.128.idle.pause_ms,2,9\n"));
        assert_eq!(figures.median("pause.live"), None);
    }
}

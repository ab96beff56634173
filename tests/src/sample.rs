//! Figures: how a measuring program says them, one JSON line each, and how many become one.

use serde::{Deserialize, Serialize};

/// One line on a measuring program's standard output. Parts of a key are joined by dots.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Record {
    /// One figure of one round; the key's last part names the unit.
    Sample {
        /// What was measured.
        key: String,
        /// The figure.
        value: f64,
    },
    /// Something that cannot be measured on this machine.
    Missing {
        /// What would have been measured.
        key: String,
        /// Why not.
        missing: String,
    },
}

impl Record {
    /// Prints the line. A reader who is gone wants no more lines.
    pub fn print(&self) {
        if let Ok(line) = serde_json::to_string(self) {
            crate::meter::print_line(&line);
        }
    }
}

/// Prints one figure of one round.
pub fn sample(key: &str, value: f64) {
    Record::Sample { key: key.to_owned(), value }.print();
}

/// Says that something cannot be measured here.
pub fn missing(key: &str, why: &str) {
    Record::Missing { key: key.to_owned(), missing: why.to_owned() }.print();
}

/// The median; `None` of nothing.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len().is_multiple_of(2) { (sorted[sorted.len() / 2 - 1] + upper) / 2.0 } else { upper })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
    }

    #[test]
    fn lines_are_told_apart() {
        let read = |line: &str| serde_json::from_str::<Record>(line).unwrap();
        assert_eq!(read(r#"{"key":"a.b","value":2}"#), Record::Sample { key: "a.b".into(), value: 2.0 });
        let missing = Record::Missing { key: "c".into(), missing: "no such tool".into() };
        assert_eq!(read(&serde_json::to_string(&missing).unwrap()), missing);
    }
}

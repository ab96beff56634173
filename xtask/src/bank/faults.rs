//! The mistakes of the published protocol, by the labels that the programs know, and what each needs to show.

use anyhow::{Context, Result};

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mistake {
    /// What `UNASNAP_TEST_FAULT` calls it.
    pub label: &'static str,
    /// Does the network have to clear the marks?
    pub bleached: bool,
    /// Must one VM be prepared late?
    pub prepares_late: bool,
}

const fn mistake(label: &'static str) -> Mistake {
    Mistake { label, bleached: false, prepares_late: false }
}

/// In the order of protocol.md, section 6.
pub const ALL: [Mistake; 5] = [
    Mistake { prepares_late: true, ..mistake("no-barrier") },
    mistake("uncoloured-too-early"),
    mistake("send-flipped-late"),
    mistake("receive-flipped-early"),
    Mistake { bleached: true, ..mistake("bleached-without-strict") },
];

/// Which ones the user wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice(pub Vec<Mistake>);

/// Reads a label, or `all`.
///
/// # Errors
/// There is no such mistake.
pub fn parse(text: &str) -> Result<Choice> {
    let chosen: Vec<_> = ALL.into_iter().filter(|one| text == "all" || one.label == text).collect();
    let labels = ALL.map(|one| one.label).join(", ");
    (!chosen.is_empty()).then_some(Choice(chosen)).with_context(|| format!("choose one of: {labels}, all"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_or_all_can_be_chosen() {
        assert_eq!(parse("all").unwrap().0.len(), 5);
        assert_eq!(parse("no-barrier").unwrap().0, [ALL[0]]);
        assert!(parse("barrier").unwrap_err().to_string().contains("send-flipped-late"));
    }
}

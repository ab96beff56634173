//! Names that come over the wire and end in paths, tables and messages: validated once, here.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest name, bytes. It keeps every derived path component below 255 bytes.
pub const MAX_NAME_BYTES: usize = 63;

/// Name of a host, VM, deployment or snapshot: `[a-z0-9][a-z0-9-]*`, 1 to [`MAX_NAME_BYTES`] bytes.
///
/// The alphabet has no dot, slash or control character, so a name is safe as a path component, in a
/// terminal and in a certificate.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

/// A text that is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a valid name: use 1 to {MAX_NAME_BYTES} characters of a-z, 0-9 and '-', not beginning with '-'"
)]
pub struct BadName(String);

impl Name {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`BadName`] with the text, shortened, and the rule.
    pub fn new(text: &str) -> Result<Self, BadName> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let fits = (1..=MAX_NAME_BYTES).contains(&text.len());
        if fits && text.bytes().all(allowed) && !text.starts_with('-') {
            Ok(Self(text.into()))
        } else {
            Err(BadName(text.chars().take(MAX_NAME_BYTES + 1).collect()))
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = BadName;
    fn try_from(text: String) -> Result<Self, BadName> {
        Self::new(&text)
    }
}

impl std::str::FromStr for Name {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        Self::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_folder_or_its_line() {
        for good in ["a", "vm-1", "0", &"x".repeat(63)] {
            assert!(Name::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "..", "a/b", "A", "a\n", "é", "a.b", &"x".repeat(64)] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
    }
}

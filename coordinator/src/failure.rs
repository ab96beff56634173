//! Errors of the command: one kind per exit code, and words that say what to do.

use std::fmt;

use unasnap_channel::ChannelError;
use unasnap_files::FilesError;
use unasnap_protocol::operator::{RequestError, RequestErrorKind};

/// Shown at the end of `--help`.
pub const EXIT_CODES: &str = "Exit codes:
  0  done
  1  internal error
  2  wrong usage, configuration or file
  3  the coordinator cannot be reached, or the two do not trust each other
  4  no such snapshot, deployment, host or VM, or needed files are missing
  5  refused, or begun and undone (e.g. a snapshot that was aborted)
  6  timed out
`vm exec` ends with the command's own code, or with 128 and the signal that killed it; errors of unasnap's are 201 to 206 then";

/// Kind of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A defect, or an error of this machine.
    Internal,
    /// Wrong usage or configuration.
    Usage,
    /// Cannot reach the coordinator, or no trust.
    Connection,
    /// No such thing.
    NotFound,
    /// Refused, or undone.
    Refused,
    /// A wait ran out.
    TimedOut,
}

/// What ends a command.
#[derive(Debug, Clone)]
pub struct CliError {
    /// Decides the exit code.
    pub kind: Kind,
    text: String,
    code: Option<u8>,
}

impl Kind {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::Usage => 2,
            Self::Connection => 3,
            Self::NotFound => 4,
            Self::Refused => 5,
            Self::TimedOut => 6,
        }
    }
}

/// What commands return.
pub type Result<T> = std::result::Result<T, CliError>;

impl CliError {
    /// An error with its words.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), code: None }
    }

    /// Wrong usage or configuration.
    pub fn usage(text: impl Into<String>) -> Self {
        Self::new(Kind::Usage, text)
    }

    /// A defect, or an error of this machine.
    pub fn internal(text: impl Into<String>) -> Self {
        Self::new(Kind::Internal, text)
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        self.code.unwrap_or_else(|| self.kind.code())
    }

    /// With this exit code.
    pub fn exiting(self, code: u8) -> Self {
        Self { code: Some(code), ..self }
    }

    /// With an exit code above `base`, unless it has one already.
    pub fn above(self, base: u8) -> Self {
        let code = self.code.or_else(|| base.checked_add(self.kind.code()));
        Self { code, ..self }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&plain(&self.text))
    }
}

/// Words fit for a terminal. Some come from hosts, guests and files of others, who must not move a cursor, rename a window or
/// turn the direction of writing.
pub fn plain(text: &str) -> String {
    let harmless = |letter: char| letter == '\n' || !steers(letter);
    let shown = |letter: char| {
        if harmless(letter) { letter.to_string() } else { letter.escape_unicode().to_string() }
    };
    text.chars().map(shown).collect()
}

/// Does a terminal obey this letter instead of showing it?
pub fn steers(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl From<FilesError> for CliError {
    fn from(error: FilesError) -> Self {
        let kind = match error {
            FilesError::NoSnapshot { .. } | FilesError::Ambiguous { .. } => Kind::NotFound,
            _ => Kind::Usage,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<RequestError> for CliError {
    fn from(error: RequestError) -> Self {
        let kind = match error.kind {
            RequestErrorKind::NotAllowed => Kind::Connection,
            RequestErrorKind::NotFound => Kind::NotFound,
            RequestErrorKind::Refused | RequestErrorKind::Aborted => Kind::Refused,
            RequestErrorKind::TimedOut => Kind::TimedOut,
            RequestErrorKind::Internal => Kind::Internal,
        };
        Self::new(kind, error.text)
    }
}

impl From<ChannelError> for CliError {
    fn from(error: ChannelError) -> Self {
        let kind = match error {
            ChannelError::Stalled | ChannelError::NotReading => Kind::TimedOut,
            _ => Kind::Connection,
        };
        Self::new(kind, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        let text = "a\u{1b}[2Jb\n\u{9b}c\u{202e}d\u{7f}é\"";
        assert_eq!(plain(text), "a\\u{1b}[2Jb\n\\u{9b}c\\u{202e}d\\u{7f}é\"");
    }
}

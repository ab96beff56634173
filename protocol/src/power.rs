//! Single VMs started, stopped, paused, resumed and reset: the verbs, which VMs they are for, and what became of it.
//!
//! No verb is carried out while anything is under way for the VM's deployment: the promises of a snapshot are made on
//! VMs that nobody else touches.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::control::VmState;
use crate::name::{MAX_NAME_BYTES, Name};

/// Most patterns of one request.
pub const MAX_PATTERNS: usize = 64;

/// What is done to a VM. Each is idempotent: a VM that stands as it would afterwards is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Boots a VM that does not run, from its disks as it left them.
    Start,
    /// Presses the power button and waits until the guest has shut down.
    Stop,
    /// Ends the VM at once, as a power failure would.
    Kill,
    /// Stops the vCPUs.
    Pause,
    /// Lets a paused VM run on.
    Resume,
    /// Ends a running VM at once and boots it, as its reset button would.
    Reset,
}

impl Verb {
    /// As the command calls it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Kill => "stop --force",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Reset => "reset",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.label())
    }
}

/// Which VMs are meant: a name in which `*` stands for any characters and `?` for any one.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

/// A text that is not a [`Pattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no name or pattern of VMs: use 1 to {MAX_NAME_BYTES} characters of a-z, 0-9, '-', '*' and '?'"
)]
pub struct BadPattern(String);

impl Pattern {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`BadPattern`] with the text, shortened, and the rule.
    pub fn new(text: &str) -> Result<Self, BadPattern> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-*?".contains(&byte);
        if (1..=MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadPattern(text.chars().take(MAX_NAME_BYTES + 1).collect()))
        }
    }

    /// Is this VM meant? Takes time of the pattern's length times the name's at most.
    #[must_use]
    pub fn matches(&self, name: &Name) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_str().as_bytes());
        let (mut at, mut next) = (0, 0);
        // Where the last star stands, and where the name goes on behind what it stands for so far.
        let mut star: Option<(usize, usize)> = None;
        while at < name.len() {
            match pattern.get(next) {
                Some(b'*') => {
                    star = Some((next, at));
                    next += 1;
                }
                Some(byte) if *byte == b'?' || *byte == name[at] => {
                    at += 1;
                    next += 1;
                }
                _ => {
                    let Some((place, behind)) = star else { return false };
                    star = Some((place, behind + 1));
                    (at, next) = (behind + 1, place + 1);
                }
            }
        }
        pattern[next..].iter().all(|byte| *byte == b'*')
    }
}

impl TryFrom<String> for Pattern {
    type Error = BadPattern;
    fn try_from(text: String) -> Result<Self, BadPattern> {
        Self::new(&text)
    }
}

impl std::str::FromStr for Pattern {
    type Err = BadPattern;
    fn from_str(text: &str) -> Result<Self, BadPattern> {
        Self::new(text)
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0
    }
}

impl From<Name> for Pattern {
    fn from(name: Name) -> Self {
        Self(name.as_str().to_owned())
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// One to [`MAX_PATTERNS`] patterns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Pattern>", into = "Vec<Pattern>")]
pub struct Patterns(Vec<Pattern>);

/// None, or too many.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} patterns in one request; give 1 to {MAX_PATTERNS}")]
pub struct BadPatterns(usize);

impl Patterns {
    /// All of them.
    #[must_use]
    pub fn as_slice(&self) -> &[Pattern] {
        &self.0
    }
}

impl TryFrom<Vec<Pattern>> for Patterns {
    type Error = BadPatterns;
    fn try_from(patterns: Vec<Pattern>) -> Result<Self, BadPatterns> {
        if (1..=MAX_PATTERNS).contains(&patterns.len()) {
            Ok(Self(patterns))
        } else {
            Err(BadPatterns(patterns.len()))
        }
    }
}

impl From<Patterns> for Vec<Pattern> {
    fn from(patterns: Patterns) -> Self {
        patterns.0
    }
}

/// The operator's wish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlRequest {
    /// What is to be done.
    pub verb: Verb,
    /// To which VMs.
    pub vms: Patterns,
}

/// How a VM stands after a verb was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Controlled {
    /// What it does now.
    pub state: VmState,
    /// Of the running instance; 0 when there is none.
    pub incarnation: u64,
    /// Was there anything to do?
    pub changed: bool,
    /// What the operator should know, in words; empty when there is nothing.
    pub note: String,
}

/// What became of a verb.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ControlReport {
    /// What was asked for.
    pub verb: Verb,
    /// Every VM that was meant, in the order of their names.
    pub vms: Vec<ControlledVm>,
}

/// What became of it at one VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ControlledVm {
    /// The VM.
    pub vm: Name,
    /// Its host.
    pub host: Name,
    /// What it does now; `None` when that is not known.
    pub state: Option<VmState>,
    /// Was there anything to do?
    pub changed: bool,
    /// What the operator should know.
    pub note: Option<String>,
    /// Why it was not carried out; `None` when it was.
    pub problem: Option<String>,
    /// Did a wait run out?
    pub timed_out: bool,
    /// From the order until the answer.
    pub ms: f64,
}

/// A deployment that was saved and powered off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PauseReport {
    /// The deployment.
    pub deployment: Name,
    /// What brings it back.
    pub snapshot: Name,
    /// Every member, in the order of their names.
    pub vms: Vec<ControlledVm>,
}

/// A deployment that was powered off, to go on where it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PausedDeployment {
    /// Which.
    pub deployment: Name,
    /// What it goes on from.
    pub snapshot: Name,
    /// Was that for the user of a host? Then it goes on by itself.
    pub for_user: bool,
}

/// Whether a deployment gives way to the users of its hosts: it is paused when somebody sits down at one of them, and resumed
/// when nobody is left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivingWay {
    /// Which.
    pub deployment: Name,
    /// Does it, from now on?
    pub on: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        Pattern::new(pattern).unwrap().matches(&Name::new(name).unwrap())
    }

    #[test]
    fn a_pattern_means_what_a_shell_would_take_it_for() {
        for (pattern, name) in [
            ("ring-1", "ring-1"),
            ("ring-*", "ring-1"),
            ("ring-*", "ring-"),
            ("*", "a"),
            ("*-1", "ring-1"),
            ("r*g-?", "ring-2"),
            ("*a*b*", "xxaxxbxx"),
            ("a*ab", "aaab"),
            ("**", "x"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("ring-1", "ring-10"),
            ("ring-10", "ring-1"),
            ("ring-?", "ring-"),
            ("ring-?", "ring-10"),
            ("?", "ab"),
            ("*-1", "ring-12"),
            ("a*b*c", "acb"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    /// A matcher that tries every split would not come back from this.
    #[test]
    fn stars_do_not_multiply() {
        assert!(!matches(&format!("{}c", "*a".repeat(31)), &"a".repeat(63)));
    }

    #[test]
    fn what_is_no_pattern_does_not_come_off_the_wire() {
        for bad in ["", "A*", "a/b", "[ab]", "a.b", "..", "é", &"*".repeat(64)] {
            assert!(Pattern::new(bad).is_err(), "{bad:?}");
            let wire = postcard::to_allocvec(bad).unwrap();
            assert!(postcard::from_bytes::<Pattern>(&wire).is_err(), "{bad:?}");
        }
        for count in [0, MAX_PATTERNS + 1] {
            let wire = postcard::to_allocvec(&vec!["*"; count]).unwrap();
            assert!(postcard::from_bytes::<Patterns>(&wire).is_err(), "{count}");
        }
        let wire = postcard::to_allocvec(&vec!["*"; MAX_PATTERNS]).unwrap();
        assert!(postcard::from_bytes::<Patterns>(&wire).is_ok());
    }
}

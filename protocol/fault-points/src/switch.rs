//! The environment variable, read once; and the file that it may name, read whenever a point is reached.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use nix::sys::signal::{Signal, raise};

use crate::trigger::{Action, Moment, Trigger};
use crate::{Effect, SWITCH};

static CHOSEN: OnceLock<Option<Switch>> = OnceLock::new();

/// `None` while nobody wants anything, which is always but in tests.
pub(crate) fn get() -> Option<&'static Switch> {
    CHOSEN.get_or_init(|| std::env::var(SWITCH).ok().and_then(|text| Switch::new(&text))).as_ref()
}

/// What is armed.
#[derive(Debug)]
pub(crate) struct Switch {
    file: Option<PathBuf>,
    armed: Mutex<Armed>,
}

#[derive(Debug, Default)]
struct Armed {
    /// What `trigger` was read from.
    text: String,
    trigger: Option<Trigger>,
    passed: u32,
}

impl Switch {
    /// `None` for the empty text.
    fn new(text: &str) -> Option<Self> {
        let mut armed = Armed::default();
        let file = text.strip_prefix('@').map(PathBuf::from);
        if file.is_none() {
            armed.take(text);
        }
        (!text.is_empty()).then_some(Self { file, armed: Mutex::new(armed) })
    }

    fn armed(&self) -> MutexGuard<'_, Armed> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn reach(&self, moment: Moment, group: &str, step: &str) -> Effect {
        let action = {
            let mut armed = self.armed();
            if let Some(file) = &self.file {
                // A file that is not there says nothing.
                armed.take(std::fs::read_to_string(file).unwrap_or_default().trim());
            }
            armed.pass(moment, group, step)
        };
        let Some(action) = action else { return Effect::None };
        // Tests wait for this line. To a log that is full it is lost.
        eprintln!("fault point {group}.{step}.{} reached: {action:?}", moment.label());
        match action {
            Action::Kill => {
                // SIGKILL cannot be refused, and nothing comes after it.
                let _ = raise(Signal::SIGKILL);
                Effect::Hang
            }
            Action::Error => {
                let text = format!("fault point {group}.{step}.{}", moment.label());
                Effect::Fail(io::Error::other(text))
            }
            Action::Hang => Effect::Hang,
            Action::Delay(time) => Effect::Delay(time),
        }
    }
}

impl Armed {
    /// Arms what the text says, unless that is what it said before.
    fn take(&mut self, text: &str) {
        if self.text == text {
            return;
        }
        let trigger = (!text.is_empty()).then(|| Trigger::parse(text)).transpose();
        let trigger = trigger.unwrap_or_else(|why| {
            eprintln!("{SWITCH}: {why}");
            None
        });
        *self = Self { text: text.to_owned(), trigger, passed: 0 };
    }

    /// Counts a point that is passed; the action when it is the one, once.
    fn pass(&mut self, moment: Moment, group: &str, step: &str) -> Option<Action> {
        let trigger = self.trigger.as_ref().filter(|trigger| trigger.is_at(moment, group, step))?;
        self.passed += 1;
        (self.passed == trigger.nth).then_some(trigger.action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(switch: &Switch, step: &str) -> bool {
        matches!(switch.reach(Moment::Before, "order", step), Effect::Fail(_))
    }

    #[test]
    fn a_trigger_acts_once_and_only_at_its_point() {
        let switch = Switch::new("order.Arm.before:2=error").unwrap();
        let reached: Vec<_> = ["Arm", "Take", "Arm", "Arm"].iter().map(|step| fails(&switch, step)).collect();
        assert_eq!(reached, [false, false, true, false]);
        assert!(Switch::new("").is_none());
    }

    #[test]
    fn a_file_can_arm_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("point");
        let switch = Switch::new(&format!("@{}", path.display())).unwrap();
        assert!(!fails(&switch, "Arm"), "there is no file");
        std::fs::write(&path, "order.Arm.before=error\n").unwrap();
        assert!(fails(&switch, "Arm") && !fails(&switch, "Arm"));
        std::fs::write(&path, "order.Take.before=error").unwrap();
        assert!(!fails(&switch, "Arm") && fails(&switch, "Take"));
        std::fs::remove_file(&path).unwrap();
        assert!(!fails(&switch, "Take"));
        std::fs::write(&path, "order.Take.before=error").unwrap();
        assert!(fails(&switch, "Take"), "the same again");
        std::fs::write(&path, "nonsense").unwrap();
        assert!(!fails(&switch, "Take"));
    }
}

//! Which point acts, when, and how: `GROUP.STEP.before[:N][=ACTION]`.

use std::time::Duration;

use crate::points::is_listed;

/// Before a step or after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Nothing of the step has happened.
    Before,
    /// All of it has.
    After,
}

impl Moment {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Before, Self::After];

    /// Last part of a point's name.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
        }
    }
}

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The program sends itself SIGKILL.
    Kill,
    /// The step fails.
    Error,
    /// The step never goes on; the rest of the program does.
    Hang,
    /// The step goes on so much later.
    Delay(Duration),
}

/// One point with what is to happen there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    group: String,
    step: String,
    moment: Moment,
    /// How often the point is passed before: 1 is the first time.
    pub nth: u32,
    /// What happens then.
    pub action: Action,
}

impl Trigger {
    /// Reads what the environment variable says.
    ///
    /// # Errors
    /// In words: there is no such point or action.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (point, action) = text.split_once('=').unwrap_or((text, "kill"));
        let (name, nth) = point.split_once(':').unwrap_or((point, "1"));
        let wrong = |what: &str| format!("{text:?} is not GROUP.STEP.before[:N][=ACTION]: {what}");
        let (step, moment) = name.rsplit_once('.').ok_or_else(|| wrong("it has no dots"))?;
        let (group, step) = step.split_once('.').ok_or_else(|| wrong("it has one dot"))?;
        let moment = Moment::ALL.into_iter().find(|known| known.label() == moment);
        let moment = moment.ok_or_else(|| wrong("its last part is before or after"))?;
        if !is_listed(group, step) {
            return Err(wrong("there is no such step"));
        }
        let nth = nth.parse().ok().filter(|nth| *nth > 0).ok_or_else(|| wrong("N counts from 1"))?;
        let action = match (action, action.strip_prefix("delay=")) {
            ("kill", _) => Action::Kill,
            ("error", _) => Action::Error,
            ("hang", _) => Action::Hang,
            (_, Some(ms)) => {
                let ms = ms.parse().map_err(|_| wrong("delay takes milliseconds"))?;
                Action::Delay(Duration::from_millis(ms))
            }
            _ => return Err(wrong("an action is kill, error, hang or delay=MS")),
        };
        Ok(Self { group: group.to_owned(), step: step.to_owned(), moment, nth, action })
    }

    /// Is it about this point?
    #[must_use]
    pub fn is_at(&self, moment: Moment, group: &str, step: &str) -> bool {
        self.moment == moment && self.group == group && self.step == step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trigger_is_read_with_its_defaults() {
        let plain = Trigger::parse("order.Arm.after").unwrap();
        assert!(plain.is_at(Moment::After, "order", "Arm") && !plain.is_at(Moment::Before, "order", "Arm"));
        assert_eq!((plain.nth, plain.action), (1, Action::Kill));
        let full = Trigger::parse("qmp.stop.before:3=delay=250").unwrap();
        assert_eq!((full.nth, full.action), (3, Action::Delay(Duration::from_millis(250))));
        assert_eq!(Trigger::parse("file.ram.after=error").unwrap().action, Action::Error);
        assert_eq!(Trigger::parse("guest.FlipSend.after=hang").unwrap().action, Action::Hang);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, words) in [
            ("order", "no dots"),
            ("order.Arm", "one dot"),
            ("order.Arm.meanwhile", "before or after"),
            ("order.Alarm.before", "no such step"),
            ("order.Arm.before:0", "counts from 1"),
            ("order.Arm.before=explode", "an action is"),
            ("order.Arm.before=delay=soon", "milliseconds"),
        ] {
            let why = Trigger::parse(text).unwrap_err();
            assert!(why.contains(words), "{why}");
        }
    }
}

//! Fault points: named places in the shipped programs at which a test lets the program die, fail, wait or hang.
//!
//! A point is `GROUP.STEP.before` or `GROUP.STEP.after`; [`GROUPS`] is the list of all. Nothing happens at any of them
//! unless the environment variable [`SWITCH`] names one:
//!
//! ```text
//! UNASNAP_TEST_FAULT_POINT=order.Arm.after            SIGKILL to itself after the first ARM was sent
//! UNASNAP_TEST_FAULT_POINT=order.Arm.after:2=hang     never goes on after the second
//! UNASNAP_TEST_FAULT_POINT=file.write.before=error    the write fails
//! UNASNAP_TEST_FAULT_POINT=qmp.stop.before=delay=500  half a second later
//! UNASNAP_TEST_FAULT_POINT=@/run/fault-point          what this file says at the moment a point is reached
//! ```
//!
//! A trigger acts once. While the variable is not set a point costs the load of one static.

pub mod points;
mod switch;
pub mod trigger;

use std::io;
use std::time::Duration;

pub use points::{GROUPS, Group, Program};
pub use trigger::{Action, Moment, Trigger};

/// Environment variable that names the point, or the file that does.
pub const SWITCH: &str = "UNASNAP_TEST_FAULT_POINT";

/// What a point does to whoever reaches it.
#[derive(Debug)]
pub enum Effect {
    /// Nothing.
    None,
    /// The step fails.
    Fail(io::Error),
    /// The step is late.
    Delay(Duration),
    /// The step never goes on.
    Hang,
}

/// Reaches a point. [`Action::Kill`] ends the program here; for everything else the caller is told, so that async code
/// can wait in its own way.
#[must_use]
pub fn reach(moment: Moment, group: &'static str, step: &'static str) -> Effect {
    debug_assert!(points::is_listed(group, step), "{group}.{step} stands in no table of fault points");
    match switch::get() {
        None => Effect::None,
        Some(switch) => switch.reach(moment, group, step),
    }
}

/// Reaches the point before a step; blocks.
///
/// # Errors
/// A test wants the step to fail.
pub fn before(group: &'static str, step: &'static str) -> io::Result<()> {
    wait(reach(Moment::Before, group, step))
}

/// Reaches the point after a step; blocks.
///
/// # Errors
/// A test wants it to look as if the step had failed.
pub fn after(group: &'static str, step: &'static str) -> io::Result<()> {
    wait(reach(Moment::After, group, step))
}

/// Carries out a step between its two points; blocks.
///
/// # Errors
/// The step's, or those of the points.
pub fn around<T>(
    group: &'static str,
    step: &'static str,
    act: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    before(group, step)?;
    let done = act()?;
    after(group, step)?;
    Ok(done)
}

fn wait(effect: Effect) -> io::Result<()> {
    match effect {
        Effect::None => Ok(()),
        Effect::Fail(error) => Err(error),
        Effect::Delay(time) => {
            std::thread::sleep(time);
            Ok(())
        }
        Effect::Hang => loop {
            std::thread::park();
        },
    }
}

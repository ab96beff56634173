//! Fault points in async code: what a test makes wait holds up its step and no thread.

use std::io;

use unasnap_fault_points::{Effect, Moment, reach};

/// Reaches the point before a step.
///
/// # Errors
/// A test wants the step to fail.
pub async fn before(group: &'static str, step: &'static str) -> io::Result<()> {
    wait(reach(Moment::Before, group, step)).await
}

/// Reaches the point after a step.
///
/// # Errors
/// A test wants it to look as if the step had failed.
pub async fn after(group: &'static str, step: &'static str) -> io::Result<()> {
    wait(reach(Moment::After, group, step)).await
}

async fn wait(effect: Effect) -> io::Result<()> {
    match effect {
        Effect::None => Ok(()),
        Effect::Fail(error) => Err(error),
        Effect::Delay(time) => {
            tokio::time::sleep(time).await;
            Ok(())
        }
        Effect::Hang => std::future::pending().await,
    }
}

//! Small programs of the host that are run to their end.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::super::HypervisorError;
use crate::fault_point;

/// How long `ip` or `qemu-img` may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `program` and returns what it printed.
///
/// # Errors
/// `Tool` with its error output when it cannot be run, fails or takes too long (it is killed then).
pub(crate) async fn run(program: &'static str, arguments: &[&str]) -> Result<String, HypervisorError> {
    let failed = |reason: String| HypervisorError::Tool {
        command: format!("{program} {}", arguments.join(" ")),
        reason,
    };
    fault_point::before("tool", program).await.map_err(|error| failed(error.to_string()))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(failed(format!("{error} (is {program} installed?)"))),
        Err(_) => return Err(failed(format!("no end within {} s", PATIENCE.as_secs()))),
    };
    fault_point::after("tool", program).await.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let words = String::from_utf8_lossy(&output.stderr);
        Err(failed(format!("{}: {}", output.status, words.trim())))
    }
}

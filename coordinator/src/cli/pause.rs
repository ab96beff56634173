//! `unasnap pause` and `unasnap resume`: a whole deployment.

use serde::Serialize;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Reply, Request};
use unasnap_protocol::power::PauseReport;

use super::progress::Lines;
use super::{output, restore, vm};
use crate::client::Exchange;
use crate::config::ClientConfig;
use crate::failure::{CliError, Result};

#[derive(Serialize)]
struct Paused {
    pause: PauseReport,
}

#[derive(Serialize)]
struct Runs {
    runs: Name,
}

/// `pause`.
pub async fn pause(config: &ClientConfig, deployment: Name, json: bool) -> Result<()> {
    let mut exchange = Exchange::begin(config, &Request::Pause(deployment)).await?;
    let mut lines = Lines::new();
    let pause = loop {
        match exchange.next().await? {
            Reply::Progress(progress) => lines.show(&progress),
            Reply::Paused(report) => break report,
            other => return Err(exchange.unexpected(&other)),
        }
    };
    lines.clear();
    let (deployment, id) = (pause.deployment.clone(), pause.snapshot.clone());
    let failed = vm::failure(&pause.vms);
    if json {
        output::json(&Paused { pause })?;
    } else {
        output::line(&format!(
            "{deployment} is saved in {id}; `unasnap resume {deployment}` brings it back"
        ))?;
        vm::table(&pause.vms)?;
    }
    let Some((kind, problems)) = failed else { return Ok(()) };
    let text = format!(
        "{deployment} is saved in {id}, but not all of it is off: {problems}. `unasnap pause {deployment}` ends the rest, \
         `unasnap resume {deployment}` brings all of it back"
    );
    Err(CliError::new(kind, text))
}

/// `resume`.
pub async fn resume(config: &ClientConfig, deployment: Name, json: bool) -> Result<()> {
    let mut exchange = Exchange::begin(config, &Request::Resume(deployment)).await?;
    let mut lines = Lines::new();
    loop {
        match exchange.next().await? {
            Reply::Progress(progress) => lines.show(&progress),
            Reply::Restored(report) => {
                lines.clear();
                return restore::print(report, json);
            }
            Reply::Runs(runs) if json => return output::json(&Runs { runs }),
            Reply::Runs(deployment) => {
                return output::line(&format!("{deployment} runs; there is nothing to resume"));
            }
            other => return Err(exchange.unexpected(&other)),
        }
    }
}

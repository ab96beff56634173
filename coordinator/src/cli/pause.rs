//! `unasnap pause` and `unasnap resume`: a whole deployment.

use clap::ValueEnum;
use serde::Serialize;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Reply, Request};
use unasnap_protocol::power::{GivingWay, PauseReport};

use super::{output, progress, restore, vm};
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

/// Of `pause --for-user`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// From now on.
    On,
    /// Not any more.
    Off,
}

#[derive(Serialize)]
struct ForUser {
    for_user: GivingWay,
}

/// `pause --for-user`.
pub async fn for_user(config: &ClientConfig, deployment: Name, switch: Switch, json: bool) -> Result<()> {
    let wanted = GivingWay { deployment, on: switch == Switch::On };
    let for_user = match progress::ask(config, &Request::GiveWay(wanted)).await? {
        (_, Reply::GivesWay(now)) => now,
        (exchange, other) => return Err(exchange.unexpected(&other)),
    };
    if json {
        return output::json(&ForUser { for_user });
    }
    let deployment = &for_user.deployment;
    output::line(&if for_user.on {
        format!(
            "{deployment} is paused whenever somebody sits down at one of its hosts, and goes on when nobody is left"
        )
    } else {
        format!("{deployment} stays as it is, whoever sits at its hosts")
    })
}

/// `pause`.
pub async fn pause(config: &ClientConfig, deployment: Name, json: bool) -> Result<()> {
    let pause = match progress::ask(config, &Request::Pause(deployment)).await? {
        (_, Reply::Paused(report)) => report,
        (exchange, other) => return Err(exchange.unexpected(&other)),
    };
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
    match progress::ask(config, &Request::Resume(deployment)).await? {
        (_, Reply::Restored(report)) => restore::print(report, json),
        (_, Reply::Runs(runs)) if json => output::json(&Runs { runs }),
        (_, Reply::Runs(deployment)) => {
            output::line(&format!("{deployment} runs; there is nothing to resume"))
        }
        (exchange, other) => Err(exchange.unexpected(&other)),
    }
}

//! What is asked of a host and not of a VM.

use unasnap_protocol::household::{HostReport, HouseholdReport, HouseholdRequest, Task};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Reply, Request};

use super::progress;
use crate::client::Exchange;
use crate::config::ClientConfig;
use crate::failure::{CliError, Result};

/// What each host says.
pub async fn ask(config: &ClientConfig, request: &Request) -> Result<HouseholdReport> {
    let (exchange, answer) = progress::ask(config, request).await?;
    report(&exchange, answer)
}

/// What is in an answer.
pub fn report(exchange: &Exchange, answer: Reply) -> Result<HouseholdReport> {
    match answer {
        Reply::Household(report) => Ok(report),
        other => Err(exchange.unexpected(&other)),
    }
}

/// What the only host says that a task is for.
pub async fn ask_one(config: &ClientConfig, host: Option<Name>, task: Task) -> Result<HostReport> {
    only(ask(config, &Request::Household(HouseholdRequest { host, task })).await?)
}

/// The only host of a report.
pub fn only(report: HouseholdReport) -> Result<HostReport> {
    let only = report.hosts.into_iter().next();
    only.ok_or_else(|| CliError::internal("the coordinator names no host; look at its log"))
}

/// A host that says something else than what it was asked for.
pub fn other_answer(host: &Name) -> CliError {
    CliError::internal(format!("host {host} answers another question; look at its log"))
}

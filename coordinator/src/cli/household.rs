//! What is asked of a host and not of a VM.

use unasnap_protocol::household::{HostReport, HouseholdReport, HouseholdRequest, Task};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Reply, Request};

use super::progress;
use crate::config::ClientConfig;
use crate::failure::Result;

/// What each host says.
pub async fn ask(config: &ClientConfig, request: &Request) -> Result<HouseholdReport> {
    match progress::ask(config, request).await? {
        (_, Reply::Household(report)) => Ok(report),
        (exchange, other) => Err(exchange.unexpected(&other)),
    }
}

/// What the only host says that a task is for.
pub async fn ask_one(config: &ClientConfig, host: Option<Name>, task: Task) -> Result<HostReport> {
    let report = ask(config, &Request::Household(HouseholdRequest { host, task })).await?;
    let only = report.hosts.into_iter().next();
    only.ok_or_else(|| crate::failure::CliError::internal("the coordinator names no host; look at its log"))
}

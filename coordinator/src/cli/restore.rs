//! `unasnap restore`.

use serde::Serialize;
use unasnap_protocol::elsewhere::RestoreRequest;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Place, Reply, Request, RestoreReport};

use super::{output, progress};
use crate::config::ClientConfig;
use crate::failure::Result;

#[derive(Serialize)]
struct Restored {
    restore: RestoreReport,
}

/// Restores and prints who runs where.
pub async fn restore(config: &ClientConfig, id: Option<Name>, places: Vec<Place>, json: bool) -> Result<()> {
    print(restored(config, id, places).await?, json)
}

/// Restores.
pub async fn restored(config: &ClientConfig, id: Option<Name>, places: Vec<Place>) -> Result<RestoreReport> {
    let request = match places.is_empty() {
        true => Request::Restore(id),
        false => Request::RestoreAt(RestoreRequest { snapshot: id, places }),
    };
    match progress::ask(config, &request).await? {
        (_, Reply::Restored(report)) => Ok(report),
        (exchange, other) => Err(exchange.unexpected(&other)),
    }
}

/// Prints who runs where.
pub fn print(restore: RestoreReport, json: bool) -> Result<()> {
    for warning in &restore.warnings {
        eprintln!("warning: {warning}");
    }
    if json {
        return output::json(&Restored { restore });
    }
    let fetched = match restore.fetched.is_empty() {
        true => String::new(),
        false => format!("files fetched {:.1}, ", restore.fetch_ms),
    };
    output::line(&format!(
        "restored {} in {:.1} ms ({fetched}files verified {:.1}, loaded {:.1}, started {:.1}); incarnation {} runs",
        restore.snapshot,
        restore.restore_ms,
        restore.poll_ms,
        restore.load_ms,
        restore.start_ms,
        restore.incarnation
    ))?;
    let came = |vm: &Name| restore.fetched.iter().find(|member| member.vm == *vm);
    let row = |place: &Place| {
        let how = came(&place.vm).map(ToString::to_string).unwrap_or_default();
        vec![place.vm.to_string(), place.host.to_string(), how]
    };
    output::table(&["VM", "HOST", ""], restore.members.iter().map(row))
}

//! `unasnap restore`.

use serde::Serialize;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Reply, Request, RestoreReport};

use super::{output, progress};
use crate::config::ClientConfig;
use crate::failure::Result;

#[derive(Serialize)]
struct Restored {
    restore: RestoreReport,
}

/// Restores and prints who runs where.
pub async fn restore(config: &ClientConfig, id: Option<Name>, json: bool) -> Result<()> {
    let restore = match progress::ask(config, &Request::Restore(id)).await? {
        (_, Reply::Restored(report)) => report,
        (exchange, other) => return Err(exchange.unexpected(&other)),
    };
    print(restore, json)
}

/// Prints who runs where.
pub fn print(restore: RestoreReport, json: bool) -> Result<()> {
    for warning in &restore.warnings {
        eprintln!("warning: {warning}");
    }
    if json {
        return output::json(&Restored { restore });
    }
    output::line(&format!(
        "restored {} in {:.1} ms (files verified {:.1}, loaded {:.1}, started {:.1}); incarnation {} runs",
        restore.snapshot,
        restore.restore_ms,
        restore.poll_ms,
        restore.load_ms,
        restore.start_ms,
        restore.incarnation
    ))?;
    let rows = restore.members.iter().map(|place| vec![place.vm.to_string(), place.host.to_string()]);
    output::table(&["VM", "HOST"], rows)
}

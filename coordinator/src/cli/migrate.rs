//! `unasnap vm migrate`: a snapshot of the deployment, restored with one VM on another host. The cut is consistent, so nothing
//! between the members is lost or doubled; what any of them did after it is undone.

use serde::Serialize;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Place, RestoreReport};

use super::{restore, snapshot, status};
use crate::cli::output;
use crate::config::ClientConfig;
use crate::failure::{CliError, Kind, Result};

#[derive(Serialize)]
struct Migrated {
    snapshot: Name,
    restore: RestoreReport,
}

/// Checks what can be checked before anything is done.
pub async fn migrate(config: &ClientConfig, to: Place, snapshot: Option<Name>, json: bool) -> Result<()> {
    let known = status::fetch(config).await?;
    let vm = known.vms.iter().find(|vm| vm.name == to.vm);
    let vm = vm.ok_or_else(|| {
        let text = format!("no VM is called {}; `unasnap vm list` shows all of them", to.vm);
        CliError::new(Kind::NotFound, text)
    })?;
    let host = known.hosts.iter().find(|host| host.name == to.host);
    let host = host.ok_or_else(|| {
        let text = format!("no host is called {}; `unasnap host list` shows all of them", to.host);
        CliError::new(Kind::NotFound, text)
    })?;
    if vm.host == to.host {
        return Err(CliError::new(Kind::Refused, format!("{} lives on {} already", to.vm, to.host)));
    }
    if !host.connected {
        let text = format!("host {} is not connected; start the host agent there", to.host);
        return Err(CliError::new(Kind::Refused, text));
    }
    let id = match snapshot {
        Some(id) => id,
        None => snapshot::taken(config, Some(vm.deployment.clone())).await?.id,
    };
    let advice = format!("`unasnap restore {id} --place {}={}` goes on from there", to.vm, to.host);
    let moved = restore::restored(config, Some(id.clone()), vec![to]).await;
    let report = moved
        .map_err(|error| CliError::new(error.kind, format!("{error}; snapshot {id} is kept: {advice}")))?;
    if json {
        return output::json(&Migrated { snapshot: id, restore: report });
    }
    restore::print(report, false)
}

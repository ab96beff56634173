//! `unasnap vm console`: the end of what a VM wrote to its serial console.

use std::io::{ErrorKind, stdout};

use serde::Serialize;
use unasnap_protocol::access::ConsoleRequest;
use unasnap_protocol::access::{AccessReply, MAX_CONSOLE_BYTES};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Reply, Request};

use super::failed;
use super::sink::Sink;
use crate::cli::output;
use crate::client::Exchange;
use crate::config::ClientConfig;
use crate::failure::{CliError, Result};

#[derive(Serialize)]
struct Report {
    console: Console,
}

#[derive(Serialize)]
struct Console {
    vm: Name,
    host: Name,
    text: String,
}

/// `vm console`.
pub async fn console(config: &ClientConfig, vm: Name, lines: u32, json: bool) -> Result<()> {
    let request = Request::Console(ConsoleRequest { vm, lines });
    let mut exchange = Exchange::begin(config, &request).await?;
    let mut report = match exchange.next().await? {
        Reply::Console(report) => report,
        Reply::Access(AccessReply::Failed(vm, failure)) => return Err(failed(&vm, None, &failure)),
        other => return Err(exchange.unexpected(&other)),
    };
    report.bytes.truncate(MAX_CONSOLE_BYTES);
    if json {
        let text = String::from_utf8_lossy(&report.bytes).into_owned();
        return output::json(&Report {
            console: Console { vm: report.place.vm, host: report.place.host, text },
        });
    }
    let mut sink = Sink::new(stdout(), None);
    match sink.take(&report.bytes).and_then(|()| sink.finish()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(CliError::internal(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

//! `unasnap`: the coordinator of consistent global snapshots, and the operator's command.
//!
//! | module | what is in it |
//! |---|---|
//! | `cli` | subcommands: what is typed and what is printed |
//! | `client` | one request to the coordinator |
//! | `daemon` | the coordinator |
//! | `pki` | the cluster's certificates |
//! | `config` | the two configuration files |
//! | `failure` | errors and exit codes |

mod cli;
mod client;
mod config;
mod daemon;
mod failure;
mod pki;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

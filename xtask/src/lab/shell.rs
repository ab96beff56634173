//! A shell in the guests: what a test does inside a VM that no agent of ours does for it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::console::address;
use super::namespaces::Lab;

const PORT: u16 = 9004;

/// An emulated guest that was just restored is slow.
const PATIENCE: Duration = Duration::from_secs(15);

/// What a VM runs beside its workload to have one.
pub fn server() -> String {
    format!("nc -ll -p {PORT} -e sh &")
}

/// Runs a command in a VM.
///
/// # Errors
/// The VM does not answer.
pub fn run(lab: &Lab, vm: u32, command: &str) -> Result<()> {
    let to: SocketAddr = format!("{}:{PORT}", address(vm)).parse().context("a VM's address")?;
    let line = format!("{command}; echo done; exit\n");
    let answer = lab.lan().enter(move || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE).context("connecting")?;
        stream.set_read_timeout(Some(PATIENCE)).context("setting a time limit")?;
        stream.write_all(line.as_bytes()).context("asking")?;
        let mut answer = String::new();
        stream.take(4096).read_to_string(&mut answer).context("waiting for the answer")?;
        Ok(answer)
    });
    let answer = answer.with_context(|| format!("the shell of vm{vm}"))?;
    ensure!(answer.contains("done"), "the shell of vm{vm} says {answer:?} to {command:?}");
    Ok(())
}

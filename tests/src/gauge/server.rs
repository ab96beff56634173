//! The guest's side.

use std::io::BufReader;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::load::Worker;
use super::{Agent, Answer, Request, Tcp, read_line, write_line};
use crate::beat::Observer;

/// The guest agent's process name.
const AGENT: &str = "unasnap-guest";

/// Milliseconds per tick of `/proc/PID/stat`: USER_HZ is 100 on every Linux there is.
const TICK_MS: u64 = 10;

/// What is served.
#[derive(Debug)]
struct Station {
    worker: Worker,
    observer: Option<Observer>,
}

/// Serves for ever. The load's events are shown to `shown_to`; events of others are observed at `observe`. Each connection has a thread of its own: after a restore the old one never ends.
///
/// # Errors
/// The listening socket broke, or an address is wrong.
pub fn serve(
    listener: &TcpListener,
    shown_to: Option<SocketAddr>,
    observe: Option<SocketAddr>,
) -> Result<()> {
    let observer = observe.map(Observer::start).transpose()?;
    let station = Arc::new(Station { worker: Worker::start(shown_to)?, observer });
    loop {
        let (stream, _) = listener.accept().context("waiting for questions")?;
        let station = Arc::clone(&station);
        std::thread::spawn(move || {
            if let Err(error) = converse(stream, &station) {
                eprintln!("gauge: {error:#}");
            }
        });
    }
}

fn converse(stream: TcpStream, station: &Station) -> Result<()> {
    stream.set_nodelay(true).context("setting TCP_NODELAY")?;
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_line(&mut stream)? {
        let answer = answer(request, station).unwrap_or_else(|error| Answer::Failed(format!("{error:#}")));
        write_line(stream.get_mut(), &answer)?;
    }
    Ok(())
}

fn answer(request: Request, station: &Station) -> Result<Answer> {
    Ok(match request {
        Request::Load(load) => station.worker.bear(load).map(|()| Answer::Done)?,
        Request::Gap => {
            let observer = station.observer.as_ref().context("this gauge observes nobody")?;
            Answer::Gap(observer.take_gap_ms())
        }
        Request::Tcp => Answer::Tcp(Tcp {
            retransmissions: counter("/proc/net/snmp", "Tcp:", "RetransSegs")?,
            timeouts: counter("/proc/net/netstat", "TcpExt:", "TCPTimeouts")?,
        }),
        Request::Agent => Answer::Agent(agent()?),
        Request::Run(command) => {
            let mut shell = Command::new("sh");
            shell.args(["-c", &command]).stdin(Stdio::null());
            let status = shell.status().with_context(|| format!("running {command}"))?;
            Answer::Ran(status.code().unwrap_or(-1))
        }
    })
}

/// A counter of a file in which a line of names is followed by one of values.
fn counter(file: &str, table: &str, name: &str) -> Result<u64> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
    find(&text, table, name).with_context(|| format!("{file} has no {table} {name}"))
}

fn find(text: &str, table: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(table));
    let (names, values) = (lines.next()?, lines.next()?);
    let place = names.split_whitespace().position(|found| found == name)?;
    values.split_whitespace().nth(place)?.parse().ok()
}

fn agent() -> Result<Agent> {
    let folder = processes()?
        .find(|folder| std::fs::read_to_string(folder.join("comm")).is_ok_and(|name| name.trim() == AGENT))
        .with_context(|| format!("{AGENT} does not run"))?;
    let read =
        |file: &str| std::fs::read_to_string(folder.join(file)).with_context(|| format!("reading {file}"));
    let (sizes, stat) = (read("smaps_rollup")?, read("stat")?);
    let size = |name: &str| {
        let line = sizes.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok())
            .with_context(|| format!("smaps_rollup has no {name}"))
    };
    // utime + stime, fields 14 and 15 of proc(5)'s stat; the name before them may hold anything.
    let (_, fields) = stat.rsplit_once(") ").context("stat")?;
    let ticks = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
    Ok(Agent { rss_kib: size("Rss:")?, pss_kib: size("Pss:")?, cpu_ms: ticks * TICK_MS })
}

/// Folders of all processes.
fn processes() -> Result<impl Iterator<Item = PathBuf>> {
    let entries = std::fs::read_dir("/proc").context("reading /proc")?;
    let is_process = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
    };
    Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_process))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Gauge;
    use super::super::load::Load;
    use super::*;

    #[test]
    fn counters_are_found_by_name() {
        let text = "TcpExt: A TCPTimeouts B\nTcpExt: 1 22 3\nIpExt: TCPTimeouts\nIpExt: 9\n";
        assert_eq!(find(text, "TcpExt:", "TCPTimeouts"), Some(22));
        assert_eq!(find(text, "TcpExt:", "C"), None);
    }

    #[test]
    fn questions_are_answered_and_failures_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || serve(&listener, None, None));
        let mut gauge = Gauge::connect(address, Duration::from_secs(10)).unwrap();
        gauge.load(Load::Idle).unwrap();
        let error = gauge.ask(&Request::Gap).unwrap_err();
        assert!(error.to_string().contains("observes nobody"), "{error}");
        assert!(matches!(gauge.ask(&Request::Tcp).unwrap().0, Answer::Tcp(_)));
        gauge.run("exit 0").unwrap();
        assert!(gauge.run("exit 3").unwrap_err().to_string().contains("Ran(3)"));
        gauge.load(Load::Off).unwrap();
    }
}

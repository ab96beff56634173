//! Talking to a member from outside: one connection, one word, one line of JSON as the answer.
//!
//! Whoever asks is no member, so that colours and filters do not apply, and each connection is a new one, so that a
//! restore breaks none.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::book::{Book, State};
use crate::net::connect;

/// Longest answer; a member keeps some hundred kilobytes about each of the others.
const MAX_ANSWER: u64 = 256 << 20;

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a member can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Request {
    /// Stop sending; answers with the state, without the logs
    Freeze,
    /// Send again; answers with the state, without the logs
    Go,
    /// How far is it? Answers with the state, without the logs
    Look,
    /// The whole state
    State,
}

impl Request {
    const ALL: [(Self, &str); 4] =
        [(Self::Freeze, "freeze"), (Self::Go, "go"), (Self::Look, "look"), (Self::State, "state")];

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(request, _)| *request == self).map_or("", |(_, word)| word)
    }

    fn parse(line: &str) -> Result<Self> {
        let found = Self::ALL.iter().find(|(_, word)| *word == line.trim());
        found.map(|(request, _)| *request).with_context(|| format!("no such request: {line:?}"))
    }
}

/// Asks one member.
///
/// # Errors
/// It does not answer, or not with a state.
pub fn ask(member: SocketAddr, request: Request) -> Result<State> {
    let mut stream = connect("the member", member, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE)).context("setting a time limit")?;
    stream.set_write_timeout(Some(PATIENCE)).context("setting a time limit")?;
    writeln!(stream, "{}", request.word()).context("asking")?;
    let mut answer = String::new();
    let read = stream.take(MAX_ANSWER).read_to_string(&mut answer);
    read.with_context(|| format!("waiting for the answer of {member}"))?;
    ensure!(answer.ends_with('\n'), "{member} closed the connection in the middle of its answer");
    serde_json::from_str(&answer).with_context(|| format!("the answer of {member}"))
}

/// Answers requests for ever, one after the other; one that is wrong or breaks off is the asker's business.
pub fn serve(listener: &TcpListener, book: &Mutex<Book>) {
    for stream in listener.incoming().flatten() {
        if let Err(error) = answer(stream, book) {
            eprintln!("bank: a request was not answered: {error:#}");
        }
    }
}

fn answer(mut stream: TcpStream, book: &Mutex<Book>) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE)).context("setting a time limit")?;
    stream.set_write_timeout(Some(PATIENCE)).context("setting a time limit")?;
    let mut line = String::new();
    if BufReader::new((&stream).take(64)).read_line(&mut line).context("reading the request")? == 0 {
        bail!("the asker said nothing");
    }
    let request = Request::parse(&line)?;
    let state = {
        let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
        match request {
            Request::Freeze => book.set_frozen(true),
            Request::Go => book.set_frozen(false),
            Request::Look | Request::State => {}
        }
        book.state()
    };
    let state = if request == Request::State { state } else { state.summary() };
    let mut text = serde_json::to_string(&state).context("encoding the state")?;
    text.push('\n');
    stream.write_all(text.as_bytes()).context("answering")
}

//! One request to the coordinator: connect, ask, listen until the answer is complete.

use std::time::Duration;

use tokio::time::timeout;
use unasnap_channel::{ChannelError, Connection, connect};
use unasnap_protocol::control::{CoordinatorSession, Phase};
use unasnap_protocol::frame::Frame;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{MAX_SILENCE_S, Progress, Reply, Request};

use crate::config::ClientConfig;
use crate::failure::{CliError, Kind, Result};

/// A connection on which one request was sent.
pub struct Exchange {
    connection: Connection,
    address: String,
    /// What was under way when it was heard last.
    last: Option<Progress>,
}

impl Exchange {
    /// Connects and asks.
    pub async fn begin(config: &ClientConfig, request: &Request) -> Result<Self> {
        let identity = config.identity()?;
        let mut connection = connect(&config.coordinator, &identity).await?;
        connection.send(&request.encode(&())).await?;
        Ok(Self { connection, address: config.coordinator.clone(), last: None })
    }

    /// Asks for more, where a request consists of several.
    pub async fn tell(&mut self, request: &Request) -> Result<()> {
        let told = self.connection.send(&request.encode(&())).await;
        told.map_err(|error| self.lost(error))
    }

    /// The next reply; a refusal is an error.
    pub async fn next(&mut self) -> Result<Reply> {
        let limit = Duration::from_secs(MAX_SILENCE_S);
        let frame = timeout(limit, self.connection.recv()).await.map_err(|_| {
            let text = format!(
                "the coordinator at {} said nothing for {MAX_SILENCE_S} s; look at its log",
                self.address
            );
            CliError::new(Kind::TimedOut, text)
        })?;
        let frame = frame.map_err(|error| self.lost(error))?;
        let frame = frame.ok_or_else(|| {
            let text = format!("the coordinator at {} closed the connection; look at its log", self.address);
            CliError::new(Kind::Connection, text)
        })?;
        match read(&frame)? {
            Reply::Failed(error) => Err(error.into()),
            reply => {
                if let Reply::Progress(progress) = &reply {
                    self.last = Some(progress.clone());
                }
                Ok(reply)
            }
        }
    }

    /// The answer; who wants progress as well calls [`next`](Self::next).
    pub async fn answer(&mut self) -> Result<Reply> {
        loop {
            match self.next().await? {
                Reply::Progress(_) => {}
                answer => return Ok(answer),
            }
        }
    }

    /// Whom the coordinator waited for when it was heard last, in words.
    pub fn waits_for(&self) -> String {
        let waiting = self.last.iter().flat_map(|progress| &progress.waiting);
        waiting.map(Name::as_str).collect::<Vec<_>>().join(", ")
    }

    /// The connection broke: who is gone, in the middle of what, and what becomes of that.
    fn lost(&self, error: ChannelError) -> CliError {
        let cause = CliError::from(error);
        let address = &self.address;
        let text = match &self.last {
            Some(Progress { phase: Phase::Control, waiting, .. }) => {
                let vms = waiting.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
                format!(
                    "lost the coordinator at {address} before it told what became of {vms}: {cause}; their hosts carry out what \
                     they have heard, and `unasnap vm list` shows how they stand"
                )
            }
            Some(Progress { snapshot, phase, .. }) => format!(
                "lost the coordinator at {address} in {phase} of {snapshot}: {cause}; when it runs again it finishes or undoes \
                 that, and `unasnap status` shows how it stands"
            ),
            None => format!("lost the coordinator at {address}: {cause}"),
        };
        CliError::new(cause.kind, text)
    }

    /// A reply that the request cannot have: the coordinator is of another make.
    pub fn unexpected(&self, reply: &Reply) -> CliError {
        CliError::internal(format!(
            "the coordinator at {} answered with {}, which does not fit the request; install the same release on both",
            self.address,
            reply.name()
        ))
    }
}

fn read(frame: &Frame) -> Result<Reply> {
    if let Ok(((), CoordinatorSession::Goodbye(why))) = CoordinatorSession::decode(frame) {
        return Err(CliError::new(Kind::Connection, why));
    }
    let misread = |error| {
        CliError::new(Kind::Connection, format!("the coordinator's answer is not understood: {error}"))
    };
    Reply::decode(frame).map(|((), reply)| reply).map_err(misread)
}

//! The connection of an operator who uses guests: the only one on which more than one request comes.

use tokio::sync::mpsc;
use unasnap_channel::{Connection, Writer};
use unasnap_protocol::access::{AccessRequest, Ask, ConsoleRequest};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Reply, Request};
use unasnap_protocol::power::Patterns;

use super::connections::{Input, Inputs, STOPPING, goodbye, sendable};
use super::registry::LinkId;

/// Each VM has one answer under way at most, and there are fewer VMs.
const REPLIES: usize = 512;

/// What an operator wants of guests.
#[derive(Debug)]
pub enum Opening {
    /// A conversation with each of these VMs.
    Conversations(Patterns, Ask),
    /// The end of a console.
    Console(ConsoleRequest),
}

impl Opening {
    /// What uses guests, out of the other requests.
    pub fn of(request: Request) -> Result<Self, Request> {
        match request {
            Request::Access(AccessRequest::Open(vms, ask)) => Ok(Self::Conversations(vms, ask)),
            Request::Console(request) => Ok(Self::Console(request)),
            other => Err(other),
        }
    }
}

/// Serves it until it ends, and tells the owner that it has.
pub async fn serve(
    connection: Connection,
    link: LinkId,
    operator: Name,
    opening: Opening,
    distrust: impl Future<Output = String>,
    inputs: Inputs,
) -> Result<(), String> {
    let (replies, answers) = mpsc::channel(REPLIES);
    let opens = Input::GuestsOpened { link, operator, opening, replies };
    inputs.send(opens).await.map_err(|_| STOPPING.to_owned())?;
    let ended = converse(connection, link, answers, distrust, &inputs).await;
    inputs.send(Input::GuestsLeft { link }).await.map_err(|_| STOPPING.to_owned())?;
    ended
}

async fn converse(
    connection: Connection,
    link: LinkId,
    mut answers: mpsc::Receiver<Reply>,
    distrust: impl Future<Output = String>,
    inputs: &Inputs,
) -> Result<(), String> {
    let (mut reader, mut writer) = connection.split();
    tokio::pin!(distrust);
    loop {
        tokio::select! {
            reply = answers.recv() => {
                let Some(reply) = reply else { break };
                writer.send(&sendable(&reply)).await.map_err(|error| error.to_string())?;
            }
            frame = reader.recv() => {
                let Ok(Some(frame)) = frame else { return Ok(()) };
                match Request::decode(&frame) {
                    Ok(((), Request::Access(AccessRequest::Turn(vm, number, ask)))) => {
                        let turn = Input::GuestAsked { link, vm, number, ask };
                        inputs.send(turn).await.map_err(|_| STOPPING.to_owned())?;
                    }
                    _ => return Err("it sent something else than turns to guests".to_owned()),
                }
            }
            why = &mut distrust => return leave(&mut writer, why).await,
        }
    }
    writer.close().await;
    Ok(())
}

async fn leave(writer: &mut Writer, why: String) -> Result<(), String> {
    // It may not listen; the log says why it was refused.
    let _ = writer.send(&goodbye(&why)).await;
    writer.close().await;
    Err(why)
}

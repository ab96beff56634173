//! Connections: small tasks that turn frames into [`Input`]s for the owner, and its words into frames.
//! They decide nothing but who may speak at all.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use unasnap_channel::{Connection, Peer, Reader, Trust, Writer, steady_ns};
use unasnap_protocol::PROTOCOL_VERSION;
use unasnap_protocol::access::Ask;
use unasnap_protocol::control::{CoordinatorSession, FromHost, Hello, HostSession, MAX_VMS_PER_HOST};
use unasnap_protocol::frame::{Frame, MAX_CONTROL_PAYLOAD};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{FIRST_NUMBER, Reply, Request, RequestError, RequestErrorKind};
use unasnap_protocol::role::Role;

use super::access_link::{self, Opening};
use super::outbox::{Outbox, Waiting, outbox};
use super::registry::LinkId;

/// For the first message after the handshake.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// Silence after which a host counts as lost.
const SILENCE_LIMIT: Duration = Duration::from_secs(5);
/// Bytes that one host may have said and the owner not yet heard.
const MAX_UNHEARD: usize = 4 << 20;
/// What even a short message counts for.
const LEAST_UNHEARD: usize = 32 << 10;
/// Inventories in between are left out: each may have to be written to the disk. A host sends one a second.
const INVENTORY_EVERY: Duration = Duration::from_millis(200);
/// Replies that may wait for a slow operator; more progress is dropped.
const REPLIES: usize = 4096;
pub(super) const STOPPING: &str = "the coordinator is stopping";

/// What the owner hears.
pub enum Input {
    /// A host has said hello.
    HostHello {
        /// Its connection.
        link: LinkId,
        /// Whence it comes.
        ip: Option<IpAddr>,
        /// What it said.
        hello: Box<Hello>,
        /// Where the answers go.
        outbox: Outbox,
    },
    /// A host has said something else.
    HostSaid {
        /// Its connection.
        link: LinkId,
        /// Who.
        host: Name,
        /// What.
        message: Box<FromHost>,
        /// When, by the clock of the channel.
        heard_ns: u64,
        /// Its share of what the host may have unheard.
        share: OwnedSemaphorePermit,
    },
    /// A host's connection has ended.
    HostGone {
        /// Its connection.
        link: LinkId,
        /// Who.
        host: Name,
        /// Why, in words.
        why: String,
    },
    /// An operator asks.
    Asked {
        /// Who, for the log.
        operator: Name,
        /// What.
        request: Request,
        /// Where the replies go; dropping it ends the connection.
        replies: mpsc::Sender<Reply>,
    },
    /// An operator begins to use guests.
    GuestsOpened {
        /// Its connection.
        link: LinkId,
        /// Who, for the log.
        operator: Name,
        /// What for.
        opening: Opening,
        /// Where the replies go; dropping it ends the connection.
        replies: mpsc::Sender<Reply>,
    },
    /// An operator who uses guests asks one of them.
    GuestAsked {
        /// The operator's connection.
        link: LinkId,
        /// Whom.
        vm: Name,
        /// Of the turn.
        number: u32,
        /// What.
        ask: Ask,
    },
    /// An operator who used guests has gone.
    GuestsLeft {
        /// Its connection.
        link: LinkId,
    },
}

/// Where inputs go.
pub type Inputs = mpsc::Sender<Input>;

/// Serves a known peer until its connection ends.
pub async fn serve(connection: Connection, link: LinkId, trust: Trust, inputs: Inputs) {
    let (peer, shown) = (connection.peer().clone(), connection.certificate().clone());
    let distrust = async { format!("it is not trusted any more: {}", trust.lost(&shown).await) };
    tokio::pin!(distrust);
    let ended = match peer.clone() {
        Peer::Host(host) => serve_host(connection, host, link, distrust, inputs).await,
        Peer::Operator(operator, role) => {
            serve_operator(connection, operator, role, link, distrust, inputs).await
        }
        Peer::Coordinator => {
            let why = "this certificate is the coordinator's own; hosts and operators have theirs";
            refuse(connection, goodbye(why), why.to_owned()).await
        }
    };
    if let Err(why) = ended {
        tracing::warn!("ended the connection of {peer}: {why}");
    }
}

/// Tells a peer why it is not served.
pub async fn send_away(connection: Connection, why: String) {
    tracing::warn!("{why}");
    let _ = refuse(connection, goodbye(&why), why).await;
}

async fn refuse(mut connection: Connection, frame: Vec<u8>, why: String) -> Result<(), String> {
    // The peer may be gone already; the log says why it was refused.
    let _ = connection.send(&frame).await;
    let (mut reader, mut writer) = connection.split();
    writer.close().await;
    // Closing with unread bytes would reset the connection and lose the words.
    let _ = timeout(Duration::from_secs(1), async { while let Ok(Some(_)) = reader.recv().await {} }).await;
    Err(why)
}

pub(super) fn goodbye(why: &str) -> Vec<u8> {
    CoordinatorSession::Goodbye(why.to_owned()).encode(&())
}

fn failed(why: &str) -> Vec<u8> {
    Reply::Failed(RequestError::new(RequestErrorKind::NotAllowed, why)).encode(&())
}

async fn first_frame(connection: &mut Connection) -> Result<Frame, String> {
    match timeout(HELLO_LIMIT, connection.recv()).await {
        Err(_) => Err(format!("it said nothing for {} s after the handshake", HELLO_LIMIT.as_secs())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(None)) => Err("it closed the connection without a word".to_owned()),
        Ok(Ok(Some(frame))) => Ok(frame),
    }
}

async fn serve_host(
    mut connection: Connection,
    host: Name,
    link: LinkId,
    distrust: impl Future<Output = String>,
    inputs: Inputs,
) -> Result<(), String> {
    let frame = match first_frame(&mut connection).await {
        Ok(frame) => frame,
        Err(why) => return refuse(connection, goodbye(&why), why).await,
    };
    if frame.number >= FIRST_NUMBER {
        let why =
            format!("this certificate belongs to host {host}; commands need an operator's (operator.pem)");
        return refuse(connection, failed(&why), why).await;
    }
    let hello = match read_hello(&frame, &host) {
        Ok(hello) => hello,
        Err(why) => return refuse(connection, goodbye(&why), why).await,
    };
    let ip = connection.address().map(|address| address.ip());
    let (mut reader, writer) = connection.split();
    let (outbox, frames) = outbox();
    // The owner holds the only sender for good: when it drops that, the connection ends.
    let last_words = outbox.downgrade();
    let hello = Input::HostHello { link, ip, hello: Box::new(hello), outbox };
    inputs.send(hello).await.map_err(|_| STOPPING.to_owned())?;
    let mut writing = tokio::spawn(write_all(writer, frames));
    let said = async {
        tokio::select! {
            why = listen(&mut reader, &host, link, &inputs) => why,
            why = distrust => why,
        }
    };
    let why = tokio::select! {
        why = said => {
            // A full outbox means that nobody reads it.
            last_words.try_send(goodbye(&why));
            why
        }
        _ = &mut writing => "it took no more, or a new connection replaced it".to_owned(),
    };
    let gone = Input::HostGone { link, host, why: why.clone() };
    inputs.send(gone).await.map_err(|_| STOPPING.to_owned())?;
    if !writing.is_finished() {
        // What could not be written by now tells the host nothing new.
        let _ = timeout(HELLO_LIMIT, writing).await;
    }
    Err(why)
}

/// A host may speak if it is who its certificate says, and in a version that we know.
fn read_hello(frame: &Frame, host: &Name) -> Result<Hello, String> {
    let hello = match FromHost::decode(frame) {
        Ok(FromHost::Session(HostSession::Hello(hello))) => hello,
        Ok(_) => return Err("the first message of a host must be its hello".to_owned()),
        Err(error) => {
            return Err(format!("the hello is not understood: {error}; install the same release on both"));
        }
    };
    let (lowest, highest) = hello.protocol;
    if !(lowest..=highest).contains(&PROTOCOL_VERSION) {
        return Err(format!(
            "host {host} speaks protocol versions {lowest} to {highest}, the coordinator {PROTOCOL_VERSION}; install the same release on both"
        ));
    }
    if hello.host != *host {
        return Err(format!(
            "the agent calls itself {}, its certificate says {host}; set `name` in host.toml to {host}, or give it the certificate of {}",
            hello.host, hello.host
        ));
    }
    if hello.inventory.vms.len() > MAX_VMS_PER_HOST {
        return Err(format!(
            "host {host} reports more than {MAX_VMS_PER_HOST} VMs; split its vm_dir among hosts"
        ));
    }
    Ok(hello)
}

/// Hands on what a host says, until it ends; returns why.
async fn listen(reader: &mut Reader, host: &Name, link: LinkId, inputs: &Inputs) -> String {
    let unheard = Arc::new(Semaphore::new(MAX_UNHEARD));
    let mut inventory_due = Instant::now();
    loop {
        let frame = match timeout(SILENCE_LIMIT, reader.recv()).await {
            Err(_) => return format!("it was silent for {} s", SILENCE_LIMIT.as_secs()),
            Ok(Err(error)) => return error.to_string(),
            Ok(Ok(None)) => return "it closed the connection".to_owned(),
            Ok(Ok(Some(frame))) => frame,
        };
        let heard_ns = steady_ns();
        let message = match FromHost::decode(&frame) {
            Ok(message) => Box::new(message),
            Err(error) => return error.to_string(),
        };
        if matches!(*message, FromHost::Session(HostSession::Inventory(_))) {
            if Instant::now() < inventory_due {
                continue;
            }
            inventory_due = Instant::now() + INVENTORY_EVERY;
        }
        let counts = u32::try_from(frame.payload.len().clamp(LEAST_UNHEARD, MAX_UNHEARD)).unwrap_or(u32::MAX);
        let Ok(share) = Arc::clone(&unheard).acquire_many_owned(counts).await else {
            return STOPPING.to_owned();
        };
        let said = Input::HostSaid { link, host: host.clone(), message, heard_ns, share };
        if inputs.send(said).await.is_err() {
            return STOPPING.to_owned();
        }
    }
}

/// Writes until nobody sends any more or the peer does not take it. What waits goes out in one piece: orders to many
/// members of a host reach it together.
async fn write_all(mut writer: Writer, mut frames: Waiting) {
    while let Some(bytes) = frames.next().await {
        if writer.send(&bytes).await.is_err() {
            return;
        }
    }
    writer.close().await;
}

async fn serve_operator(
    mut connection: Connection,
    operator: Name,
    role: Role,
    link: LinkId,
    mut distrust: impl Future<Output = String> + Unpin,
    inputs: Inputs,
) -> Result<(), String> {
    let frame = match first_frame(&mut connection).await {
        Ok(frame) => frame,
        Err(why) => return refuse(connection, goodbye(&why), why).await,
    };
    let request = match Request::decode(&frame) {
        Ok(((), request)) => request,
        Err(_) if frame.number < FIRST_NUMBER => {
            let why =
                format!("this certificate belongs to operator {operator}; a host agent needs its host's");
            return refuse(connection, goodbye(&why), why).await;
        }
        Err(error) => {
            let why = format!("the request is not understood: {error}; install the same release on both");
            return refuse(connection, failed(&why), why).await;
        }
    };
    let needed = request.needed_role();
    if role < needed {
        let why = format!(
            "operator {operator} has the role {role}, and {} needs the role {needed}; use a certificate of that role (`unasnap pki operator NAME --role {needed}`)",
            request.name()
        );
        return refuse(connection, failed(&why), why).await;
    }
    let request = match Opening::of(request) {
        Ok(opening) => {
            return access_link::serve(connection, link, operator, opening, distrust, inputs).await;
        }
        Err(request) => request,
    };
    let (replies, mut answers) = mpsc::channel(REPLIES);
    let asked = Input::Asked { operator, request, replies };
    inputs.send(asked).await.map_err(|_| STOPPING.to_owned())?;
    let (mut reader, mut writer) = connection.split();
    loop {
        let reply = tokio::select! {
            reply = answers.recv() => reply,
            // An operator asks once and then only listens.
            _ = reader.recv() => return Ok(()),
            why = &mut distrust => {
                // It may not listen; the log says why it was refused.
                let _ = writer.send(&goodbye(&why)).await;
                writer.close().await;
                return Err(why);
            }
        };
        let Some(reply) = reply else { break };
        let frame = sendable(&reply);
        writer.send(&frame).await.map_err(|error| error.to_string())?;
    }
    writer.close().await;
    Ok(())
}

/// No reply is larger than the channel allows.
pub(super) fn sendable(reply: &Reply) -> Vec<u8> {
    let frame = reply.encode(&());
    if frame.len() <= MAX_CONTROL_PAYLOAD {
        return frame;
    }
    let text = format!("the answer of {} bytes is larger than one message may be", frame.len());
    Reply::Failed(RequestError::new(RequestErrorKind::Internal, text)).encode(&())
}

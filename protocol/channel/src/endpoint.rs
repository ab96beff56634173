//! How connections come to be: hosts and operators connect, the coordinator listens.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::HANDSHAKE_LIMIT;
use crate::connection::Connection;
use crate::error::ChannelError;
use crate::identity::{Identity, coordinator_name};
use crate::trust::Trust;

/// Connections that the kernel keeps before they are accepted.
const BACKLOG: u32 = 256;
/// How long a peer whose handshake failed is given to read why.
const LINGER: Duration = Duration::from_secs(1);
/// Most bytes that are read and thrown away meanwhile.
const LINGER_BYTES: u64 = 64 * 1024;

/// Connects to the coordinator at `address` (`host:port`).
///
/// # Errors
/// [`ChannelError`] says whether nobody is there or who is not trusted. With TLS 1.3 the coordinator judges our
/// certificate after this has returned: its refusal is the error of the first `recv`.
pub async fn connect(address: &str, identity: &Identity) -> Result<Connection, ChannelError> {
    let unreachable = |source| ChannelError::Unreachable { address: address.to_owned(), source };
    let stream = timeout(HANDSHAKE_LIMIT, dial(address))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(unreachable)?;
    let handshake = TlsConnector::from(identity.client.clone()).connect(coordinator_name(), stream);
    let stream = timeout(HANDSHAKE_LIMIT, handshake).await.map_err(|_| ChannelError::HandshakeTimedOut)??;
    Connection::new(TlsStream::Client(stream))
}

pub(crate) async fn dial(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for candidate in lookup_host(address).await? {
        match socket(candidate)?.connect(candidate).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    socket.set_keepalive(true)?;
    Ok(socket)
}

/// Where the coordinator listens for hosts and operators, or a host for other hosts.
pub struct Listener {
    socket: TcpListener,
    trust: Trust,
}

impl Listener {
    /// Listens on `address`, as the identity that `trust` has at each connection.
    ///
    /// # Errors
    /// What the system says, e.g. that the address is in use.
    pub fn bind(address: SocketAddr, trust: Trust) -> io::Result<Self> {
        let socket = socket(address)?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self { socket: socket.listen(BACKLOG)?, trust })
    }

    /// Where it listens; tells the port when 0 was asked for.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The next connection, before its handshake. Cancel-safe.
    ///
    /// # Errors
    /// What the system says, e.g. that no file descriptors are left; a later call may succeed.
    pub async fn accept(&self) -> io::Result<Arrival> {
        let (stream, address) = self.socket.accept().await?;
        stream.set_nodelay(true)?;
        Ok(Arrival { stream, address, acceptor: TlsAcceptor::from(self.trust.identity().server) })
    }
}

/// A connection whose handshake is still to be made, in a task of its own: a slow peer delays nobody.
pub struct Arrival {
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
}

impl Arrival {
    /// Where it comes from.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes the handshake; the peer is known afterwards.
    ///
    /// # Errors
    /// [`ChannelError`] says what is wrong with the peer.
    pub async fn handshake(self) -> Result<Connection, ChannelError> {
        let accept = self.acceptor.accept(self.stream).into_fallible();
        match timeout(HANDSHAKE_LIMIT, accept).await.map_err(|_| ChannelError::HandshakeTimedOut)? {
            Ok(stream) => Connection::new(TlsStream::Server(stream)),
            Err((error, stream)) => {
                linger(stream).await;
                Err(error.into())
            }
        }
    }
}

/// Reads what the peer still sends: closing with unread bytes makes the kernel reset the connection,
/// and the alert that says why would be lost.
async fn linger(mut stream: TcpStream) {
    let drained = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut (&mut stream).take(LINGER_BYTES), &mut tokio::io::sink()).await
    };
    // Nothing depends on whether the peer listened.
    let _ = timeout(LINGER, drained).await;
}

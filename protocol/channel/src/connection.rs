//! Frames in both directions over one authenticated connection.

use std::net::SocketAddr;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsStream;
use unasnap_protocol::frame::{Decoder, Frame, MAX_CONTROL_PAYLOAD};

use crate::FRAME_LIMIT;
use crate::error::ChannelError;
use crate::peer::{Peer, PeerCertificate};

/// Bytes asked of the socket at once.
const READ_BYTES: usize = 16 * 1024;

/// An authenticated connection; both ends know who the other is.
#[derive(Debug)]
pub struct Connection {
    certificate: PeerCertificate,
    address: Option<SocketAddr>,
    reader: Reader,
    writer: Writer,
}

impl Connection {
    pub(crate) fn new(stream: TlsStream<TcpStream>) -> Result<Self, ChannelError> {
        let chain = stream.get_ref().1.peer_certificates();
        let certificate = chain.and_then(PeerCertificate::new).ok_or(ChannelError::NoRole)?;
        let address = stream.get_ref().0.peer_addr().ok();
        let (read, write) = tokio::io::split(stream);
        let reader = Reader { half: read, decoder: Decoder::strict(MAX_CONTROL_PAYLOAD), begun: None };
        Ok(Self { certificate, address, reader, writer: Writer { half: write } })
    }

    /// Who the other end is.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.certificate.peer
    }

    /// Where the other end is; `None` if it went away at once.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// What the other end showed.
    #[must_use]
    pub fn certificate(&self) -> &PeerCertificate {
        &self.certificate
    }

    /// See [`Writer::send`].
    ///
    /// # Errors
    /// As there.
    pub async fn send(&mut self, frame: &[u8]) -> Result<(), ChannelError> {
        self.writer.send(frame).await
    }

    /// See [`Reader::recv`].
    ///
    /// # Errors
    /// As there.
    pub async fn recv(&mut self) -> Result<Option<Frame>, ChannelError> {
        self.reader.recv().await
    }

    /// The two halves, for two tasks or two branches of one `select!`.
    #[must_use]
    pub fn split(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }
}

/// The half from which frames come.
#[derive(Debug)]
pub struct Reader {
    half: ReadHalf<TlsStream<TcpStream>>,
    decoder: Decoder,
    /// When the frame that is not yet whole began to arrive.
    begun: Option<Instant>,
}

impl Reader {
    /// The next frame; `None` when the peer closed the connection between two frames. Waits without
    /// limit for a frame to begin, and [`FRAME_LIMIT`] for it to end. Cancel-safe: no byte is lost when
    /// the future is dropped.
    ///
    /// # Errors
    /// [`ChannelError`]; the connection is of no use afterwards.
    pub async fn recv(&mut self) -> Result<Option<Frame>, ChannelError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                self.begun = None;
                return Ok(Some(frame));
            }
            if self.decoder.is_mid_frame() {
                self.begun.get_or_insert_with(Instant::now);
            }
            let mut bytes = BytesMut::with_capacity(READ_BYTES);
            let read = self.half.read_buf(&mut bytes);
            let count = match self.begun {
                None => read.await?,
                Some(begun) => {
                    timeout_at(begun + FRAME_LIMIT, read).await.map_err(|_| ChannelError::Stalled)??
                }
            };
            if count > 0 {
                self.decoder.push(&bytes);
            } else if self.decoder.is_mid_frame() {
                return Err(ChannelError::Vanished);
            } else {
                return Ok(None);
            }
        }
    }
}

/// The half into which frames go.
#[derive(Debug)]
pub struct Writer {
    half: WriteHalf<TlsStream<TcpStream>>,
}

impl Writer {
    /// Writes one encoded frame and flushes it. Not cancel-safe: a dropped future may leave half a frame
    /// on the wire, so let it end or drop the connection.
    ///
    /// # Errors
    /// [`ChannelError::NotReading`] after [`FRAME_LIMIT`], or what broke the connection.
    pub async fn send(&mut self, frame: &[u8]) -> Result<(), ChannelError> {
        let write = async {
            self.half.write_all(frame).await?;
            self.half.flush().await
        };
        timeout(FRAME_LIMIT, write).await.map_err(|_| ChannelError::NotReading)??;
        Ok(())
    }

    /// Says on the wire that nothing more will come, so that the peer does not take the end for a loss.
    pub async fn close(&mut self) {
        // Whoever does not listen any more does not need to hear it.
        let _ = timeout(FRAME_LIMIT, self.half.shutdown()).await;
    }
}

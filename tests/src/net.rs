//! Meeting a peer over TCP: bounded, patient with peers that are not up yet, and naming whom it waited for.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long a program waits for its peers to come up. A slow emulated VM boots in seconds.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Between two tries, and between two looks at a listener.
const RETRY: Duration = Duration::from_millis(50);

/// One try is short, because a peer whose address is not configured yet swallows the first packets.
const ONE_TRY: Duration = Duration::from_secs(2);

/// Connects to `who` at `address`, trying again until `patience` is over; the stream has TCP_NODELAY.
///
/// # Errors
/// Says whom it waited for, how long, and what the last try met.
pub fn connect(who: &str, address: SocketAddr, patience: Duration) -> Result<TcpStream> {
    let start = Instant::now();
    loop {
        match TcpStream::connect_timeout(&address, ONE_TRY) {
            Ok(stream) => {
                stream.set_nodelay(true).context("setting TCP_NODELAY")?;
                return Ok(stream);
            }
            Err(error) if start.elapsed() >= patience => {
                bail!("{who} at {address} did not answer within {} s: {error}", patience.as_secs());
            }
            Err(_) => std::thread::sleep(RETRY),
        }
    }
}

/// Accepts one connection from `who` within `patience`; the stream blocks and has TCP_NODELAY.
///
/// # Errors
/// Says whom it waited for and how long.
pub fn accept(who: &str, listener: &TcpListener, patience: Duration) -> Result<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true).context("listening socket")?;
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(false).context("accepted socket")?;
                stream.set_nodelay(true).context("setting TCP_NODELAY")?;
                return Ok((stream, peer));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && start.elapsed() < patience => {
                std::thread::sleep(RETRY);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                bail!("{who} did not connect to {:?} within {} s", listener.local_addr(), patience.as_secs());
            }
            Err(error) => return Err(error).context(format!("waiting for {who}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_peer_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gone = listener.local_addr().unwrap();
        let error = accept("node c", &listener, Duration::from_millis(120)).unwrap_err();
        assert!(error.to_string().contains("node c"), "{error}");
        drop(listener);
        let error = connect("the manager", gone, Duration::from_millis(120)).unwrap_err();
        assert!(error.to_string().contains("the manager"), "{error}");
    }
}

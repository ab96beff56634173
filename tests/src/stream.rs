//! One busy TCP stream: numbered blocks there and back, every byte known in advance and checked.
//!
//! A block is `sequence (u64 LE), length (u32 LE), bytes`. The bytes follow from direction and sequence, so a lost,
//! doubled or foreign byte shows at once. The client sends block n, the server answers with its own block n.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::meter::{Meter, Reporter};
use crate::net::{PATIENCE, connect};

/// Largest block, in bytes.
pub const MAX_BLOCK: u32 = 1 << 20;

const HEADER: usize = 12;

/// Which way a block goes; its bytes differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Request,
    Response,
}

/// Fills `bytes` with the content of block `sequence` (SplitMix64 of the position, so that no two blocks look alike).
fn fill(way: Way, sequence: u64, bytes: &mut [u8]) {
    let seed = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ if way == Way::Request { 0x5245_5155 } else { 0x414e_5357 };
    for (index, chunk) in (0u64..).zip(bytes.chunks_mut(8)) {
        let mut z = seed.wrapping_add(index.wrapping_mul(0xd1b5_4a32_d192_ed03));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
    }
}

fn send(to: &mut impl Write, way: Way, sequence: u64, length: u32) -> Result<()> {
    let mut block = vec![0; HEADER + length as usize];
    block[..8].copy_from_slice(&sequence.to_le_bytes());
    block[8..HEADER].copy_from_slice(&length.to_le_bytes());
    fill(way, sequence, &mut block[HEADER..]);
    to.write_all(&block).context("sending a block")
}

/// Receives the block that must come next and returns its length; `Ok(None)` at a clean end between two blocks.
fn receive(from: &mut impl Read, way: Way, sequence: u64) -> Result<Option<u32>> {
    let mut first = [0];
    if from.read(&mut first).context("receiving a block")? == 0 {
        return Ok(None);
    }
    let mut header = [0; HEADER];
    header[0] = first[0];
    from.read_exact(&mut header[1..]).context("receiving a block's header")?;
    let (number, length) = header.split_at(8);
    let number = u64::from_le_bytes(number.try_into().context("header")?);
    let length = u32::from_le_bytes(length.try_into().context("header")?);
    if number != sequence || length > MAX_BLOCK {
        bail!("expected block {sequence}, got block {number} of {length} bytes: the stream lost its place");
    }
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes).context("receiving a block's bytes")?;
    let mut expected = vec![0; length as usize];
    fill(way, sequence, &mut expected);
    if let Some(at) = (0..bytes.len()).find(|at| bytes[*at] != expected[*at]) {
        bail!("block {sequence}: byte {at} is {:#04x}, expected {:#04x}", bytes[at], expected[at]);
    }
    Ok(Some(length))
}

/// Counts blocks and prints them every half second.
#[derive(Debug)]
struct Progress {
    meter: Arc<Meter>,
    bytes: Arc<AtomicU64>,
    _reporter: Reporter,
}

impl Progress {
    fn start(role: &'static str, observer: Option<SocketAddr>) -> Result<Self> {
        let (meter, bytes) = (Arc::new(Meter::observed(observer)?), Arc::new(AtomicU64::new(0)));
        meter.start();
        let (events, total) = (Arc::clone(&meter), Arc::clone(&bytes));
        let reporter = Reporter::spawn("STREAM-PROGRESS", Duration::from_millis(500), move || {
            json!({"role": role, "blocks": events.count(), "bytes": total.load(Ordering::Relaxed),
                   "longest_gap_ms": events.take_recent_gap_ms()})
        });
        Ok(Self { meter, bytes, _reporter: reporter })
    }

    fn block(&self, length: u32) {
        self.bytes.fetch_add(u64::from(length), Ordering::Relaxed);
        self.meter.event();
    }
}

/// Serves one connection after the other; a connection that ends between two blocks is no error.
///
/// # Errors
/// The first wrong byte, or a connection that broke.
pub fn serve(listener: &TcpListener) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().context("waiting for the client")?;
        serve_one(stream)?;
    }
}

fn serve_one(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true).context("setting TCP_NODELAY")?;
    let progress = Progress::start("serve", None)?;
    for sequence in 0.. {
        let Some(length) = receive(&mut stream, Way::Request, sequence)? else { return Ok(()) };
        progress.block(length);
        send(&mut stream, Way::Response, sequence, length)?;
    }
    Ok(())
}

/// Sends blocks of `block` bytes for ever and checks the answers; an observer is shown each answer.
///
/// # Errors
/// The server that did not come up, the first wrong byte, or a connection that broke.
pub fn run(server: SocketAddr, block: u32, observer: Option<SocketAddr>) -> Result<()> {
    if !(1..=MAX_BLOCK).contains(&block) {
        bail!("a block has 1 to {MAX_BLOCK} bytes, not {block}");
    }
    let mut stream = connect("the server", server, PATIENCE)?;
    let progress = Progress::start("run", observer)?;
    for sequence in 0.. {
        send(&mut stream, Way::Request, sequence, block)?;
        match receive(&mut stream, Way::Response, sequence)? {
            Some(length) if length == block => progress.block(length),
            Some(length) => bail!("block {sequence} came back with {length} bytes instead of {block}"),
            None => bail!("the server closed the connection before it answered block {sequence}"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> (SocketAddr, std::thread::JoinHandle<Result<()>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (address, std::thread::spawn(move || serve_one(listener.accept()?.0)))
    }

    #[test]
    fn blocks_go_there_and_back() {
        let (address, server) = server();
        let mut stream = TcpStream::connect(address).unwrap();
        for sequence in 0..50 {
            send(&mut stream, Way::Request, sequence, 1001).unwrap();
            assert_eq!(receive(&mut stream, Way::Response, sequence).unwrap(), Some(1001));
        }
        drop(stream);
        server.join().unwrap().unwrap();
    }

    #[test]
    fn one_wrong_byte_is_named() {
        let (address, server) = server();
        let mut stream = TcpStream::connect(address).unwrap();
        let mut block = Vec::new();
        send(&mut block, Way::Request, 0, 64).unwrap();
        block[HEADER + 17] ^= 1;
        stream.write_all(&block).unwrap();
        let error = server.join().unwrap().unwrap_err();
        assert!(error.to_string().contains("block 0: byte 17"), "{error}");
    }

    #[test]
    fn a_doubled_block_and_a_huge_one_are_refused() {
        let mut block = Vec::new();
        send(&mut block, Way::Request, 4, 8).unwrap();
        assert!(receive(&mut block.as_slice(), Way::Request, 5).is_err());
        block[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(receive(&mut block.as_slice(), Way::Request, 4).is_err());
    }
}

//! The running member: sockets and threads around one [`Book`].

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::book::{Book, Transport};
use super::control;
use super::record::{Bytes, LENGTH, Record};
use crate::meter::announce;
use crate::net::{PATIENCE, accept, connect};

/// Who a member is.
#[derive(Debug, Clone)]
pub struct MemberConfig {
    /// Its number, from 1.
    pub member: u32,
    /// Where all members listen (TCP and UDP), in the order of their numbers.
    pub members: Vec<SocketAddr>,
    /// Where it answers requests.
    pub control: SocketAddr,
    /// Between two transfers on a connection, and between two rounds of datagrams.
    pub pause: Duration,
    /// An observer who is shown each arrival: a datagram of receiver, sender and transport (0 TCP, 1 UDP), a byte each.
    pub show: Option<SocketAddr>,
}

/// Shows arrivals to an observer, if there is one.
#[derive(Debug, Clone)]
struct Window {
    own: u32,
    socket: Option<Arc<UdpSocket>>,
}

impl Window {
    fn open(own: u32, observer: Option<SocketAddr>) -> Result<Self> {
        let connect = |observer| {
            let socket = UdpSocket::bind("0.0.0.0:0").context("a UDP socket")?;
            socket.connect(observer).with_context(|| format!("the observer {observer}"))?;
            socket.set_nonblocking(true).context("a UDP socket")?;
            anyhow::Ok(Arc::new(socket))
        };
        Ok(Self { own, socket: observer.map(connect).transpose()? })
    }

    fn show(&self, from: u32, transport: Transport) {
        if let Some(socket) = &self.socket {
            let byte = |number: u32| u8::try_from(number).unwrap_or(u8::MAX);
            // One that is lost makes a gap; that is what gaps are.
            let _ = socket.send(&[byte(self.own), byte(from), u8::from(transport == Transport::Udp)]);
        }
    }
}

type Shared = Arc<Mutex<Book>>;

fn lock(book: &Shared) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends and receives for ever. A connection that breaks is noted in the book and not made again.
///
/// # Errors
/// A socket cannot be opened, or another member does not come up.
pub fn run(config: &MemberConfig) -> Result<()> {
    let count = u32::try_from(config.members.len()).context("number of members")?;
    let book = Arc::new(Mutex::new(Book::open(config.member, count)?));
    let window = Window::open(config.member, config.show)?;
    let own = config.members[config.member as usize - 1];
    let bound = |what: &str, address: SocketAddr| format!("{what} socket at {address}");
    let listener = TcpListener::bind(own).with_context(|| bound("TCP", own))?;
    let datagrams = UdpSocket::bind(own).with_context(|| bound("UDP", own))?;
    let requests = TcpListener::bind(config.control).with_context(|| bound("control", config.control))?;
    let for_control = Arc::clone(&book);
    std::thread::spawn(move || control::serve(&requests, &for_control));

    let others: Vec<_> =
        (1..).zip(config.members.iter().copied()).filter(|(number, _)| *number != config.member).collect();
    let connecting = connect_all(config.member, others.clone());
    let incoming = accept_all(&listener, others.len())?;
    let outgoing = connecting.join().map_err(|_| anyhow::anyhow!("connecting panicked"))??;
    announce("BANK-READY", &json!({"member": config.member, "members": count}));

    for (number, stream) in incoming {
        let (book, window) = (Arc::clone(&book), window.clone());
        std::thread::spawn(move || {
            let why = receive(number, stream, &book, &window);
            lock(&book).note_broken(number, false, why);
        });
    }
    for (number, stream) in outgoing {
        let (book, pause) = (Arc::clone(&book), config.pause);
        std::thread::spawn(move || {
            let why = send(number, stream, &book, pause);
            lock(&book).note_broken(number, true, why);
        });
    }
    let (socket, for_datagrams) = (datagrams.try_clone().context("UDP socket")?, Arc::clone(&book));
    std::thread::spawn(move || receive_datagrams(&socket, &for_datagrams, &window));
    send_datagrams(&datagrams, &others, &book, config.pause)
}

type Connections = Vec<(u32, TcpStream)>;

/// Connects to all others in a thread, since they wait for us as we for them. The first bytes say who we are.
fn connect_all(own: u32, others: Vec<(u32, SocketAddr)>) -> std::thread::JoinHandle<Result<Connections>> {
    std::thread::spawn(move || {
        let one = |(number, address)| {
            let mut stream = connect(&format!("member {number}"), address, PATIENCE)?;
            stream.write_all(&own.to_le_bytes()).with_context(|| format!("greeting member {number}"))?;
            Ok((number, stream))
        };
        others.into_iter().map(one).collect()
    })
}

fn accept_all(listener: &TcpListener, others: usize) -> Result<Connections> {
    let mut connections = Connections::new();
    while connections.len() < others {
        let (mut stream, peer) = accept("another member", listener, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE)).context("setting a time limit")?;
        let mut greeting = [0; 4];
        stream.read_exact(&mut greeting).with_context(|| format!("waiting for the greeting of {peer}"))?;
        stream.set_read_timeout(None).context("clearing the time limit")?;
        let number = u32::from_le_bytes(greeting);
        ensure!(connections.iter().all(|(known, _)| *known != number), "member {number} is there twice");
        connections.push((number, stream));
    }
    Ok(connections)
}

/// Sends until the connection breaks; returns why.
fn send(to: u32, mut stream: TcpStream, book: &Shared, pause: Duration) -> String {
    loop {
        let next = lock(book).send(Transport::Tcp, to, now_ns());
        if let Some(bytes) = next
            && let Err(error) = stream.write_all(&bytes)
        {
            return error.to_string();
        }
        std::thread::sleep(pause);
    }
}

/// Receives until the connection breaks; returns why.
fn receive(from: u32, mut stream: TcpStream, book: &Shared, window: &Window) -> String {
    let mut bytes = [0; LENGTH];
    loop {
        if let Err(error) = stream.read_exact(&mut bytes) {
            return error.to_string();
        }
        lock(book).receive_stream(from, &bytes);
        window.show(from, Transport::Tcp);
    }
}

fn send_datagrams(
    socket: &UdpSocket,
    others: &[(u32, SocketAddr)],
    book: &Shared,
    pause: Duration,
) -> Result<()> {
    loop {
        for (number, address) in others {
            let next = lock(book).send(Transport::Udp, *number, now_ns());
            if let Some(bytes) = next {
                // A datagram that the kernel has no room for is lost, as any other may be.
                let _ = socket.send_to(&bytes, address);
            }
        }
        std::thread::sleep(pause);
    }
}

fn receive_datagrams(socket: &UdpSocket, book: &Shared, window: &Window) {
    let mut bytes: Bytes = [0; LENGTH];
    loop {
        if matches!(socket.recv_from(&mut bytes), Ok((LENGTH, _))) {
            lock(book).receive_datagram(&bytes);
            window.show(Record::decode(&bytes).from, Transport::Udp);
        }
    }
}

fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

//! What a member knows of its channels, as one value.

use std::collections::VecDeque;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::record::{Bytes, Digest, Record};

/// What every member begins with.
pub const OPENING: i64 = 1_000_000;

/// Most members.
pub const MAX_MEMBERS: u32 = 64;

/// How many of the last transfers of a channel are kept one by one. They must reach back to the cut when the states are
/// read out; at some hundred a second these are many seconds.
pub const KEPT: usize = 4096;

/// How a transfer travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// In a stream: arrives exactly once and in order, also after a restore.
    Tcp,
    /// In a datagram: may be lost or repeated, and moves no money.
    Udp,
}

/// The last transfers of one direction of a channel, oldest first: number and digest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Log(pub VecDeque<(u64, Digest)>);

impl Log {
    fn push(&mut self, number: u64, digest: Digest) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back((number, digest));
    }
}

/// One direction of a TCP channel.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stream {
    /// Transfers so far, which is also the last one's number.
    pub last: u64,
    /// Sum of their amounts.
    pub amount: i64,
    /// Digest of all their bytes.
    pub chain: Digest,
    /// What `chain` was after each of the last transfers.
    pub log: Log,
    /// Why the connection ended; nobody ends one on purpose.
    pub broken: Option<String>,
}

impl Stream {
    /// Adds the next transfer, and returns its amount.
    fn add(&mut self, bytes: &Bytes) -> i64 {
        let amount = Record::decode(bytes).amount();
        self.last += 1;
        self.amount += amount;
        self.chain = self.chain.then(bytes);
        self.log.push(self.last, self.chain);
        amount
    }
}

/// One direction of a UDP channel.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Datagrams {
    /// Highest number sent or received.
    pub last: u64,
    /// Datagrams sent or received, repetitions included.
    pub count: u64,
    /// Numbers and digests of the last ones, in the order in which they were sent or received.
    pub log: Log,
}

impl Datagrams {
    fn add(&mut self, number: u64, bytes: &Bytes) {
        self.last = self.last.max(number);
        self.count += 1;
        self.log.push(number, Digest::of(bytes));
    }
}

/// What went one way between a member and one other.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Half {
    /// Over TCP.
    pub tcp: Stream,
    /// Over UDP.
    pub udp: Datagrams,
}

/// What a member knows of one other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The other's number.
    pub member: u32,
    /// What went there.
    pub sent: Half,
    /// What came from there.
    pub received: Half,
}

/// The state of one member as it is read out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// This member's number, from 1.
    pub member: u32,
    /// How many there are.
    pub members: u32,
    /// Has it stopped sending?
    pub frozen: bool,
    /// What it has.
    pub balance: i64,
    /// All the others, in the order of their numbers.
    pub peers: Vec<Peer>,
}

impl State {
    /// The same without the logs, for a look at how far it is.
    #[must_use]
    pub fn summary(mut self) -> Self {
        for half in self.peers.iter_mut().flat_map(|peer| [&mut peer.sent, &mut peer.received]) {
            half.tcp.log = Log::default();
            half.udp.log = Log::default();
        }
        self
    }

    /// What is known of another member.
    #[must_use]
    pub fn peer(&self, member: u32) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.member == member)
    }
}

/// The book of a running member.
#[derive(Debug, Clone)]
pub struct Book {
    state: State,
    nonce: u64,
}

impl Book {
    /// An empty book.
    ///
    /// # Errors
    /// There is no such member, or there are too few or too many.
    pub fn open(member: u32, members: u32) -> Result<Self> {
        ensure!((2..=MAX_MEMBERS).contains(&members), "a bank has 2 to {MAX_MEMBERS} members, not {members}");
        ensure!((1..=members).contains(&member), "there is no member {member} among {members}");
        let others = (1..=members).filter(|other| *other != member);
        let peer = |member| Peer { member, sent: Half::default(), received: Half::default() };
        let peers = others.map(peer).collect();
        Ok(Self { state: State { member, members, frozen: false, balance: OPENING, peers }, nonce: 0 })
    }

    /// Books the next transfer to another member and returns its bytes; `None` while the member is frozen.
    ///
    /// `now_ns` is the wall clock. Each nonce follows from the one before and from the clock: after a restore the first
    /// transfer that is made in another nanosecond than in the undone future makes all later contents differ, and the hook
    /// that steps the clock makes that certain.
    pub fn send(&mut self, transport: Transport, to: u32, now_ns: u64) -> Option<Bytes> {
        if self.state.frozen {
            return None;
        }
        let from = self.state.member;
        let nonce = mix(self.nonce ^ mix(now_ns ^ u64::from(from) << 56));
        let half = &mut self.state.peers.iter_mut().find(|peer| peer.member == to)?.sent;
        self.nonce = nonce;
        let number = match transport {
            Transport::Tcp => half.tcp.last + 1,
            Transport::Udp => half.udp.last + 1,
        };
        let bytes = Record { from, to, number, nonce }.encode();
        match transport {
            Transport::Tcp => self.state.balance -= half.tcp.add(&bytes),
            Transport::Udp => half.udp.add(number, &bytes),
        }
        Some(bytes)
    }

    /// Books what a stream brought, whatever it is.
    pub fn receive_stream(&mut self, from: u32, bytes: &Bytes) {
        if let Some(peer) = self.state.peers.iter_mut().find(|peer| peer.member == from) {
            self.state.balance += peer.received.tcp.add(bytes);
        }
    }

    /// Books a datagram. One that names no member of this bank is no transfer and is ignored.
    pub fn receive_datagram(&mut self, bytes: &Bytes) {
        let record = Record::decode(bytes);
        let known = |peer: &&mut Peer| peer.member == record.from && record.to == self.state.member;
        if let Some(peer) = self.state.peers.iter_mut().find(known) {
            peer.received.udp.add(record.number, bytes);
        }
    }

    /// Notes why the stream to or from another member ended.
    pub fn note_broken(&mut self, member: u32, sending: bool, why: String) {
        if let Some(peer) = self.state.peers.iter_mut().find(|peer| peer.member == member) {
            let half = if sending { &mut peer.sent } else { &mut peer.received };
            half.tcp.broken = Some(why);
        }
    }

    /// Stops sending, or goes on.
    pub fn set_frozen(&mut self, frozen: bool) {
        self.state.frozen = frozen;
    }

    /// Everything, at this instant.
    #[must_use]
    pub fn state(&self) -> State {
        self.state.clone()
    }
}

/// SplitMix64's finaliser: one bit of difference changes all bits.
fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_moves_money_and_a_datagram_does_not() {
        let mut books = [Book::open(1, 2).unwrap(), Book::open(2, 2).unwrap()];
        for now in 0..10 {
            let bytes = books[0].send(Transport::Tcp, 2, now).unwrap();
            books[1].receive_stream(1, &bytes);
            let bytes = books[0].send(Transport::Udp, 2, now).unwrap();
            books[1].receive_datagram(&bytes);
        }
        let [a, b] = books.map(|book| book.state());
        assert!(a.balance < OPENING);
        assert_eq!(a.balance + b.balance, 2 * OPENING);
        assert_eq!(a.peers[0].sent, b.peers[0].received);
        assert_eq!(b.peers[0].sent, Half::default());
        assert_eq!(a.peers[0].sent.udp.last, 10);
    }

    #[test]
    fn one_nanosecond_changes_everything_that_follows() {
        let mut book = Book::open(1, 2).unwrap();
        let mut twin = book.clone();
        assert_ne!(book.send(Transport::Udp, 2, 5), twin.send(Transport::Udp, 2, 6));
        assert_ne!(book.send(Transport::Tcp, 2, 9), twin.send(Transport::Tcp, 2, 9));
    }

    #[test]
    fn a_frozen_member_books_nothing_and_a_stranger_is_ignored() {
        let mut book = Book::open(1, 3).unwrap();
        book.set_frozen(true);
        let before = book.state();
        assert_eq!(book.send(Transport::Tcp, 2, 1), None);
        for (from, to) in [(1, 1), (4, 1), (2, 3)] {
            book.receive_datagram(&Record { from, to, number: 1, nonce: 1 }.encode());
        }
        assert_eq!(book.state(), before);
        assert!(Book::open(3, 2).is_err() && Book::open(1, 1).is_err());
    }

    #[test]
    fn logs_are_bounded_and_keep_the_last() {
        let mut book = Book::open(1, 2).unwrap();
        for now in 0..KEPT as u64 + 5 {
            book.send(Transport::Tcp, 2, now);
        }
        let log = &book.state().peers[0].sent.tcp.log.0;
        assert_eq!((log.len(), log[0].0, log[KEPT - 1].0), (KEPT, 6, KEPT as u64 + 5));
    }
}

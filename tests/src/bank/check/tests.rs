//! The checker against books whose cuts are known to be right or wrong.

use proptest::prelude::*;

use super::*;
use crate::bank::book::{Book, KEPT};
use crate::bank::record::Bytes;

/// Two members that have exchanged `transfers` each way, everything arrived and frozen.
fn settled(transfers: u64) -> [State; 2] {
    let mut books = [Book::open(1, 2).unwrap(), Book::open(2, 2).unwrap()];
    for now in 0..transfers {
        for (from, to) in [(0, 1), (1, 0)] {
            let bytes = books[from].send(Transport::Tcp, to as u32 + 1, now).unwrap();
            books[to].receive_stream(from as u32 + 1, &bytes);
            let bytes = books[from].send(Transport::Udp, to as u32 + 1, now).unwrap();
            books[to].receive_datagram(&bytes);
        }
    }
    books.map(|mut book| {
        book.set_frozen(true);
        book.state()
    })
}

fn only(states: &[State]) -> String {
    let verdict = check(states).unwrap();
    assert_eq!(verdict.violations.len(), 1, "{verdict:?}");
    verdict.violations[0].to_string()
}

#[test]
fn what_arrived_as_it_was_sent_is_right() {
    let verdict = check(&settled(20)).unwrap();
    assert_eq!(verdict, Verdict { violations: vec![], transfers: 40, datagrams: 40 });
    // Also when the logs have forgotten the beginning.
    let long = check(&settled(KEPT as u64 + 100)).unwrap();
    assert_eq!(long.violations, []);
}

#[test]
fn each_breach_is_told_with_channel_and_number() {
    let mut states = settled(20);
    states[1].peers[0].sent.udp.last = 18;
    states[1].peers[0].sent.udp.log.0.truncate(18);
    assert_eq!(
        only(&states),
        "I1 broken on channel udp 2->1 at number 19: 1 has received it, but 2 has not sent it"
    );

    let mut states = settled(20);
    states[0].peers[0].received.udp.log.0[6].1 = Digest::default();
    assert_eq!(
        only(&states),
        "I1 broken on channel udp 2->1 at number 7: 1 has received other contents than 2 has sent"
    );

    let mut states = settled(20);
    let stream = &mut states[0].peers[0].sent.tcp;
    stream.last = 17;
    stream.log.0.truncate(17);
    assert_eq!(
        only(&states),
        "I1 broken on channel tcp 1->2 at number 18: 2 has received it, but 1 has not sent it"
    );

    let mut states = settled(20);
    for entry in states[1].peers[0].received.tcp.log.0.iter_mut().skip(11) {
        entry.1 = Digest::default();
    }
    assert_eq!(
        only(&states),
        "I1 or I2 broken on channel tcp 1->2 at number 12: 2 has received other contents than 1 has sent"
    );

    let mut states = settled(20);
    let stream = &mut states[1].peers[0].received.tcp;
    stream.last = 15;
    stream.log.0.truncate(15);
    assert_eq!(
        only(&states),
        "I2 broken on channel tcp 1->2 at number 16: 1 has sent it, but 2 does not receive it"
    );

    let mut states = settled(20);
    states[1].peers[0].sent.tcp.broken = Some("reset".into());
    assert_eq!(only(&states), "I2 broken on channel tcp 2->1 at number 21: the connection broke: reset");
}

#[test]
fn a_chain_is_compared_even_where_the_logs_no_longer_meet() {
    let mut states = settled(20);
    states[0].peers[0].sent.tcp.log = Log::default();
    assert_eq!(check(&states).unwrap().violations, []);
    states[0].peers[0].sent.tcp.chain = Digest::default();
    assert!(only(&states).contains("tcp 1->2 at number 20"));
}

#[test]
fn incomplete_states_and_lost_money_are_refused() {
    let states = settled(3);
    let refuse = |states: &[State]| check(states).unwrap_err().to_string();
    assert!(refuse(&[]).contains("no states"));
    assert!(refuse(&states[..1]).contains("given are those of [1]"));
    assert!(refuse(&[states[0].clone(), states[0].clone()]).contains("each once"));
    let mut running = states.clone();
    running[1].frozen = false;
    assert!(refuse(&running).contains("member 2 has not stopped"));
    let mut poor = states;
    poor[0].balance -= 1;
    assert!(refuse(&poor).contains("1999999 instead of 2000000"));
}

/// Members of the simulated runs.
const MEMBERS: usize = 3;

/// One step of a run; members are counted from 0.
#[derive(Debug, Clone)]
enum Event {
    Send(Transport, usize, usize),
    /// The stream's next transfer, or the datagram at this place of those in flight.
    Deliver(Transport, usize, usize, usize),
    Cut(usize),
}

/// What was sent on one channel: contents, and whether the sender had cut before.
#[derive(Debug, Clone, Default)]
struct Channel {
    sent: Vec<(Bytes, bool)>,
    /// Of a stream: how many were delivered.
    delivered: usize,
    /// Of datagrams: those in flight, as places in `sent`.
    flying: Vec<usize>,
}

/// A run until every member has cut, with what an all-knowing observer saw.
#[derive(Debug)]
struct Run {
    books: Vec<Book>,
    cuts: Vec<Option<Book>>,
    streams: [[Channel; MEMBERS]; MEMBERS],
    datagrams: [[Channel; MEMBERS]; MEMBERS],
    /// Delivered before the receiver's cut though sent after the sender's.
    orphans: usize,
}

impl Run {
    fn new(events: &[Event]) -> Self {
        let books: Vec<_> = (1..=MEMBERS as u32).map(|m| Book::open(m, MEMBERS as u32).unwrap()).collect();
        let mut run = Self {
            books,
            cuts: vec![None; MEMBERS],
            streams: Default::default(),
            datagrams: Default::default(),
            orphans: 0,
        };
        for (now, event) in (1..).zip(events) {
            run.apply(now, event);
        }
        for member in 0..MEMBERS {
            run.apply(0, &Event::Cut(member));
        }
        run
    }

    fn apply(&mut self, now: u64, event: &Event) {
        match *event {
            Event::Cut(member) => {
                self.cuts[member].get_or_insert_with(|| self.books[member].clone());
            }
            Event::Send(transport, from, to) if from != to => {
                let bytes = self.books[from].send(transport, to as u32 + 1, now).unwrap();
                let after_cut = self.cuts[from].is_some();
                let channel = match transport {
                    Transport::Tcp => &mut self.streams[from][to],
                    Transport::Udp => &mut self.datagrams[from][to],
                };
                channel.flying.push(channel.sent.len());
                channel.sent.push((bytes, after_cut));
            }
            Event::Deliver(Transport::Tcp, from, to, _) => {
                let channel = &mut self.streams[from][to];
                let Some((bytes, after_cut)) = channel.sent.get(channel.delivered) else { return };
                channel.delivered += 1;
                self.orphans += usize::from(*after_cut && self.cuts[to].is_none());
                self.books[to].receive_stream(from as u32 + 1, bytes);
            }
            Event::Deliver(Transport::Udp, from, to, place) => {
                let channel = &mut self.datagrams[from][to];
                if channel.flying.is_empty() {
                    return;
                }
                let (bytes, after_cut) = &channel.sent[channel.flying.remove(place % channel.flying.len())];
                self.orphans += usize::from(*after_cut && self.cuts[to].is_none());
                self.books[to].receive_datagram(bytes);
            }
            Event::Send(..) => {}
        }
    }

    /// All members go on from their cuts with `more` transfers on each channel and then settle. What a stream had not
    /// delivered is sent again; a receiver takes what it takes for repetitions as read.
    fn restored(&self, more: u64) -> Vec<State> {
        let mut books: Vec<_> = self.cuts.iter().flatten().cloned().collect();
        let before: Vec<_> = books.iter().map(Book::state).collect();
        for (from, to) in (0..MEMBERS).flat_map(|from| (0..MEMBERS).map(move |to| (from, to))) {
            if from == to {
                continue;
            }
            let (sender, receiver) = (from as u32 + 1, to as u32 + 1);
            let sent = before[from].peer(receiver).unwrap().sent.tcp.last as usize;
            let mut stream: Vec<_> =
                self.streams[from][to].sent[..sent].iter().map(|(bytes, _)| *bytes).collect();
            for now in 0..more {
                stream.push(books[from].send(Transport::Tcp, receiver, 1 << 40 | now).unwrap());
                let bytes = books[from].send(Transport::Udp, receiver, 1 << 40 | now).unwrap();
                books[to].receive_datagram(&bytes);
            }
            let received = before[to].peer(sender).unwrap().received.tcp.last as usize;
            for bytes in stream.iter().skip(received) {
                books[to].receive_stream(sender, bytes);
            }
        }
        books
            .into_iter()
            .map(|mut book| {
                book.set_frozen(true);
                book.state()
            })
            .collect()
    }
}

fn event() -> impl Strategy<Value = Event> {
    let transport = || prop_oneof![Just(Transport::Tcp), Just(Transport::Udp)];
    prop_oneof![
        8 => (transport(), 0..MEMBERS, 0..MEMBERS).prop_map(|(t, a, b)| Event::Send(t, a, b)),
        8 => (transport(), 0..MEMBERS, 0..MEMBERS, 0..8usize).prop_map(|(t, a, b, p)| Event::Deliver(t, a, b, p)),
        1 => (0..MEMBERS).prop_map(Event::Cut),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// The checker finds something exactly when there is an orphan, however far the restored members have gone on.
    #[test]
    fn the_checker_is_right(events in proptest::collection::vec(event(), 0..120), more in 0..20u64) {
        let run = Run::new(&events);
        let verdict = check(&run.restored(more)).unwrap();
        prop_assert_eq!(run.orphans > 0, !verdict.violations.is_empty(), "{} orphans, {:?}", run.orphans, verdict);
    }
}

//! What the VMs say to each other, as somebody sees it to whom every arrival is shown.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::lab::namespaces::Lab;

/// Where arrivals are shown.
pub const PORT: u16 = 9010;

/// What flowed so recently flows.
const RECENT: Duration = Duration::from_millis(600);

/// One direction between two VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Channel {
    to: u8,
    from: u8,
    udp: bool,
}

type Arrivals = BTreeMap<Channel, Vec<Instant>>;

/// All arrivals since the last [`forget`](Watch::forget).
#[derive(Debug)]
pub struct Watch {
    arrivals: Arc<Mutex<Arrivals>>,
    vms: u32,
}

/// How traffic came back.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Gap {
    /// Longest silence of any pair of VMs, whatever the transport, ms.
    pub any_ms: f64,
    /// Longest silence of any TCP stream, ms. TCP's own back-off is in it.
    pub tcp_ms: f64,
}

impl Watch {
    /// Watches from the LAN's bridge, on a thread that lives as long as the program.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn start(lab: &Lab, vms: u32) -> Result<Self> {
        let address = SocketAddr::from((Lab::WATCH, PORT));
        let socket = lab.lan().enter(move || UdpSocket::bind(address).context("watching the traffic"))?;
        let arrivals: Arc<Mutex<Arrivals>> = Arc::default();
        let shared = Arc::clone(&arrivals);
        std::thread::spawn(move || {
            let mut bytes = [0; 3];
            while let Ok(length) = socket.recv(&mut bytes) {
                let [to, from, udp] = bytes;
                if length == bytes.len() {
                    let channel = Channel { to, from, udp: udp == 1 };
                    let mut arrivals = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    arrivals.entry(channel).or_default().push(Instant::now());
                }
            }
        });
        Ok(Self { arrivals, vms })
    }

    /// Begins anew.
    pub fn forget(&self) {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// All streams between VMs that are not silenced.
    fn channels(&self, silent: &[u32]) -> Vec<Channel> {
        let speaking: Vec<u8> =
            (1..=self.vms).filter(|vm| !silent.contains(vm)).filter_map(|vm| u8::try_from(vm).ok()).collect();
        let pairs = speaking.iter().flat_map(|to| speaking.iter().map(move |from| (*to, *from)));
        let pairs = pairs.filter(|(to, from)| to != from);
        pairs.flat_map(|(to, from)| [false, true].map(|udp| Channel { to, from, udp })).collect()
    }

    /// Who is silent now, in words; `None` when all streams flow. What came before `since` does not count.
    pub fn missing(&self, silent: &[u32], since: Instant) -> Option<String> {
        let arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        let flows = |channel: &Channel| {
            let last = arrivals.get(channel).and_then(|all| all.last());
            last.is_some_and(|last| last.elapsed() < RECENT && *last > since)
        };
        let quiet = self.channels(silent).into_iter().find(|channel| !flows(channel))?;
        let transport = if quiet.udp { "UDP" } else { "TCP" };
        Some(format!("{transport} traffic from vm{} to vm{}", quiet.from, quiet.to))
    }

    /// The longest silences that were not over at `since`.
    pub fn gap(&self, silent: &[u32], since: Instant) -> Gap {
        let arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        let empty = Vec::new();
        let (mut any, mut tcp) = (Duration::ZERO, Duration::ZERO);
        for channel in self.channels(silent).into_iter().filter(|channel| !channel.udp) {
            let of = |channel| arrivals.get(&channel).unwrap_or(&empty);
            let (stream, datagrams) = (of(channel), of(Channel { udp: true, ..channel }));
            tcp = tcp.max(longest(stream.iter().copied(), since));
            let mut both: Vec<_> = stream.iter().chain(datagrams).copied().collect();
            both.sort_unstable();
            any = any.max(longest(both.into_iter(), since));
        }
        let ms = |time: Duration| (time.as_secs_f64() * 1e4).round() / 10.0;
        Gap { any_ms: ms(any), tcp_ms: ms(tcp) }
    }
}

/// The longest time between two arrivals that ends after `since`; the open one counts.
fn longest(arrivals: impl Iterator<Item = Instant>, since: Instant) -> Duration {
    let (mut before, mut longest) = (since, Duration::ZERO);
    for arrival in arrivals {
        if arrival > since {
            longest = longest.max(arrival - before);
        }
        before = arrival;
    }
    longest.max(before.max(since).elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_count_from_the_blow_on() {
        let origin = Instant::now().checked_sub(Duration::from_secs(10)).unwrap_or_else(Instant::now);
        let at = |ms: u64| origin + Duration::from_millis(ms);
        let arrivals = [0, 4000, 4100, 6500, 9990].map(at);
        let found = longest(arrivals.into_iter(), at(4050));
        assert!((3490..3600).contains(&found.as_millis()), "{found:?}");
        let found = longest(arrivals.into_iter().take(4), at(4050));
        assert!((3500..3700).contains(&found.as_millis()), "the open one: {found:?}");
        // Silence began before the blow and ended after it.
        let found = longest([0, 9900].map(at).into_iter(), at(4050));
        assert!((9900..9950).contains(&found.as_millis()), "{found:?}");
    }
}

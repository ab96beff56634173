//! A load that shows how long it stood still.
//!
//! Its events are a timer's ticks (idle) or written pages (dirty). The longest time between two of them, as an observer
//! outside sees it, is the longest time for which the guest did nothing: a pause, a page fault that the host served
//! late, a processor given to somebody else.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::meter::Meter;

/// What a guest bears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// Nothing.
    Off,
    /// A timer every millisecond.
    Idle,
    /// As many MiB of RAM, which hold something else in each page, are written page by page, as fast as it goes.
    Dirty(u32),
}

/// Between two ticks while idle.
const TICK: Duration = Duration::from_millis(1);

/// Pages between two events while dirtying: looking at the clock can be slow in a guest.
const PAGES: usize = 16;

/// Bytes of a page.
const PAGE: usize = 4096;

/// Longest time for the worker to take up a new load; it writes all the RAM once.
const TAKE_UP: Duration = Duration::from_secs(120);

/// The worker thread.
#[derive(Debug)]
pub struct Worker {
    orders: Mutex<mpsc::Sender<Order>>,
}

/// A load, and whom to tell that it is borne.
type Order = (Load, mpsc::Sender<()>);

impl Worker {
    /// Starts a worker that does nothing yet.
    ///
    /// # Errors
    /// There is no route to the observer, who is shown the events.
    pub fn start(observer: Option<SocketAddr>) -> Result<Self> {
        let (orders, received) = mpsc::channel();
        let meter = Meter::observed(observer)?;
        std::thread::spawn(move || work(&received, &meter));
        Ok(Self { orders: Mutex::new(orders) })
    }

    /// Changes the load.
    ///
    /// # Errors
    /// The worker is gone, or too slow.
    pub fn bear(&self, load: Load) -> Result<()> {
        let (borne, answer) = mpsc::channel();
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.send((load, borne)).context("the worker is gone")?;
        answer.recv_timeout(TAKE_UP).with_context(|| format!("taking up the load {load:?}"))
    }
}

/// Bears one load after the other until nobody can send orders any more.
fn work(orders: &mpsc::Receiver<Order>, meter: &Meter) {
    // Kept from one load to the next: RAM that was written once stays full.
    let mut ram = Vec::new();
    let mut page = 0;
    let mut next = orders.recv().ok();
    while let Some((load, borne)) = next {
        if let Load::Dirty(mib) = load {
            fill(&mut ram, mib as usize * (1 << 20) / PAGE);
        }
        // Whoever asked may have given up; the load is borne all the same.
        let _ = borne.send(());
        next = loop {
            match load {
                Load::Off => break orders.recv().ok(),
                Load::Idle => std::thread::sleep(TICK),
                Load::Dirty(_) => {
                    for _ in 0..PAGES {
                        page = (page + 1) % ram.len().max(1);
                        ram.get_mut(page).into_iter().for_each(touch);
                    }
                }
            }
            meter.event();
            match orders.try_recv() {
                Err(mpsc::TryRecvError::Empty) => {}
                order => break order.ok(),
            }
        };
    }
}

/// Makes `ram` as many pages, each with a content of its own: the same everywhere would be stored in nothing.
fn fill(ram: &mut Vec<[u64; PAGE / 8]>, pages: usize) {
    ram.reserve_exact(pages.saturating_sub(ram.len()));
    while ram.len() < pages {
        let mut seed = ram.len() as u64 + 1;
        ram.push(std::array::from_fn(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        }));
    }
    ram.truncate(pages);
}

fn touch(page: &mut [u64; PAGE / 8]) {
    page[0] = std::hint::black_box(page[0]).wrapping_add(1);
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::beat::Observer;

    #[test]
    fn loads_are_borne_and_shown() {
        let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let observer = Observer::start(address).unwrap();
        let worker = Worker::start(Some(address)).unwrap();
        for load in [Load::Idle, Load::Dirty(1), Load::Idle] {
            worker.bear(load).unwrap();
            std::thread::sleep(Duration::from_millis(30));
            assert!(observer.take_gap_ms().is_some(), "{load:?}");
        }
        worker.bear(Load::Off).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        let _ = observer.take_gap_ms();
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(observer.take_gap_ms(), None);
    }

    #[test]
    fn pages_differ() {
        let mut ram = Vec::new();
        fill(&mut ram, 3);
        assert!(ram[0] != ram[1] && ram[1] != ram[2]);
        let before = ram[1][0];
        touch(&mut ram[1]);
        assert_ne!(ram[1][0], before);
    }
}

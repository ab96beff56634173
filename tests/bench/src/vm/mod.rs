//! What needs VMs, but no cluster: pause and restore, by each way of taking RAM that the driver has.
//!
//! | module | what is in it |
//! |---|---|
//! | `guest` | one VM under the driver, and its gauge |
//! | `pause` | how long a cut stops a VM, and how long that seems from inside |
//! | `restore` | how soon a restored VM runs, and answers |

pub mod guest;
pub mod pause;
pub mod restore;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use unasnap_host::hypervisor::Hypervisor;
use unasnap_host::hypervisor::qemu::{Qemu, QemuConfig};
use unasnap_host::store::manifest::{Accel, RamWay};
use unasnap_tests::beat::Observer;
use unasnap_tests::sample::missing;

use crate::namespace::run;
use guest::Guest;

/// The bridge on which all VMs are.
const BRIDGE: &str = "br0";
/// Our own address beside theirs, and where we observe what they show.
const OWN_ADDRESS: &str = "10.79.0.254/24";
const OBSERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 79, 0, 254)), 9003);

/// What a VM is made of, and where.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Rounds; in each one every candidate is measured once
    #[arg(long)]
    pub rounds: u32,
    /// The guests' kernel
    #[arg(long)]
    pub kernel: PathBuf,
    /// The guests' initramfs
    #[arg(long)]
    pub initramfs: PathBuf,
    /// Folder for VMs and snapshots; emptied first
    #[arg(long)]
    pub state: PathBuf,
    /// RAM of the VMs, MiB
    #[arg(long, value_delimiter = ',', required = true)]
    pub memory_mb: Vec<u64>,
}

/// Where VMs are made.
#[derive(Debug)]
pub struct Yard<'a> {
    /// Sees the events of all guests that bear a load.
    observer: Observer,
    options: &'a Options,
    /// Found out once: where KVM cannot boot a guest, that takes seconds.
    accel: Accel,
    /// The ways that this host can go, best first.
    ways: Vec<RamWay>,
}

impl<'a> Yard<'a> {
    /// Empties the folder, makes the bridge, finds out what the host can do. `part` is what a way that it cannot go is
    /// missing from.
    ///
    /// # Errors
    /// There is no usable QEMU.
    async fn open(options: &'a Options, part: &str) -> Result<Self> {
        empty(&options.state)?;
        run(&format!("ip link add {BRIDGE} type bridge stp_state 0 forward_delay 0"))?;
        run(&format!("ip link set {BRIDGE} up"))?;
        run(&format!("ip address add {OWN_ADDRESS} dev {BRIDGE}"))?;
        let image = options.state.join("disk.qcow2");
        run(&format!("qemu-img create -q -f qcow2 {} 64M", image.display()))?;
        let probe = |accel, ram_way| {
            Qemu::open(QemuConfig { state_dir: options.state.join("probe"), accel, ram_way })
        };
        let accel = probe(None, None).await.context("asking QEMU what it can do")?.about().accel;
        let mut ways = Vec::new();
        for way in RamWay::ALL {
            match probe(Some(accel), Some(way)).await {
                Ok(_) => ways.push(way),
                Err(error) => missing(&format!("{part}.{}", way.label()), &error.to_string()),
            }
        }
        Ok(Self { observer: Observer::start(OBSERVER)?, options, accel, ways })
    }

    /// Forgets what guests have shown so far.
    fn forget(&self) {
        let _ = self.observer.take_gap_ms();
    }

    /// The longest gap of any guest that bears a load since the last call, milliseconds.
    fn gap_ms(&self) -> Result<f64> {
        self.observer.take_gap_ms().context("no guest showed an event")
    }

    /// One VM for each of these ways, filled, its gauge answering.
    async fn guests(&self, ways: &[RamWay], memory_mb: u64) -> Result<Vec<Guest>> {
        let mut guests = Vec::new();
        for (number, way) in (1..).zip(ways) {
            guests.push(Guest::boot(self, *way, memory_mb, number).await?);
        }
        for guest in &mut guests {
            guest.wait_for_gauge()?;
            guest.fill(working_set_mb(memory_mb))?;
        }
        Ok(guests)
    }
}

fn empty(folder: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("emptying {}", folder.display()))?;
    }
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))
}

/// What of a VM's RAM is written while it is dirtying, MiB.
fn working_set_mb(memory_mb: u64) -> u32 {
    u32::try_from(memory_mb / 4).unwrap_or(u32::MAX)
}

/// Nanoseconds as milliseconds.
fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

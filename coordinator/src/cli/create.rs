//! `unasnap vm create`, `clone`, `replicate` and `delete`.

use clap::Args;
use serde::Serialize;
use unasnap_protocol::control::{Colouring, VmState};
use unasnap_protocol::guest::Prefix;
use unasnap_protocol::household::{HostReport, NewNic, NewVm, Outcome, Replica, Runner, Task, VmClone};
use unasnap_protocol::name::Name;

use super::household::{ask_one, other_answer};
use super::output;
use crate::config::ClientConfig;
use crate::failure::{CliError, Result};

/// `vm create`.
#[derive(Debug, Args)]
pub struct CreateVm {
    /// Name of the VM; with --count, what their names begin with
    name: Name,
    /// The host
    #[arg(long)]
    host: Name,
    /// Whose member it becomes
    #[arg(long)]
    deployment: Name,
    /// What its disk begins with; `unasnap disk list` shows what there is
    #[arg(long)]
    base: Name,
    /// Who runs it, qemu or virtualbox; the base is an image of its kind
    #[arg(long, default_value = "qemu", value_parser = hypervisor)]
    hypervisor: Runner,
    /// RAM, MiB
    #[arg(long, default_value_t = 512)]
    memory_mb: u64,
    /// Virtual CPUs
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// A network card: bridge=NAME[,mac=MAC|auto][,address=ADDRESS]...; may be repeated
    #[arg(long = "nic", value_name = "NIC", value_parser = nic)]
    nics: Vec<NewNic>,
    /// How its packets are coloured: auto, host, memory, guest or none
    #[arg(long, default_value = "auto", value_parser = colouring)]
    colouring: Way,
    /// Boot this kernel, a file of the host, and not the disk
    #[arg(long, value_name = "FILE")]
    kernel: Option<String>,
    /// Initial RAM disk of the kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<String>,
    /// Command line of the kernel
    #[arg(long, value_name = "TEXT", requires = "kernel", default_value = "")]
    append: String,
    /// Make so many, called NAME-1, NAME-2 and so on; their addresses count up
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    count: Option<u32>,
}

/// `vm clone`.
#[derive(Debug, Args)]
pub struct CloneVm {
    /// The VM whose disks it gets; it is stopped, and keeps them
    vm: Name,
    /// Name of the new VM
    name: Name,
    /// Whose member it becomes [default: as the other one]
    #[arg(long)]
    deployment: Option<Name>,
    /// Addresses of one of its network cards, separated by commas; once for each that has some, in their order
    #[arg(long = "addresses", value_name = "ADDRESS,...", value_parser = addresses)]
    cards: Vec<Card>,
}

/// `vm replicate`.
#[derive(Debug, Args)]
pub struct ReplicateVm {
    #[command(flatten)]
    clone: CloneVm,
    /// Where the new VM is to live
    #[arg(long)]
    host: Name,
    /// What the transfer may take, MB per second [default: as fast as it goes]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
}

/// `vm delete`.
#[derive(Debug, Args)]
pub struct DeleteVm {
    /// The VM
    vm: Name,
    /// Also if it runs
    #[arg(long)]
    force: bool,
    /// Also if there are snapshots of it, which cannot be restored then
    #[arg(long)]
    lose_snapshots: bool,
}

/// `None` is the best that works.
pub type Way = Option<Colouring>;

/// Addresses of a network card.
#[derive(Debug, Clone)]
struct Card(Vec<Prefix>);

#[derive(Serialize)]
struct Created {
    created: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    vm: Name,
    host: Name,
    state: VmState,
    changed: bool,
    ms: f64,
}

#[derive(Serialize)]
struct Deleted<'a> {
    deleted: &'a Name,
    host: &'a Name,
}

pub fn colouring(text: &str) -> std::result::Result<Way, String> {
    let ways = [Colouring::Host, Colouring::Memory, Colouring::Guest, Colouring::None];
    match ways.into_iter().find(|way| way.to_string() == text) {
        None if text != "auto" => Err("use auto, host, memory, guest or none".to_owned()),
        way => Ok(way),
    }
}

fn hypervisor(text: &str) -> std::result::Result<Runner, String> {
    match text {
        "qemu" => Ok(Runner::Qemu),
        "virtualbox" => Ok(Runner::Virtualbox),
        _ => Err("use qemu or virtualbox".to_owned()),
    }
}

fn addresses(text: &str) -> std::result::Result<Card, String> {
    let all: std::result::Result<_, _> = text.split(',').map(str::parse::<Prefix>).collect();
    all.map(Card).map_err(|error| error.to_string())
}

fn nic(text: &str) -> std::result::Result<NewNic, String> {
    let mut nic = NewNic { bridge: String::new(), mac: None, addresses: Vec::new() };
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("bridge", name)) => name.clone_into(&mut nic.bridge),
            Some(("mac", "auto")) => nic.mac = None,
            Some(("mac", mac)) => nic.mac = Some(mac.to_owned()),
            Some(("address", address)) => {
                nic.addresses.push(address.parse().map_err(|error| format!("{error}"))?);
            }
            _ => return Err(format!("{part:?} is not bridge=, mac= or address=")),
        }
    }
    if nic.bridge.is_empty() { Err("it needs a bridge=".to_owned()) } else { Ok(nic) }
}

/// The address that comes `step` places behind this one.
fn later(address: Prefix, step: u32) -> Result<Prefix> {
    let last = || CliError::usage(format!("there is no address {step} behind {address}"));
    match address {
        Prefix::V4(bytes, 32) => {
            let next = u32::from_be_bytes(bytes).checked_add(step).ok_or_else(last)?;
            Ok(Prefix::V4(next.to_be_bytes(), 32))
        }
        Prefix::V6(bytes, 128) => {
            let next = u128::from_be_bytes(bytes).checked_add(step.into()).ok_or_else(last)?;
            Ok(Prefix::V6(next.to_be_bytes(), 128))
        }
        _ => Err(CliError::usage(format!("--count cannot count {address} up: give a single address"))),
    }
}

/// All that are wanted.
fn planned(wanted: &CreateVm) -> Result<Vec<NewVm>> {
    let one = NewVm {
        name: wanted.name.clone(),
        deployment: wanted.deployment.clone(),
        base: wanted.base.clone(),
        memory_mb: wanted.memory_mb,
        cpus: wanted.cpus,
        kernel: wanted.kernel.clone(),
        initrd: wanted.initrd.clone(),
        append: wanted.append.clone(),
        colouring: wanted.colouring,
        nics: wanted.nics.clone(),
        hypervisor: wanted.hypervisor,
    };
    wanted.count.map_or_else(|| Ok(vec![one.clone()]), |count| several(&one, count))
}

/// So many VMs like this one, called NAME-1, NAME-2 and so on; the first has its addresses, the others those behind them.
pub fn several(one: &NewVm, count: u32) -> Result<Vec<NewVm>> {
    if count > 1 && one.nics.iter().any(|nic| nic.mac.is_some()) {
        return Err(CliError::usage("several VMs cannot have the same hardware address: use mac=auto"));
    }
    let at = |step: u32| {
        let name = Name::new(&format!("{}-{}", one.name, step + 1));
        let mut vm = NewVm { name: name.map_err(|error| CliError::usage(error.to_string()))?, ..one.clone() };
        for address in vm.nics.iter_mut().flat_map(|nic| &mut nic.addresses).filter(|_| step > 0) {
            *address = later(*address, step)?;
        }
        Ok(vm)
    };
    (0..count).map(at).collect()
}

/// Makes them one after the other; at the first that fails it ends, and those before stay.
pub async fn create(config: &ClientConfig, wanted: CreateVm, json: bool) -> Result<()> {
    let mut created = Vec::new();
    let mut failed = None;
    for new in planned(&wanted)? {
        let task = Task::Create(Box::new(new));
        match ask_one(config, Some(wanted.host.clone()), task).await.and_then(made) {
            Ok(line) if json => created.push(line),
            Ok(line) => show(&line)?,
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    if json && (failed.is_none() || !created.is_empty()) {
        output::json(&Created { created })?;
    }
    failed.map_or(Ok(()), Err)
}

/// `vm clone`.
pub async fn clone(config: &ClientConfig, wanted: CloneVm, json: bool) -> Result<()> {
    let line = made(ask_one(config, None, Task::Clone(Box::new(wanted.into()))).await?)?;
    if json { output::json(&Created { created: vec![line] }) } else { show(&line) }
}

/// `vm replicate`.
pub async fn replicate(config: &ClientConfig, wanted: ReplicateVm, json: bool) -> Result<()> {
    let ReplicateVm { clone, host, rate } = wanted;
    let per_second = rate.map(|rate| u64::from(rate) * 1_000_000);
    let replica = Replica { clone: clone.into(), per_second, source: None };
    let line = made(ask_one(config, Some(host), Task::Replicate(Box::new(replica))).await?)?;
    if json { output::json(&Created { created: vec![line] }) } else { show(&line) }
}

impl From<CloneVm> for VmClone {
    fn from(wanted: CloneVm) -> Self {
        let CloneVm { vm, name, deployment, cards } = wanted;
        Self { of: vm, name, deployment, addresses: cards.into_iter().map(|card| card.0).collect() }
    }
}

/// `vm delete`.
pub async fn delete(config: &ClientConfig, wanted: DeleteVm, json: bool) -> Result<()> {
    let DeleteVm { vm, force, lose_snapshots } = wanted;
    let task = Task::Delete { vm: vm.clone(), force, lose_snapshots };
    let report = ask_one(config, None, task).await?;
    report.outcome?;
    if json {
        return output::json(&Deleted { deleted: &vm, host: &report.host });
    }
    output::line(&format!("deleted {vm} on {} in {:.0} ms", report.host, report.ms))
}

fn made(report: HostReport) -> Result<Line> {
    let HostReport { host, outcome, ms } = report;
    match outcome? {
        Outcome::Made { report, changed } => {
            Ok(Line { vm: report.name, host, state: report.state, changed, ms })
        }
        _ => Err(other_answer(&host)),
    }
}

fn show(line: &Line) -> Result<()> {
    let Line { vm, host, ms, .. } = line;
    if line.changed {
        output::line(&format!("created {vm} on {host} in {ms:.0} ms"))
    } else {
        output::line(&format!("{vm} is on {host} already, as it would be made now"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_read_as_it_is_typed() {
        let card = nic("bridge=br0,mac=auto,address=10.0.0.5,address=fd00::/64").unwrap();
        let expected = vec!["10.0.0.5".parse().unwrap(), "fd00::/64".parse().unwrap()];
        assert_eq!(card, NewNic { bridge: "br0".to_owned(), mac: None, addresses: expected });
        assert_eq!(
            nic("bridge=br0,mac=52:54:00:00:00:01").unwrap().mac.as_deref(),
            Some("52:54:00:00:00:01")
        );
        for bad in
            ["", "mac=auto", "bridge=", "bridge=br0,address=10.0.0.256", "bridge=br0,ip=10.0.0.1", "br0"]
        {
            assert!(nic(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn addresses_count_up_and_not_over() {
        let address = |text: &str| text.parse::<Prefix>().unwrap();
        assert_eq!(later(address("10.0.0.255"), 1).unwrap(), address("10.0.1.0"));
        assert_eq!(later(address("fd00::ffff"), 2).unwrap(), address("fd00::1:1"));
        assert!(later(address("255.255.255.255"), 1).is_err());
        assert!(later(address("10.0.0.0/24"), 1).is_err(), "which of them?");
    }

    #[test]
    fn every_hypervisor_has_its_word() {
        assert_eq!(hypervisor("qemu"), Ok(Runner::default()));
        assert_eq!(hypervisor("virtualbox"), Ok(Runner::Virtualbox));
        assert!(hypervisor("VirtualBox").is_err());
    }

    #[test]
    fn every_way_of_colouring_has_its_word() {
        assert_eq!(colouring("auto"), Ok(None));
        assert_eq!(colouring("memory"), Ok(Some(Colouring::Memory)));
        assert!(colouring("host ").is_err());
    }
}

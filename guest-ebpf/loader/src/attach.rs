//! Hanging the programs on interfaces so that they stay when the agent dies.
//!
//! TCX (Linux 6.6 and later): one pinned link per hook and interface; a link found at start gets the new
//! program in one step, so no packet passes unjudged. clsact otherwise: one filter per hook and interface
//! at a fixed place, which the kernel keeps and replaces likewise.
//!
//! What leaves for the network meets our program last, so that nothing rewrites the colour; what comes from it meets
//! ours first, so that nothing is let through before it was judged. A program of somebody else's that was attached
//! later may stand in the way; [`Attached::verify`] notices, and takes the place back.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
};
use log::{info, warn};
use nix::net::if_::{if_nameindex, if_nametoindex};
use unasnap_protocol::guest::AttachKind;

use crate::{
    pins::Pins,
    programs::{Hook, Programs},
    qdisc, query,
};

const KIND_VARIABLE: &str = "UNASNAP_ATTACH";

/// Our place among the filters of a clsact qdisc: after whatever an administrator is likely to have on
/// the way to the network, before it on the way from there.
const HANDLE: TcHandle = TcHandle::new(0, 1);
const fn priority(hook: Hook) -> u16 {
    match hook {
        Hook::Egress => 0xfff0,
        Hook::Ingress => 1,
    }
}

/// A kernel busy with other things takes a few milliseconds.
const LINKS_GO_WITHIN: Duration = Duration::from_secs(2);

/// On which side of the VM's network card the programs hang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Inside the VM, on the card itself. All interfaces are this agent's affair.
    Guest,
    /// On the host, on the tap device behind it. Other taps belong to other VMs.
    Tap,
}

impl Side {
    /// Interfaces on which programs of ours are this agent's affair.
    fn territory(self, own: &[String]) -> Vec<String> {
        match self {
            Self::Guest => all_interfaces(),
            Self::Tap => own.to_vec(),
        }
    }
}

/// Where an agent installs.
#[derive(Debug, Clone)]
pub struct Site {
    /// On which side of the card.
    pub side: Side,
    /// Where maps and links are pinned.
    pub pins: Pins,
    /// Filters on the clsact qdisc even where the kernel has TCX.
    pub without_tcx: bool,
}

impl Site {
    /// With TCX where the kernel has it, unless the environment says `UNASNAP_ATTACH=clsact`: for tests, and for
    /// kernels whose TCX misbehaves.
    #[must_use]
    pub fn new(side: Side, pins: Pins) -> Self {
        let without_tcx = std::env::var(KIND_VARIABLE).is_ok_and(|value| value == "clsact");
        Self { side, pins, without_tcx }
    }
}

/// An interface with the programs attached. A card that is unplugged and plugged in again is another one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    name: String,
    index: u32,
}

/// Where the programs hang.
#[derive(Debug)]
pub struct Attached {
    side: Side,
    pins: Pins,
    kind: AttachKind,
    places: Vec<Place>,
}

/// Attaches both programs to every interface named, in the place of an earlier agent's, and takes that
/// agent's off all other interfaces.
///
/// # Errors
/// An interface does not exist or the kernel refuses; the interfaces before it stay attached.
pub fn attach(programs: &mut Programs, site: &Site, interfaces: &[String]) -> Result<Attached> {
    let Site { side, pins, .. } = site.clone();
    let own_links = link_pins(&pins, interfaces)?;
    let kind = if site.without_tcx { AttachKind::Clsact } else { best_kind(interfaces.first()) };
    let territory = side.territory(interfaces);
    match kind {
        AttachKind::Tcx => {
            remove_filters(side, &territory);
            remove_links(&pins, &own_links)?;
        }
        AttachKind::Clsact => {
            let ours = query::pinned(&pins);
            remove_links(&pins, &BTreeSet::new())?;
            wait_for_links_to_go(side, &territory, &ours)?;
        }
    }
    let mut attached = Attached { side, pins, kind, places: Vec::new() };
    for interface in interfaces {
        attached.add(programs, interface)?;
    }
    Ok(attached)
}

/// Takes the programs off every interface of a guest and forgets the maps, the state word included.
///
/// # Errors
/// A pin cannot be removed.
pub fn detach_guest() -> Result<()> {
    let interfaces = all_interfaces();
    let (pins, ours) = (Pins::of_guest(), query::pinned(&Pins::of_guest()));
    remove_filters(Side::Guest, &interfaces);
    pins.remove_all()?;
    wait_for_links_to_go(Side::Guest, &interfaces, &ours)
}

/// Takes the programs off what is left of a VM's taps and forgets their maps.
///
/// # Errors
/// A pin cannot be removed.
pub fn detach_taps(pins: &Pins, taps: &[String]) -> Result<()> {
    let ours = query::pinned(pins);
    remove_filters(Side::Tap, taps);
    pins.remove_all()?;
    wait_for_links_to_go(Side::Tap, taps, &ours)
}

impl Attached {
    /// Names of the interfaces.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.places.iter().map(|place| place.name.clone()).collect()
    }

    /// How the programs hang.
    #[must_use]
    pub fn kind(&self) -> AttachKind {
        self.kind
    }

    /// Attaches to those of `present` that are new, and forgets interfaces that are gone.
    ///
    /// # Errors
    /// The kernel refuses; the interfaces before that one are attached.
    pub fn follow(&mut self, programs: &mut Programs, present: &[String]) -> Result<()> {
        self.places.retain(|place| {
            let stays = if_nametoindex(place.name.as_str()).is_ok_and(|index| index == place.index);
            if !stays {
                info!("{} is gone", place.name);
            }
            stays
        });
        for interface in present {
            if !self.places.iter().any(|place| place.name == *interface) {
                self.add(programs, interface)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, programs: &mut Programs, interface: &str) -> Result<()> {
        for hook in Hook::ALL {
            self.attach_one(programs.get(hook)?, interface, hook)
                .with_context(|| format!("cannot attach to the {} of {interface}", hook.name()))?;
        }
        info!("attached to {interface} ({:?})", self.kind);
        self.places.push(Place { name: interface.to_owned(), index: index(interface)? });
        Ok(())
    }

    /// Does our program hang on this hook of the interface, in its place? A program that was displaced is put back.
    /// With clsact the filter is put in its own place again, which the kernel does only where there is one.
    ///
    /// # Errors
    /// What the kernel says against it.
    pub fn verify(&self, programs: &mut Programs, interface: &str, hook: Hook) -> Result<()> {
        let program = programs.get(hook)?;
        if self.kind == AttachKind::Clsact {
            return Ok(replace_filter(program, interface, hook, self.side)?);
        }
        let own = program.info()?.id();
        let hanging = self.hanging(interface, hook)?;
        ensure!(hanging.contains(&own), "its link is gone");
        if let Some(other) = in_the_way(&hanging, hook, own) {
            warn!("{other} was attached to the {} of {interface}; taking our place back", hook.name());
            self.detach_link(interface, hook, own)?;
            self.attach_one(program, interface, hook)?;
            if let Some(other) = in_the_way(&self.hanging(interface, hook)?, hook, own) {
                bail!("{other} stands in its way: remove that program");
            }
        }
        Ok(())
    }

    /// Programs on a hook, in the order in which packets meet them.
    fn hanging(&self, interface: &str, hook: Hook) -> Result<Vec<u32>> {
        query::hanging(index(interface)?, hook.attach_type(self.side))
            .with_context(|| format!("cannot ask what hangs on {interface}"))
    }

    fn attach_one(&self, program: &mut SchedClassifier, interface: &str, hook: Hook) -> Result<()> {
        match self.kind {
            AttachKind::Tcx => self.attach_link(program, interface, hook),
            AttachKind::Clsact => attach_filter(program, interface, hook, self.side),
        }
    }

    fn attach_link(&self, program: &mut SchedClassifier, interface: &str, hook: Hook) -> Result<()> {
        let pin = self.pins.link(hook.name(), index(interface)?);
        if let Ok(pinned) = PinnedLink::from_pin(&pin) {
            let link: SchedClassifierLink = FdLink::from(pinned).try_into()?;
            match program.attach_to_link(link) {
                Ok(id) => return program.take_link(id).map(drop).map_err(Into::into),
                // The interface it belonged to is gone.
                Err(error) => warn!("{} cannot be taken over: {error}", pin.display()),
            }
            fs::remove_file(&pin)?;
        }
        let order = match hook {
            Hook::Egress => LinkOrder::last(),
            Hook::Ingress => LinkOrder::first(),
        };
        let options = TcAttachOptions::TcxOrder(order);
        let id = program.attach_with_options(interface, hook.attach_type(self.side), options)?;
        FdLink::try_from(program.take_link(id)?)?.pin(pin)?;
        Ok(())
    }

    /// The kernel has one program on a hook only once: the link has to be gone before there can be another.
    fn detach_link(&self, interface: &str, hook: Hook, own: u32) -> Result<()> {
        let pin = self.pins.link(hook.name(), index(interface)?);
        fs::remove_file(&pin).with_context(|| format!("cannot remove {}", pin.display()))?;
        let gone = || !self.hanging(interface, hook).is_ok_and(|found| found.contains(&own));
        wait_until(gone).with_context(|| format!("the {} program still hangs on {interface}", hook.name()))
    }
}

/// The program that is where ours has to be.
fn in_the_way(hanging: &[u32], hook: Hook, own: u32) -> Option<String> {
    let found = *match hook {
        Hook::Egress => hanging.last(),
        Hook::Ingress => hanging.first(),
    }?;
    let name = || format!("program {found} ({})", query::name(found).unwrap_or_else(|| "no name".to_owned()));
    (found != own).then(name)
}

/// A kernel without TCX cannot be asked what hangs there by it.
fn best_kind(interface: Option<&String>) -> AttachKind {
    let has_tcx = |name: &String| {
        index(name).is_ok_and(|interface| query::hanging(interface, TcAttachType::Egress).is_ok())
    };
    if interface.is_some_and(has_tcx) { AttachKind::Tcx } else { AttachKind::Clsact }
}

fn attach_filter(program: &mut SchedClassifier, interface: &str, hook: Hook, side: Side) -> Result<()> {
    if replace_filter(program, interface, hook, side).is_ok() {
        return Ok(());
    }
    // Fails where there is one already; if it failed otherwise, the next step says why.
    let _ = tc::qdisc_add_clsact(interface);
    let options = NlOptions { priority: priority(hook), handle: HANDLE, classid: None };
    let options = TcAttachOptions::Netlink(options);
    let id = program.attach_with_options(interface, hook.attach_type(side), options)?;
    leave_attached(program.take_link(id)?);
    Ok(())
}

fn replace_filter(
    program: &mut SchedClassifier,
    interface: &str,
    hook: Hook,
    side: Side,
) -> Result<(), ProgramError> {
    let hook_type = hook.attach_type(side);
    let place = SchedClassifierLink::attached(interface, hook_type, priority(hook), HANDLE, None)
        .map_err(tc::TcError::from)?;
    let id = program.attach_to_link(place)?;
    leave_attached(program.take_link(id)?);
    Ok(())
}

/// Dropping the link would remove the filter.
fn leave_attached(link: SchedClassifierLink) {
    std::mem::forget(link);
}

/// Removes our filters from these interfaces, and the qdisc if nobody else uses it. Most interfaces have
/// none, which is not worth a word.
fn remove_filters(side: Side, interfaces: &[String]) {
    for name in interfaces {
        let is_removed =
            |hook: &Hook| tc::qdisc_detach_program(name, hook.attach_type(side), hook.program()).is_ok();
        if Hook::ALL.iter().filter(|hook| is_removed(hook)).count() == 0 {
            continue;
        }
        info!("removed earlier filters from {name}");
        if let Ok(index) = index(name)
            && let Err(error) = qdisc::remove_if_empty(index)
        {
            warn!("the clsact qdisc of {name} cannot be removed: {error}");
        }
    }
}

/// Where the links of these interfaces are pinned.
fn link_pins(pins: &Pins, interfaces: &[String]) -> Result<BTreeSet<PathBuf>> {
    let mut paths = BTreeSet::new();
    for interface in interfaces {
        for hook in Hook::ALL {
            paths.insert(pins.link(hook.name(), index(interface)?));
        }
    }
    Ok(paths)
}

/// Removes every pinned link but these.
fn remove_links(pins: &Pins, keep: &BTreeSet<PathBuf>) -> Result<()> {
    for pin in pins.links()? {
        if !keep.contains(&pin) {
            info!("removing an earlier link, {}", pin.display());
            fs::remove_file(&pin).with_context(|| format!("cannot remove {}", pin.display()))?;
        }
    }
    Ok(())
}

/// The kernel detaches a link some time after its pin was removed. `ours` are the programs of such links.
fn wait_for_links_to_go(side: Side, interfaces: &[String], ours: &[u32]) -> Result<()> {
    wait_until(|| linked(side, interfaces, ours).is_none()).with_context(|| {
        let (interface, hook) = linked(side, interfaces, ours).unwrap_or_default();
        format!(
            "a program of ours still hangs on the {hook} of {interface}: another process holds the link open"
        )
    })
}

fn wait_until(is_so: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + LINKS_GO_WITHIN;
    while !is_so() {
        ensure!(Instant::now() < deadline, "nothing changed within {LINKS_GO_WITHIN:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// One of these interfaces where a program of ours hangs by a link.
fn linked(side: Side, interfaces: &[String], ours: &[u32]) -> Option<(String, &'static str)> {
    let hangs = |interface: &str, hook: Hook| -> Result<bool> {
        let found = query::hanging(index(interface)?, hook.attach_type(side))?;
        let is_ours = |id: &u32| ours.contains(id) || query::name(*id).as_deref() == Some(hook.program());
        Ok(found.iter().any(is_ours))
    };
    interfaces
        .iter()
        .flat_map(|name| Hook::ALL.map(|hook| (name, hook)))
        .find_map(|(name, hook)| hangs(name, hook).unwrap_or(false).then(|| (name.clone(), hook.name())))
}

fn all_interfaces() -> Vec<String> {
    let interfaces = if_nameindex().ok();
    interfaces
        .iter()
        .flat_map(|all| all.iter())
        .map(|interface| interface.name().to_string_lossy().into_owned())
        .collect()
}

fn index(interface: &str) -> Result<u32> {
    if_nametoindex(interface).with_context(|| format!("there is no interface {interface}"))
}

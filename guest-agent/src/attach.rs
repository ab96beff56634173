//! Hanging the programs on interfaces so that they stay when the agent dies.
//!
//! TCX (Linux 6.6 and later): one pinned link per hook and interface; a link found at start gets the new
//! program in one step, so no packet passes unjudged. clsact otherwise: one filter per hook and interface
//! at a fixed place, which the kernel keeps and replaces likewise.
//!
//! On egress our program comes last, so that nothing rewrites the colour, on ingress first.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
};
use log::{info, warn};
use nix::net::if_::if_nametoindex;
use unasnap_protocol::guest::AttachKind;

use crate::{
    pins::Pins,
    programs::{Hook, Programs},
    qdisc,
};

/// Set to `clsact` this makes the agent do without TCX: for tests, and for kernels whose TCX misbehaves.
const KIND_VARIABLE: &str = "UNASNAP_GUEST_ATTACH";

/// Our place among the filters of a clsact qdisc: after whatever an administrator is likely to have on
/// egress, before it on ingress.
const HANDLE: TcHandle = TcHandle::new(0, 1);
const fn priority(hook: Hook) -> u16 {
    match hook {
        Hook::Egress => 0xfff0,
        Hook::Ingress => 1,
    }
}

/// A kernel busy with other things takes a few milliseconds.
const LINKS_GO_WITHIN: Duration = Duration::from_secs(2);

/// Where the programs hang.
#[derive(Debug, Clone)]
pub struct Attached {
    /// How.
    pub kind: AttachKind,
    /// On which interfaces.
    pub interfaces: Vec<String>,
}

/// Attaches both programs to every interface named, in the place of an earlier agent's, and takes that
/// agent's off all other interfaces.
///
/// # Errors
/// An interface does not exist or the kernel refuses; the interfaces before it stay attached.
pub fn attach(programs: &mut Programs, pins: Pins, interfaces: Vec<String>) -> Result<Attached> {
    let own_links = link_pins(pins, &interfaces)?;
    let kind = kind(interfaces.first());
    match kind {
        AttachKind::Tcx => {
            remove_filters();
            remove_links(pins, &own_links)?;
        }
        AttachKind::Clsact => {
            remove_links(pins, &BTreeSet::new())?;
            wait_for_links_to_go()?;
        }
    }
    for interface in &interfaces {
        for hook in Hook::ALL {
            attach_one(programs.get(hook)?, kind, pins, interface, hook)
                .with_context(|| format!("cannot attach to the {} of {interface}", hook.name()))?;
        }
        info!("attached to {interface} ({kind:?})");
    }
    Ok(Attached { kind, interfaces })
}

/// Takes the programs off every interface and forgets the maps, the state word included.
///
/// # Errors
/// A pin cannot be removed.
pub fn detach_everything() -> Result<()> {
    remove_filters();
    Pins::remove_all()?;
    wait_for_links_to_go()
}

/// Does our program hang on this hook of the interface? With clsact the filter is put in its own place
/// again, which the kernel does only where there is one.
///
/// # Errors
/// What the kernel says against it.
pub fn verify(programs: &mut Programs, kind: AttachKind, interface: &str, hook: Hook) -> Result<()> {
    let program = programs.get(hook)?;
    match kind {
        AttachKind::Tcx => {
            let own = program.info()?.id();
            let (_, attached) = SchedClassifier::query_tcx(interface, hook.attach_type())?;
            ensure!(attached.iter().any(|found| found.id() == own), "its link is gone");
            Ok(())
        }
        AttachKind::Clsact => Ok(replace_filter(program, interface, hook)?),
    }
}

/// A kernel without TCX cannot be asked what hangs there by it.
fn kind(interface: Option<&String>) -> AttachKind {
    let forced = std::env::var(KIND_VARIABLE).is_ok_and(|value| value == "clsact");
    let has_tcx = |name: &String| SchedClassifier::query_tcx(name, TcAttachType::Egress).is_ok();
    if !forced && interface.is_some_and(has_tcx) { AttachKind::Tcx } else { AttachKind::Clsact }
}

fn attach_one(
    program: &mut SchedClassifier,
    kind: AttachKind,
    pins: Pins,
    interface: &str,
    hook: Hook,
) -> Result<()> {
    match kind {
        AttachKind::Tcx => attach_link(program, &pins.link(hook.name(), index(interface)?), interface, hook),
        AttachKind::Clsact => attach_filter(program, interface, hook),
    }
}

fn attach_link(program: &mut SchedClassifier, pin: &Path, interface: &str, hook: Hook) -> Result<()> {
    if let Ok(pinned) = PinnedLink::from_pin(pin) {
        let link: SchedClassifierLink = FdLink::from(pinned).try_into()?;
        match program.attach_to_link(link) {
            Ok(id) => return program.take_link(id).map(drop).map_err(Into::into),
            // The interface it belonged to is gone.
            Err(error) => warn!("{} cannot be taken over: {error}", pin.display()),
        }
        fs::remove_file(pin)?;
    }
    let order = match hook {
        Hook::Egress => LinkOrder::last(),
        Hook::Ingress => LinkOrder::first(),
    };
    let id = program.attach_with_options(interface, hook.attach_type(), TcAttachOptions::TcxOrder(order))?;
    FdLink::try_from(program.take_link(id)?)?.pin(pin)?;
    Ok(())
}

fn attach_filter(program: &mut SchedClassifier, interface: &str, hook: Hook) -> Result<()> {
    if replace_filter(program, interface, hook).is_ok() {
        return Ok(());
    }
    // Fails where there is one already; if it failed otherwise, the next step says why.
    let _ = tc::qdisc_add_clsact(interface);
    let options = NlOptions { priority: priority(hook), handle: HANDLE, classid: None };
    let id = program.attach_with_options(interface, hook.attach_type(), TcAttachOptions::Netlink(options))?;
    leave_attached(program.take_link(id)?);
    Ok(())
}

fn replace_filter(program: &mut SchedClassifier, interface: &str, hook: Hook) -> Result<(), ProgramError> {
    let place = SchedClassifierLink::attached(interface, hook.attach_type(), priority(hook), HANDLE, None)
        .map_err(tc::TcError::from)?;
    let id = program.attach_to_link(place)?;
    leave_attached(program.take_link(id)?);
    Ok(())
}

/// Dropping the link would remove the filter.
fn leave_attached(link: SchedClassifierLink) {
    std::mem::forget(link);
}

/// Removes our filters from every interface, and the qdisc if nobody else uses it. Most interfaces have
/// none, which is not worth a word.
fn remove_filters() {
    let Ok(interfaces) = nix::net::if_::if_nameindex() else { return };
    for interface in &interfaces {
        let name = interface.name().to_string_lossy();
        let is_removed =
            |hook: &Hook| tc::qdisc_detach_program(&name, hook.attach_type(), hook.program()).is_ok();
        if Hook::ALL.iter().filter(|hook| is_removed(hook)).count() == 0 {
            continue;
        }
        info!("removed earlier filters from {name}");
        if let Err(error) = qdisc::remove_if_empty(interface.index()) {
            warn!("the clsact qdisc of {name} cannot be removed: {error}");
        }
    }
}

/// Where the links of these interfaces are pinned.
fn link_pins(pins: Pins, interfaces: &[String]) -> Result<BTreeSet<PathBuf>> {
    let mut paths = BTreeSet::new();
    for interface in interfaces {
        for hook in Hook::ALL {
            paths.insert(pins.link(hook.name(), index(interface)?));
        }
    }
    Ok(paths)
}

/// Removes every pinned link but these.
fn remove_links(pins: Pins, keep: &BTreeSet<PathBuf>) -> Result<()> {
    for pin in pins.links()? {
        if !keep.contains(&pin) {
            info!("removing an earlier link, {}", pin.display());
            fs::remove_file(&pin).with_context(|| format!("cannot remove {}", pin.display()))?;
        }
    }
    Ok(())
}

/// The kernel detaches a link some time after its pin was removed.
fn wait_for_links_to_go() -> Result<()> {
    let deadline = Instant::now() + LINKS_GO_WITHIN;
    while let Some((interface, hook)) = linked() {
        ensure!(
            Instant::now() < deadline,
            "the {} program still hangs on {interface} {LINKS_GO_WITHIN:?} after its link was removed: \
             another process holds the link open",
            hook.name()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// An interface where a program of ours hangs by a link.
fn linked() -> Option<(String, Hook)> {
    let interfaces = nix::net::if_::if_nameindex().ok()?;
    let names = interfaces.iter().map(|interface| interface.name().to_string_lossy().into_owned());
    names.flat_map(|name| Hook::ALL.map(|hook| (name.clone(), hook))).find(|(name, hook)| {
        let attached = SchedClassifier::query_tcx(name, hook.attach_type());
        attached.is_ok_and(|(_, programs)| {
            programs.iter().any(|found| found.name_as_str() == Some(hook.program()))
        })
    })
}

fn index(interface: &str) -> Result<u32> {
    if_nametoindex(interface).with_context(|| format!("there is no interface {interface}"))
}

//! The whole host agent: opens what it needs, finds or starts its VMs, then serves until it is told to stop.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, mpsc};
use unasnap_channel::{Listener, Peer, Trust};
use unasnap_protocol::control::TransferAddress;
use unasnap_protocol::name::Name;

use crate::access;
use crate::bases::Bases;
use crate::colouring::host::KernelTaps;
use crate::config::{Config, TransferConfig};
use crate::drivers::Drivers;
use crate::fence;
use crate::household;
use crate::link::Link;
use crate::moving::Moving;
use crate::registry::Registry;
use crate::store::Store;
use crate::together::Together;
use crate::transfer::fetching::Fetcher;
use crate::transfer::frozen::Shelf;
use crate::transfer::giving::Giver;
use crate::transfer::images::Images;
use crate::transfer::receiving::Receiver;
use crate::user;

/// Runs until SIGTERM or SIGINT; the VMs go on.
///
/// # Errors
/// Configuration, certificates, QEMU or the state folder are not usable.
pub async fn run(config: Config) -> Result<()> {
    let trust = Trust::follow(config.tls.clone())?;
    if *trust.identity().peer() != Peer::Host(config.name.clone()) {
        anyhow::bail!(
            "{} is not the certificate of host {}: issue one with `unasnap pki add-host {}`",
            config.tls.cert.display(),
            config.name,
            config.name
        );
    }
    let store = Store::open(&config.state_dir, config.limits())?;
    store.remove_partial()?;
    store.remove_old_incoming()?;
    let taps = Arc::new(KernelTaps::new(&config.state_dir));
    let (answer_sender, answers) = mpsc::unbounded_channel();
    let (word_sender, words) = mpsc::unbounded_channel();
    let (together, standing) = Together::new();
    let (vm_dir, drivers, words_of) = (&config.vm_dir, Drivers::new(&config), word_sender.clone());
    let registry = Registry::open(
        vm_dir,
        drivers,
        store.clone(),
        taps.clone(),
        answer_sender.clone(),
        words_of,
        together.clone(),
    )
    .await?;
    let registry = Arc::new(registry);
    let members = registry.members().clone();
    let names: Vec<Name> = members.list().iter().map(|member| member.standing().report.name).collect();
    if let Err(error) = taps.forget_all_but(&names) {
        tracing::warn!("programs of VMs that are no longer defined are left: {error:#}");
    }
    let bases = Bases::open(&config.state_dir, &config.image_dirs)?;
    let (images, shelf) = (Images::new(&config.state_dir), Arc::new(Shelf::default()));
    let giver = |transfer: TransferConfig| {
        let (images, shelf) = (images.clone(), Arc::clone(&shelf));
        Giver::new(store.clone(), images, shelf, trust.clone(), transfer.per_second())
    };
    let serves = config.transfer.map(|transfer| serve(transfer, &trust, giver(transfer))).transpose()?;
    let receiver = Arc::new(Receiver {
        store: store.clone(),
        images,
        trust: trust.clone(),
        runners: registry.clone(),
        believes: config.virtualbox.believes.clone(),
    });
    let moving = Arc::new(Moving {
        host: config.name.clone(),
        registry: Arc::clone(&registry),
        store: store.clone(),
        fetcher: Fetcher::new(Arc::clone(&receiver), answer_sender.clone()),
        answers: answer_sender,
        term: AtomicU64::new(0),
        busy: Mutex::default(),
    });
    let household = household::start(registry, bases, store.clone(), receiver, shelf, word_sender);
    let after = config.self_fence_s.map(|seconds| Duration::from_secs(seconds.get()));
    let fence = after.map(|after| fence::start(after, members.clone()));
    let (desk, said) = access::desk();
    let user = config.user.clone().map(user::watch);
    let link = Link {
        config,
        trust,
        members,
        household,
        moving,
        serves,
        user,
        fence,
        store,
        answers,
        words,
        together,
        standing,
        desk,
        said,
    };
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be waited for")?;
    tokio::select! {
        () = link.run() => {}
        _ = terminate.recv() => tracing::info!("told to stop; the VMs go on"),
        _ = tokio::signal::ctrl_c() => tracing::info!("interrupted; the VMs go on"),
    }
    Ok(())
}

/// Begins to give files to other hosts; what the coordinator is told of that.
fn serve(transfer: TransferConfig, trust: &Trust, giver: Arc<Giver>) -> Result<TransferAddress> {
    let listener = Listener::bind(transfer.listen, trust.clone())
        .with_context(|| format!("[transfer] listen: cannot listen on {}", transfer.listen))?;
    tokio::spawn(giver.listen(listener));
    Ok(transfer.address())
}

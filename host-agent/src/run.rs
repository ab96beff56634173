//! The whole host agent: opens what it needs, finds or starts its VMs, then serves until it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use unasnap_channel::{Peer, Trust};
use unasnap_protocol::name::Name;

use crate::bases::Bases;
use crate::colouring::host::KernelTaps;
use crate::config::Config;
use crate::drivers::Drivers;
use crate::fence;
use crate::household;
use crate::link::Link;
use crate::registry::Registry;
use crate::store::Store;
use crate::together::Together;

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
        answer_sender,
        words_of,
        together.clone(),
    )
    .await?;
    let members = registry.members().clone();
    let names: Vec<Name> = members.list().iter().map(|member| member.standing().report.name).collect();
    if let Err(error) = taps.forget_all_but(&names) {
        tracing::warn!("programs of VMs that are no longer defined are left: {error:#}");
    }
    let bases = Bases::open(&config.state_dir, &config.image_dirs)?;
    let household = household::start(Arc::new(registry), bases, store.clone(), word_sender);
    let after = config.self_fence_s.map(|seconds| Duration::from_secs(seconds.get()));
    let fence = after.map(|after| fence::start(after, members.clone()));
    let link = Link { config, trust, members, household, fence, store, answers, words, together, standing };
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be waited for")?;
    tokio::select! {
        () = link.run() => {}
        _ = terminate.recv() => tracing::info!("told to stop; the VMs go on"),
        _ = tokio::signal::ctrl_c() => tracing::info!("interrupted; the VMs go on"),
    }
    Ok(())
}

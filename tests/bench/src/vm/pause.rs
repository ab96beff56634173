//! How long a cut stops a VM, and how long that seems from inside.
//!
//! For each size of RAM there is one VM per way, all alive at once; only the one that is measured bears a load. Then, with
//! the least RAM, several VMs of one host are cut at once.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::JoinSet;
use unasnap_tests::gauge::load::Load;
use unasnap_tests::sample::sample;

use super::guest::{Guest, Taken};
use super::{Options, Yard, ms, working_set_mb};

/// Between the beginning of a load and the snapshot; the same time without a snapshot is what it is compared with.
const SETTLE: Duration = Duration::from_millis(400);
/// How many VMs are cut at once.
const AT_ONCE: [usize; 3] = [1, 2, 4];

/// Measures everything.
///
/// # Errors
/// A VM does not do what it must.
pub async fn run(options: &Options) -> Result<()> {
    let yard = Yard::open(options, "pause").await?;
    for memory_mb in &options.memory_mb {
        sizes(&yard, *memory_mb).await.with_context(|| format!("VMs of {memory_mb} MiB"))?;
    }
    let least = options.memory_mb.iter().min().context("no size of RAM is given")?;
    at_once(&yard, *least).await.context("several VMs at once")
}

async fn sizes(yard: &Yard<'_>, memory_mb: u64) -> Result<()> {
    let set = working_set_mb(memory_mb);
    let mut guests = yard.guests(&yard.ways, memory_mb).await?;
    for round in 1..=yard.options.rounds {
        eprintln!("pause: {memory_mb} MiB, round {round} of {}", yard.options.rounds);
        for guest in &mut guests {
            for (name, load) in [("idle", Load::Idle), ("dirty", Load::Dirty(set))] {
                let label = guest.way().label();
                let candidate = format!("{label}.{memory_mb}.{name}");
                one(yard, guest, load, &candidate).await.with_context(|| candidate)?;
            }
        }
    }
    for mut guest in guests {
        guest.destroy().await?;
    }
    Ok(())
}

/// One cut of one VM that bears a load.
async fn one(yard: &Yard<'_>, guest: &mut Guest, load: Load, candidate: &str) -> Result<()> {
    let key = format!("pause.{candidate}");
    guest.gauge()?.load(load)?;
    yard.forget();
    std::thread::sleep(SETTLE);
    sample(&format!("{key}.undisturbed_gap_ms"), yard.gap_ms()?);
    let taken = guest.snapshot("bench").await?;
    sample(&format!("{key}.gap_ms"), yard.gap_ms()?);
    guest.gauge()?.load(Load::Off)?;
    guest.delete("bench")?;
    report(&key, &taken);
    for (part, ns) in &taken.times.parts {
        sample(&format!("pause_parts.{candidate}.{part}_ms"), ms(*ns));
    }
    Ok(())
}

fn report(key: &str, taken: &Taken) {
    sample(&format!("{key}.pause_ms"), taken.times.pause().as_secs_f64() * 1e3);
    sample(&format!("{key}.total_ms"), taken.total.as_secs_f64() * 1e3);
    sample(&format!("{key}.before_ms"), taken.before.as_secs_f64() * 1e3);
}

/// VMs of one host that are cut at the same moment, for each way; what counts is the one that fares worst.
async fn at_once(yard: &Yard<'_>, memory_mb: u64) -> Result<()> {
    let most = AT_ONCE.into_iter().max().unwrap_or(1);
    for way in &yard.ways {
        let mut guests = yard.guests(&vec![*way; most], memory_mb).await?;
        for guest in &mut guests {
            guest.gauge()?.load(Load::Idle)?;
        }
        for round in 1..=yard.options.rounds {
            eprintln!("pause: {} at once, round {round} of {}", way.label(), yard.options.rounds);
            for count in AT_ONCE {
                let rest = guests.split_off(count);
                guests = together(yard, guests, &format!("pause_at_once.{}.{count}", way.label())).await?;
                guests.extend(rest);
            }
        }
        for mut guest in guests {
            guest.destroy().await?;
        }
    }
    Ok(())
}

async fn together(yard: &Yard<'_>, guests: Vec<Guest>, key: &str) -> Result<Vec<Guest>> {
    yard.forget();
    let mut cuts = JoinSet::new();
    for mut guest in guests {
        cuts.spawn(async move { guest.snapshot("bench").await.map(|taken| (guest, taken)) });
    }
    let (mut back, mut pause, mut total) = (Vec::new(), Duration::ZERO, Duration::ZERO);
    while let Some(done) = cuts.join_next().await {
        let (guest, taken) = done.context("a cut")??;
        pause = pause.max(taken.times.pause());
        total = total.max(taken.total);
        back.push(guest);
    }
    let gap = yard.gap_ms()?;
    for guest in &back {
        guest.delete("bench")?;
    }
    sample(&format!("{key}.pause_ms"), pause.as_secs_f64() * 1e3);
    sample(&format!("{key}.gap_ms"), gap);
    sample(&format!("{key}.total_ms"), total.as_secs_f64() * 1e3);
    Ok(back)
}

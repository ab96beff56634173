//! How soon a restored VM runs, and answers.

use anyhow::{Context, Result};
use unasnap_tests::sample::sample;

use super::{Options, Yard};

/// Measures everything: one snapshot per way and size of RAM, restored in every round.
///
/// # Errors
/// A VM does not do what it must.
pub async fn run(options: &Options) -> Result<()> {
    let yard = Yard::open(options, "restore").await?;
    for memory_mb in &options.memory_mb {
        let mut guests = yard.guests(&yard.ways, *memory_mb).await?;
        for guest in &mut guests {
            guest.snapshot("bench").await?;
            guest.destroy().await?;
        }
        for round in 1..=options.rounds {
            eprintln!("restore: {memory_mb} MiB, round {round} of {}", options.rounds);
            for guest in &mut guests {
                let key = format!("restore.{}.{memory_mb}", guest.way().label());
                let [loaded, running, answers] = guest.restore("bench").await.with_context(|| key.clone())?;
                for (what, time) in [("loaded", loaded), ("running", running), ("answers", answers)] {
                    sample(&format!("{key}.{what}_ms"), time.as_secs_f64() * 1e3);
                }
                guest.destroy().await?;
            }
        }
    }
    Ok(())
}

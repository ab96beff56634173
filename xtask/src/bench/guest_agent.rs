//! What a guest agent at rest costs: memory, and processor time while its host looks after it.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use unasnap_tests::gauge::{Agent, Answer, Request};

use super::Workshop;
use super::figures::Figures;
use super::stage::{self, Method, Setting, Stage};
use crate::lab::cluster::Colouring;

/// For how long processor time is added up: the kernel tells it in hundredths of a second.
const REST: Duration = Duration::from_secs(20);
const QUICK_REST: Duration = Duration::from_secs(2);

/// Two VMs on one host, nothing running.
pub fn measure(workshop: &Workshop<'_>, figures: &mut Figures) -> Result<()> {
    let setting = Setting { method: Method::Ours(Colouring::Guest), vms: 2, hosts: 1 };
    let rest = if workshop.quick { QUICK_REST } else { REST };
    stage::with(workshop, setting, |stage| {
        let (before, start) = (agent(stage)?, Instant::now());
        std::thread::sleep(rest);
        let after = agent(stage)?;
        figures.add("guest_agent.rss_kib", after.rss_kib as f64);
        figures.add("guest_agent.pss_kib", after.pss_kib as f64);
        let busy_ms = (after.cpu_ms - before.cpu_ms) as f64;
        figures.add("guest_agent.cpu_percent", busy_ms / 10.0 / start.elapsed().as_secs_f64());
        Ok(())
    })
}

fn agent(stage: &Stage<'_>) -> Result<Agent> {
    match stage.ask(1, &Request::Agent)? {
        Answer::Agent(agent) => Ok(agent),
        other => bail!("the gauge answered {other:?}"),
    }
}

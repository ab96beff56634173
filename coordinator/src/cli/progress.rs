//! Progress per VM, on a terminal only, and only of what takes longer than a glance.

use std::collections::BTreeMap;
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use unasnap_protocol::elsewhere::FetchProgress;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Progress, Reply, Request};

use crate::client::Exchange;
use crate::config::ClientConfig;
use crate::failure::Result;

/// What is over sooner shows nothing.
const QUIET: Duration = Duration::from_millis(250);

/// Asks, and shows progress until the answer is there. The exchange knows what an answer means that does not fit.
pub async fn ask(config: &ClientConfig, request: &Request) -> Result<(Exchange, Reply)> {
    let mut exchange = Exchange::begin(config, request).await?;
    let mut lines = Lines::new();
    loop {
        match exchange.next().await? {
            Reply::Progress(progress) => lines.show(&progress),
            Reply::Fetching(fetching) => lines.show_fetching(&fetching),
            answer => {
                lines.clear();
                return Ok((exchange, answer));
            }
        }
    }
}

/// Lines on stderr, one per VM.
pub struct Lines {
    began: Instant,
    wanted: bool,
    lines: MultiProgress,
    bars: BTreeMap<Name, ProgressBar>,
}

impl Lines {
    /// Nothing yet.
    pub fn new() -> Self {
        let wanted = stderr().is_terminal();
        Self { began: Instant::now(), wanted, lines: MultiProgress::new(), bars: BTreeMap::new() }
    }

    /// Shows where each VM stands.
    pub fn show(&mut self, progress: &Progress) {
        for vm in &progress.members {
            let waiting = progress.waiting.contains(vm);
            self.say(vm, format!("{} {}", progress.phase, if waiting { "..." } else { "done" }));
        }
    }

    /// Shows how one VM is.
    pub fn say(&mut self, vm: &Name, words: String) {
        if self.wanted && self.began.elapsed() >= QUIET {
            let bar = self.bars.entry(vm.clone()).or_insert_with(|| new_line(&self.lines, vm));
            bar.set_message(words);
        }
    }

    /// Shows how far the files of each VM are.
    pub fn show_fetching(&mut self, fetching: &FetchProgress) {
        if !self.wanted || self.began.elapsed() < QUIET {
            return;
        }
        for member in &fetching.members {
            let bar = self.bars.entry(member.vm.clone()).or_insert_with(|| new_line(&self.lines, &member.vm));
            let left = member.seconds_left.map(|seconds| format!(", {seconds:.0} s left"));
            bar.set_message(format!("FETCH {member}{}", left.unwrap_or_default()));
        }
    }

    /// Removes the lines: what remains on the terminal is the answer.
    pub fn clear(self) {
        // A terminal that cannot be cleared shows the lines for longer.
        let _ = self.lines.clear();
    }
}

fn new_line(lines: &MultiProgress, vm: &Name) -> ProgressBar {
    let bar = lines.add(ProgressBar::new_spinner());
    if let Ok(style) = ProgressStyle::with_template(template()) {
        bar.set_style(style);
    }
    bar.set_prefix(vm.to_string());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn template() -> &'static str {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if plain { "{spinner} {prefix} {msg}" } else { "{spinner:.cyan} {prefix:.bold} {msg}" }
}

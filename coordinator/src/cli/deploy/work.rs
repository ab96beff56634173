//! Lets each VM of a deployment have what it needs next, many at the same time, until all are there or have failed.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::resume_unwind;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use unasnap_protocol::household::{HouseholdRequest, NewVm, Outcome, Task};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Reply, Request};
use unasnap_protocol::power::{ControlRequest, MAX_PATTERNS, Pattern, Verb};

use super::super::household::{only, report};
use super::super::progress::Lines;
use super::super::status;
use super::course::{Member, Next, State};
use crate::client::Exchange;
use crate::config::ClientConfig;
use crate::failure::{CliError, Kind, Result};

/// Between two looks at VMs for which nothing can be done.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What is asked at the same time, below what one operator may have under way.
const AT_ONCE: usize = 16;

/// A deployment under way.
pub struct Work {
    config: ClientConfig,
    /// Its VMs.
    pub members: BTreeMap<Name, Member>,
    /// Hosts, and bases that VMs can be made on there.
    bases: BTreeSet<(Name, Name)>,
    /// Where hosts find a base that they lack.
    sources: BTreeMap<Name, String>,
    lines: Lines,
}

/// VMs by what they need next.
#[derive(Default)]
struct Todo {
    /// By host and base.
    transmit: BTreeMap<(Name, Name), Vec<Name>>,
    /// Host and VM.
    make: Vec<(Name, NewVm)>,
    start: Vec<Name>,
    waits: bool,
}

impl Work {
    /// Nothing is done yet.
    pub fn new(
        config: &ClientConfig,
        members: BTreeMap<Name, Member>,
        bases: BTreeSet<(Name, Name)>,
        sources: BTreeMap<Name, String>,
    ) -> Self {
        Self { config: config.clone(), members, bases, sources, lines: Lines::new() }
    }

    /// Until each is deployed or has failed.
    pub async fn deploy(mut self) -> Result<BTreeMap<Name, Member>> {
        loop {
            let todo = self.look().await?;
            let idle = todo.transmit.is_empty() && todo.make.is_empty() && todo.start.is_empty();
            if idle && !todo.waits {
                return Ok(self.end());
            }
            self.transmit(todo.transmit).await;
            self.make(todo.make).await;
            self.start(todo.start).await;
            if idle {
                sleep(LOOK_EVERY).await;
            }
        }
    }

    /// Ends all for good.
    pub async fn finish(mut self) -> BTreeMap<Name, Member> {
        let begin = |work: &mut Self, vm: Name| {
            let config = work.config.clone();
            async move {
                let task = Task::Delete { vm: vm.clone(), force: true, lose_snapshots: false };
                (vm, carry_out(&config, None, task).await)
            }
        };
        let vms = self.members.keys().cloned().collect();
        self.at_once(vms, begin, |work, (vm, outcome)| {
            let (now, Some(member)) = (Instant::now(), work.members.get_mut(&vm)) else { return };
            match outcome {
                Err(error) if error.kind != Kind::NotFound => member.fail(error.kind, error.to_string(), now),
                _ => member.enter(State::Finished, now),
            }
        })
        .await;
        self.end()
    }

    fn end(self) -> BTreeMap<Name, Member> {
        self.lines.clear();
        self.members
    }

    /// What is to be done next. A coordinator that does not answer is waited for, as a host is.
    async fn look(&mut self) -> Result<Todo> {
        let seen = match status::fetch(&self.config).await {
            Ok(seen) => Some(seen),
            Err(error) if matches!(error.kind, Kind::Connection | Kind::TimedOut) => None,
            Err(error) => return Err(error),
        };
        let (now, mut todo) = (Instant::now(), Todo::default());
        for (vm, member) in &mut self.members {
            let place = (member.host.clone(), member.wanted.base.clone());
            match member.look(seen.as_ref(), self.bases.contains(&place), now) {
                Next::Transmit => todo.transmit.entry(place).or_default().push(vm.clone()),
                Next::Make => todo.make.push((member.host.clone(), member.wanted.clone())),
                Next::Start => todo.start.push(vm.clone()),
                Next::Wait => todo.waits = true,
                Next::Nothing => {}
            }
        }
        for (vm, member) in &self.members {
            self.lines.say(vm, words(member));
        }
        Ok(todo)
    }

    /// Each host reads each base once.
    async fn transmit(&mut self, wanted: BTreeMap<(Name, Name), Vec<Name>>) {
        let begin = |work: &mut Self, ((host, base), vms): ((Name, Name), Vec<Name>)| {
            let left = work.begin(&vms, State::Transmitting);
            let (config, path) = (work.config.clone(), work.sources.get(&base).cloned());
            async move {
                let outcome = match path {
                    Some(path) => {
                        let task = Task::Preload { path, name: Some(base.clone()) };
                        let what = format!("host {host} has not preloaded base {base}");
                        within(left, &what, carry_out(&config, Some(host.clone()), task)).await
                    }
                    None => Err(CliError::new(Kind::NotFound, format!("host {host} has no base {base}"))),
                };
                (host, base, vms, outcome)
            }
        };
        self.at_once(wanted.into_iter().collect(), begin, |work, (host, base, vms, outcome)| {
            if outcome.is_ok() {
                work.bases.insert((host, base));
            }
            let outcome = outcome.map(drop);
            for vm in vms {
                work.tried(&vm, outcome.clone());
            }
        })
        .await;
    }

    async fn make(&mut self, wanted: Vec<(Name, NewVm)>) {
        let begin = |work: &mut Self, (host, vm): (Name, NewVm)| {
            let (name, config) = (vm.name.clone(), work.config.clone());
            let left = work.begin(std::slice::from_ref(&name), State::Configuring);
            async move {
                let what = format!("host {host} has not made it");
                let made = carry_out(&config, Some(host), Task::Create(Box::new(vm)));
                (name, within(left, &what, made).await.map(drop))
            }
        };
        self.at_once(wanted, begin, |work, (vm, outcome)| work.tried(&vm, outcome)).await;
    }

    /// One request after the other: nothing else is done to a deployment while VMs of it are being started.
    async fn start(&mut self, vms: Vec<Name>) {
        for some in vms.chunks(MAX_PATTERNS) {
            let left = self.begin(some, State::Deploying);
            let hosts: BTreeSet<_> =
                some.iter().filter_map(|vm| Some(self.members.get(vm)?.host.as_str())).collect();
            let hosts = hosts.into_iter().collect::<Vec<_>>().join(", ");
            let what = format!("not all of these hosts have started their VMs: {hosts}");
            let mut outcomes: BTreeMap<_, _> = match within(left, &what, start_all(&self.config, some)).await
            {
                Ok(problems) => problems.into_iter().map(|(vm, error)| (vm, Err(error))).collect(),
                Err(error) => some.iter().map(|vm| (vm.clone(), Err(error.clone()))).collect(),
            };
            for vm in some {
                let outcome = outcomes.remove(vm).unwrap_or(Ok(()));
                self.tried(vm, outcome);
            }
        }
    }

    /// Begins with as many as may be asked at once, and with another one whenever one has ended.
    async fn at_once<I, F>(
        &mut self,
        items: Vec<I>,
        begin: impl Fn(&mut Self, I) -> F,
        end: impl Fn(&mut Self, F::Output),
    ) where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let mut items = items.into_iter();
        let mut going = JoinSet::new();
        loop {
            while going.len() < AT_ONCE
                && let Some(item) = items.next()
            {
                let job = begin(self, item);
                going.spawn(job);
            }
            match going.join_next().await {
                Some(Ok(ended)) => end(self, ended),
                // None is aborted.
                Some(Err(error)) => resume_unwind(error.into_panic()),
                None => return,
            }
        }
    }

    /// These are in this state from now on; for how long at most is said.
    fn begin(&mut self, vms: &[Name], state: State) -> Duration {
        let now = Instant::now();
        let mut left = Duration::MAX;
        for vm in vms {
            if let Some(member) = self.members.get_mut(vm) {
                member.enter(state, now);
                left = left.min(member.left(state, now));
                self.lines.say(vm, words(member));
            }
        }
        left
    }

    fn tried(&mut self, vm: &Name, outcome: Result<()>) {
        if let Some(member) = self.members.get_mut(vm) {
            member.tried(outcome);
        }
    }
}

/// For progress.
fn words(member: &Member) -> String {
    format!("{} on {}", member.state(), member.host)
}

/// Waits so long at most.
async fn within<T>(limit: Duration, what: &str, done: impl Future<Output = Result<T>>) -> Result<T> {
    let late = || CliError::new(Kind::TimedOut, format!("{what} in {} s", limit.as_secs()));
    timeout(limit, done).await.unwrap_or_else(|_| Err(late()))
}

/// What the only host says that a task is for.
async fn carry_out(config: &ClientConfig, host: Option<Name>, task: Task) -> Result<Outcome> {
    let mut exchange = Exchange::begin(config, &Request::Household(HouseholdRequest { host, task })).await?;
    let answer = exchange.answer().await?;
    Ok(only(report(&exchange, answer)?)?.outcome?)
}

/// Those that could not be started, and why.
async fn start_all(config: &ClientConfig, vms: &[Name]) -> Result<Vec<(Name, CliError)>> {
    let patterns: Vec<Pattern> = vms.iter().cloned().map(Pattern::from).collect();
    let vms = patterns.try_into().map_err(|error| CliError::internal(format!("{error}")))?;
    let request = Request::Control(ControlRequest { verb: Verb::Start, vms });
    let mut exchange = Exchange::begin(config, &request).await?;
    let report = match exchange.answer().await? {
        Reply::Controlled(report) => report,
        other => return Err(exchange.unexpected(&other)),
    };
    let failed = report.vms.into_iter().filter_map(|vm| {
        let kind = if vm.timed_out { Kind::TimedOut } else { Kind::Refused };
        Some((vm.vm, CliError::new(kind, vm.problem?)))
    });
    Ok(failed.collect())
}

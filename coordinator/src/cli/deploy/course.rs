//! How far each VM of a deployment is: judged anew at each look, by what the hosts have.
//!
//! ```text
//!            its host reads the base      it is made           it boots            runs, and can be coloured
//!  requested ────▶ transmitting ────▶ configuring ────▶ deploying ────▶ deployed
//!      │                 │                  │                │              │
//!      │                 └──────────────────┴───────┬────────┴──────────────┘
//!      │                                   its host is away: reconnecting ────▶ back to where it is then
//!      ├────▶ failed     from everywhere: a host says no, or the time for a state is over
//!      └────▶ finished   it was to end, and is gone
//! ```
//!
//! The names are UnaCloud's. The time for a state is what a VM spends in it in all, however often it comes back: so a host
//! whose connection breaks again and again ends as one that stays away.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use unasnap_protocol::control::{Colouring, VmState};
use unasnap_protocol::household::NewVm;
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{HostStatus, StatusReport, VmStatus};

use super::super::status::state as in_words;
use crate::failure::{CliError, Kind};

#[cfg(test)]
mod tests;

/// How far a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has its place, and waits for its turn.
    Requested,
    /// Its host reads the base for the first time.
    Transmitting,
    /// Its host makes it.
    Configuring,
    /// It boots.
    Deploying,
    /// It runs, and its packets can be coloured.
    Deployed,
    /// Its host, or the coordinator, is away.
    Reconnecting,
    /// It will not be deployed; why, is said.
    Failed,
    /// It was to end, and is gone.
    Finished,
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Requested => "requested",
            Self::Transmitting => "transmitting",
            Self::Configuring => "configuring",
            Self::Deploying => "deploying",
            Self::Deployed => "deployed",
            Self::Reconnecting => "reconnecting",
            Self::Failed => "failed",
            Self::Finished => "finished",
        })
    }
}

/// How long a VM may be in a state, in all; seconds.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    transmitting_s: u32,
    configuring_s: u32,
    deploying_s: u32,
    reconnecting_s: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { transmitting_s: 20 * 60, configuring_s: 8 * 60, deploying_s: 4 * 60, reconnecting_s: 10 * 60 }
    }
}

impl Limits {
    fn of(self, state: State) -> Option<Duration> {
        let seconds = match state {
            State::Transmitting => self.transmitting_s,
            State::Configuring => self.configuring_s,
            State::Deploying => self.deploying_s,
            State::Reconnecting => self.reconnecting_s,
            State::Requested | State::Deployed | State::Failed | State::Finished => return None,
        };
        Some(Duration::from_secs(seconds.into()))
    }
}

/// What is to be done for a VM.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Its host has to read the base.
    Transmit,
    /// It has to be made.
    Make,
    /// It has to be started.
    Start,
    /// Time has to pass.
    Wait,
    /// It is as far as it gets.
    Nothing,
}

/// A state, and when it was entered.
#[derive(Debug, Clone, Serialize)]
pub struct Stage {
    /// The state.
    pub state: State,
    /// Since the command began.
    pub ms: f64,
}

/// One VM on its way.
pub struct Member {
    /// As it is to be.
    pub wanted: NewVm,
    /// Its place.
    pub host: Name,
    /// Why it failed.
    pub problem: Option<(Kind, String)>,
    limits: Limits,
    stages: Vec<(State, Instant)>,
    /// Since when its host was connected at the last look.
    since: Option<String>,
    /// An error, not yet judged: a connection that broke meanwhile explains it.
    error: Option<CliError>,
    /// What was done for it on the connection that there is now.
    done: Option<State>,
}

impl Member {
    /// One that waits for its turn.
    pub fn new(wanted: NewVm, host: Name, limits: Limits, now: Instant) -> Self {
        let stages = vec![(State::Requested, now)];
        Self { wanted, host, problem: None, limits, stages, since: None, error: None, done: None }
    }

    /// How far it is.
    pub fn state(&self) -> State {
        self.stages.last().map_or(State::Requested, |(state, _)| *state)
    }

    /// All states that it has been in.
    pub fn stages(&self) -> impl Iterator<Item = Stage> {
        let begun = self.stages.first().map(|(_, entered)| *entered);
        let ms = move |entered: Instant| begun.map_or(0.0, |begun| (entered - begun).as_secs_f64() * 1e3);
        self.stages.iter().map(move |(state, entered)| Stage { state: *state, ms: ms(*entered) })
    }

    /// Notes where it is now.
    pub fn enter(&mut self, state: State, now: Instant) {
        if self.state() != state {
            self.stages.push((state, now));
        }
    }

    /// What is left of the time for this state.
    pub fn left(&self, state: State, now: Instant) -> Duration {
        let ends = self.stages.iter().skip(1).map(|(_, entered)| *entered).chain([now]);
        let times = self.stages.iter().zip(ends).filter(|((other, _), _)| *other == state);
        let spent = times.map(|((_, entered), end)| end.saturating_duration_since(*entered)).sum();
        self.limits.of(state).unwrap_or(Duration::MAX).saturating_sub(spent)
    }

    /// What this state is for was done, or went wrong: the next look tells what that means.
    pub fn tried(&mut self, outcome: Result<(), CliError>) {
        self.done = outcome.is_ok().then(|| self.state());
        self.error = outcome.err();
    }

    /// It will not be deployed.
    pub fn fail(&mut self, kind: Kind, why: String, now: Instant) {
        self.enter(State::Failed, now);
        self.problem = Some((kind, why));
    }

    /// Where is it now, and what is to be done? `seen` is `None` while the coordinator does not answer.
    pub fn look(&mut self, seen: Option<&StatusReport>, has_base: bool, now: Instant) -> Next {
        if matches!(self.state(), State::Failed | State::Finished) {
            return Next::Nothing;
        }
        let host = seen.and_then(|seen| seen.hosts.iter().find(|host| host.name == self.host));
        let Some(host) = host.filter(|host| host.connected) else {
            self.since = None;
            return self.bide(State::Reconnecting, now, |host| match seen {
                Some(_) => format!("{host} is not connected"),
                None => "the coordinator does not answer".to_owned(),
            });
        };
        let broke = self.has_broken(host);
        if broke {
            self.done = None;
        }
        if let Some(error) = self.error.take().filter(|_| !broke) {
            self.fail(error.kind, error.to_string(), now);
            return Next::Nothing;
        }
        let vm = seen.and_then(|seen| seen.vms.iter().find(|vm| vm.name == self.wanted.name));
        match vm {
            None if !has_base => Next::Transmit,
            None if self.done == Some(State::Configuring) => self.bide(State::Configuring, now, |host| {
                format!("{host} has made it, and the coordinator does not list it; look at its log")
            }),
            None => Next::Make,
            Some(vm) => self.judge(vm, now),
        }
    }

    /// Is its host on another connection than at the last look?
    fn has_broken(&mut self, host: &HostStatus) -> bool {
        let before = std::mem::replace(&mut self.since, host.since.clone());
        before != self.since
    }

    /// It is there.
    fn judge(&mut self, vm: &VmStatus, now: Instant) -> Next {
        match vm.state {
            None => {
                let text = format!(
                    "host {} does not report it: mend its definition there, or `unasnap vm delete {}`",
                    vm.host, vm.name
                );
                self.fail(Kind::Refused, text, now);
                Next::Nothing
            }
            Some(VmState::Paused) => {
                let text = format!("it is paused; `unasnap vm resume {}` lets it run on", vm.name);
                self.fail(Kind::Refused, text, now);
                Next::Nothing
            }
            Some(VmState::Running) if can_be_coloured(vm) => {
                self.enter(State::Deployed, now);
                Next::Nothing
            }
            Some(VmState::Stopped | VmState::Failed) if self.done != Some(State::Deploying) => Next::Start,
            Some(VmState::Running) => self.bide(State::Deploying, now, |host| {
                format!(
                    "its guest agent does not answer, and {host} cannot colour its packets; `unasnap vm console {}` shows what it does",
                    vm.name
                )
            }),
            Some(other) => self.bide(State::Deploying, now, |host| {
                format!("{host} says that it is {}; look at the log of the host agent there", in_words(other))
            }),
        }
    }

    /// Waits in this state, or no longer.
    fn bide(&mut self, state: State, now: Instant, why: impl Fn(&str) -> String) -> Next {
        self.enter(state, now);
        if !self.left(state, now).is_zero() {
            return Next::Wait;
        }
        let seconds = self.limits.of(state).unwrap_or_default().as_secs();
        let why = why(&format!("host {}", self.host));
        self.fail(Kind::TimedOut, format!("{why} (after {seconds} s of {state})"), now);
        Next::Nothing
    }
}

/// By its host, or by its guest agent, or it is not wanted.
fn can_be_coloured(vm: &VmStatus) -> bool {
    vm.guest_agent == Some(true) || matches!(vm.colouring, Some(Colouring::Host | Colouring::None))
}

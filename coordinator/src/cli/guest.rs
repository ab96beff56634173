//! `unasnap vm exec`, `put`, `get` and `console`: what operators do in guests.

use std::collections::BTreeMap;

use unasnap_protocol::access::{AccessReply, AccessRequest, Ask, Said};
use unasnap_protocol::control::{Failure, FailureKind};
use unasnap_protocol::name::Name;
use unasnap_protocol::operator::{Place, Reply, Request};
use unasnap_protocol::power::Patterns;

use crate::client::Exchange;
use crate::config::ClientConfig;
use crate::failure::{CliError, Kind, Result};

pub mod console;
pub mod exec;
mod sink;
pub mod transfer;

/// Conversations with the guests that are meant, one turn of each at a time.
struct Conversations {
    exchange: Exchange,
    /// The turn that is under way with each VM.
    turns: BTreeMap<Name, (u32, Ask)>,
    /// Where they are, in the order of their names.
    places: Vec<Place>,
}

impl Conversations {
    /// Begins all of them with the same question.
    async fn open(config: &ClientConfig, vms: Patterns, ask: Ask) -> Result<Self> {
        let request = Request::Access(AccessRequest::Open(vms, ask.clone()));
        let mut exchange = Exchange::begin(config, &request).await?;
        let places = match exchange.next().await? {
            Reply::Access(AccessReply::Begun(places)) => places,
            other => return Err(exchange.unexpected(&other)),
        };
        let turns = places.iter().map(|place| (place.vm.clone(), (1, ask.clone()))).collect();
        Ok(Self { exchange, turns, places })
    }

    fn host(&self, vm: &Name) -> Option<&Name> {
        self.places.iter().find(|place| place.vm == *vm).map(|place| &place.host)
    }

    /// What the next of the guests says; a failure is the last that is heard of it.
    async fn next(&mut self) -> Result<(Name, std::result::Result<Said, Failure>)> {
        loop {
            let reply = self.exchange.next().await?;
            let (vm, said) = match &reply {
                Reply::Access(AccessReply::Said(vm, said)) => (vm, Ok(said)),
                Reply::Access(AccessReply::Failed(vm, failure)) => (vm, Err(failure)),
                _ => return Err(self.exchange.unexpected(&reply)),
            };
            let Some((number, ask)) = self.turns.get(vm) else {
                return Err(self.exchange.unexpected(&reply));
            };
            match said {
                Err(failure) => {
                    let failed = (vm.clone(), Err(failure.clone()));
                    self.turns.remove(vm);
                    return Ok(failed);
                }
                // It takes its time, or a snapshot has the guest's port.
                Ok(Said::NotYet) => {
                    let again = AccessRequest::Turn(vm.clone(), *number, ask.clone());
                    self.exchange.tell(&Request::Access(again)).await?;
                }
                Ok(said) if said.fits(ask) => return Ok((vm.clone(), Ok(said.clone()))),
                Ok(_) => return Err(self.exchange.unexpected(&reply)),
            }
        }
    }

    /// The next turn with a guest that has answered.
    async fn ask(&mut self, vm: &Name, ask: Ask) -> Result<()> {
        let Some(turn) = self.turns.get_mut(vm) else { return Ok(()) };
        *turn = (turn.0.saturating_add(1), ask);
        let request = AccessRequest::Turn(vm.clone(), turn.0, turn.1.clone());
        self.exchange.tell(&Request::Access(request)).await
    }

    /// All is said with this guest.
    fn end(&mut self, vm: &Name) {
        self.turns.remove(vm);
    }

    fn is_over(&self) -> bool {
        self.turns.is_empty()
    }
}

/// What a failure at a VM counts for.
fn kind(failure: &Failure) -> Kind {
    match failure.kind {
        FailureKind::TimedOut => Kind::TimedOut,
        FailureKind::BadRequest => Kind::NotFound,
        FailureKind::Internal => Kind::Internal,
        _ => Kind::Refused,
    }
}

fn failed(vm: &Name, host: Option<&Name>, failure: &Failure) -> CliError {
    let host = host.map(|host| format!(" on {host}")).unwrap_or_default();
    CliError::new(kind(failure), format!("{vm}{host}: {}", failure.text))
}

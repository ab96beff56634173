//! Who may have a connection: strangers few and not for long, known peers some each.
//!
//! A stranger costs a descriptor and some kilobytes until its handshake has ended. When there are too many, the oldest
//! one of the address that has the most of them goes, so that strangers shut out one another and nobody who is quick.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::sleep;
use unasnap_channel::{Arrival, Connection, Listener, Peer, Trust};

use super::connections::{self, Inputs};
use super::registry::LinkId;

/// Connections whose handshake has not ended. Together with [`MAX_CONNECTIONS`] well below the 1024 descriptors that a
/// process may open by default.
const MAX_STRANGERS: usize = 256;
/// Connections of known peers.
const MAX_CONNECTIONS: usize = 512;
/// Connections of one host: the one it has, and those that come to replace it.
const MAX_PER_HOST: usize = 4;
/// Commands that one operator may have running.
const MAX_PER_OPERATOR: usize = 32;

/// A connection before its handshake has ended.
struct Stranger {
    task: AbortHandle,
    address: IpAddr,
}

/// Everybody who is connected; owned by the one task that accepts.
struct Admission {
    /// In the order in which they came.
    strangers: Vec<Stranger>,
    handshakes: JoinSet<Option<Connection>>,
    known: HashMap<Id, String>,
    served: JoinSet<()>,
    trust: Trust,
    inputs: Inputs,
    links: LinkId,
}

/// Accepts connections for ever.
pub async fn accept(listener: Listener, trust: Trust, inputs: Inputs) {
    let mut admission = Admission {
        strangers: Vec::new(),
        handshakes: JoinSet::new(),
        known: HashMap::new(),
        served: JoinSet::new(),
        trust,
        inputs,
        links: 0,
    };
    loop {
        tokio::select! {
            arrival = listener.accept() => match arrival {
                Ok(arrival) => admission.begin(arrival),
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    // Out of descriptors, most likely: others must end first.
                    sleep(Duration::from_millis(100)).await;
                }
            },
            Some(ended) = admission.handshakes.join_next_with_id() => admission.shaken(ended),
            Some(ended) = admission.served.join_next_with_id() => admission.gone(ended),
        }
    }
}

impl Admission {
    fn begin(&mut self, arrival: Arrival) {
        if self.strangers.len() >= MAX_STRANGERS {
            let victim = victim(&self.strangers.iter().map(|one| one.address).collect::<Vec<_>>());
            let stranger = self.strangers.remove(victim);
            tracing::warn!("too many connections without a handshake: dropped one from {}", stranger.address);
            stranger.task.abort();
        }
        let address = arrival.address();
        let task = self.handshakes.spawn(async move {
            let refused = |error| tracing::warn!("refused a connection from {address}: {error}");
            arrival.handshake().await.map_err(refused).ok()
        });
        self.strangers.push(Stranger { task, address: address.ip() });
    }

    fn shaken(&mut self, ended: Result<(Id, Option<Connection>), JoinError>) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        self.strangers.retain(|stranger| stranger.task.id() != id);
        if let Ok((_, Some(connection))) = ended {
            self.admit(connection);
        }
    }

    fn admit(&mut self, connection: Connection) {
        let peer = connection.peer().clone();
        if self.known.len() >= MAX_CONNECTIONS {
            return tracing::warn!("{peer} is sent away: {MAX_CONNECTIONS} connections are open already");
        }
        let name = peer.dns_name();
        let has = self.known.values().filter(|known| **known == name).count();
        let most = if matches!(peer, Peer::Operator(..)) { MAX_PER_OPERATOR } else { MAX_PER_HOST };
        let task = if has >= most {
            self.served.spawn(connections::send_away(
                connection,
                format!("{peer} has {has} connections open already; wait until one of them has ended"),
            ))
        } else {
            self.links += 1;
            self.served.spawn(connections::serve(
                connection,
                self.links,
                self.trust.clone(),
                self.inputs.clone(),
            ))
        };
        self.known.insert(task.id(), name);
    }

    fn gone(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, ())| *id);
        self.known.remove(&id);
    }
}

/// The oldest of the address that occurs most often; of several such addresses the one that came first.
fn victim(addresses: &[IpAddr]) -> usize {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    for address in addresses {
        *counts.entry(*address).or_default() += 1;
    }
    let most = counts.values().copied().max().unwrap_or_default();
    addresses.iter().position(|address| counts[address] == most).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_from_one_address_costs_nobody_else_a_place() {
        let (flood, quiet) = (IpAddr::from([10, 0, 0, 66]), IpAddr::from([10, 0, 0, 1]));
        assert_eq!(victim(&[quiet, flood, flood, flood]), 1);
        assert_eq!(victim(&[quiet, flood, quiet]), 0);
        assert_eq!(victim(&[quiet, flood]), 0);
    }
}

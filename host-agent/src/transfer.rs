//! Files of local snapshots, from one host to another.
//!
//! | module | what is in it |
//! |---|---|
//! | [`giving`] | the listener, and what it gives to whom |
//! | [`reading`] | files as chunks, without their holes; the limit of the rate |
//! | [`fetching`] | orders to fetch: one task each, progress, repetitions |
//! | [`conversation`] | one connection to a host that has files |
//! | [`receiving`] | one transfer: what is missing comes, is compared and becomes a local snapshot of this host |
//! | [`bringing`] | an image comes that is to be a base here |
//! | [`frozen`] | disks of stopped VMs that are given |
//! | [`replicating`] | such disks come, for a VM that is to be made here |
//! | [`images`] | what VMs need beside their snapshots, by digest |
//! | [`telling`] | how far such transfers are |
//! | [`fitting`] | could this VM be restored on this host? |

pub mod bringing;
pub(crate) mod conversation;
pub mod fetching;
pub mod fitting;
pub mod frozen;
pub mod giving;
pub mod images;
pub mod reading;
pub mod receiving;
pub mod replicating;
pub mod telling;

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::timeout;
use unasnap_channel::{Reader, Writer};
use unasnap_protocol::transfer::{Ask, Give};

use crate::fault_point;

/// For the other end's next word, where it has nothing to compute.
const WORD_LIMIT: Duration = Duration::from_secs(30);

async fn ask(writer: &mut Writer, message: &Ask) -> Result<()> {
    fault_point::before("seek", message.name()).await?;
    writer.send(&message.encode(&())).await?;
    Ok(fault_point::after("seek", message.name()).await?)
}

async fn give(writer: &mut Writer, message: &Give) -> Result<()> {
    fault_point::before("give", message.name()).await?;
    writer.send(&message.encode(&())).await?;
    Ok(fault_point::after("give", message.name()).await?)
}

/// The source's next word.
async fn given(reader: &mut Reader) -> Result<Give> {
    let Ok(frame) = timeout(WORD_LIMIT, reader.recv()).await else {
        bail!("it said nothing for {} s", WORD_LIMIT.as_secs());
    };
    match frame? {
        Some(frame) => Ok(Give::decode(&frame)?.1),
        None => bail!("it closed the connection"),
    }
}

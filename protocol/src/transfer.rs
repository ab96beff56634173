//! Host <-> host: how the files of a local snapshot come to the host on which it is to be restored.
//!
//! The host that needs them connects; both prove by their certificates which host they are.
//!
//! ```text
//! target                           source
//!   Open {snapshot, vm, digest} ----->
//!        <----- Offer {manifest, images} | Busy | Refused
//!   Read {item, offset} ------------->
//!        <----- Chunk ... Chunk, End | Refused
//!   Read ...
//! ```
//!
//! An image that hosts share as a base comes in the same way: `Base {digest}` takes the place of `Open`, and the offer holds that
//! image and nothing else. So do the disks of a VM that does not run: `Disks {vm, digest}`, and there is no RAM among the files.
//!
//! Chunks of an item come in order, from the offset on. What lies between them is a hole, and so is what follows the last
//! one. Names are [`Name`]s, and items are numbers: no path of the target's is ever opened at the source.

use core::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::name::Name;

/// Most bytes of one [`Chunk`].
pub const MAX_CHUNK_BYTES: usize = 256 << 10;
/// Most images that an [`Offer`] may name: disks, kernel, initrd.
pub const MAX_IMAGES: usize = 16;
/// How long the source waits for the next question, seconds.
pub const MAX_IDLE_S: u64 = 60;

messages! {
    /// What the target asks.
    pub enum Ask with () {
        /// First of all.
        200 => Open(Wanted),
        /// Send this, from this offset on.
        201 => Read(Piece),
        /// First of all, in place of `Open`: a base whose content has this blake3.
        202 => Base([u8; 32]),
        /// First of all, in place of `Open`: what the disks of a VM that does not run hold.
        203 => Disks(Disks),
    }
}

messages! {
    /// What the source gives.
    pub enum Give with () {
        /// What there is.
        208 => Offer(Offer),
        /// Bytes of what was asked for.
        209 => Chunk(Chunk),
        /// All of it was sent; it is this long.
        210 => End(u64),
        /// As many transfers as there may be are under way; ask again.
        211 => Busy(()),
        /// In words.
        212 => Refused(String),
    }
}

/// Of which local snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The global snapshot; it has to be committed.
    pub snapshot: Name,
    /// The member.
    pub vm: Name,
    /// blake3 of the manifest, as the coordinator has it.
    pub digest: [u8; 32],
}

/// What the disks of a VM held when its host was asked to freeze them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disks {
    /// The VM.
    pub vm: Name,
    /// blake3 of their manifest, as the host told the coordinator.
    pub digest: [u8; 32],
}

/// Something that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Item {
    /// `manifest.json`.
    Manifest,
    /// The file at this place of the manifest's list.
    File(u32),
    /// The image at this place of the offer's list.
    Image(u32),
}

/// A part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Of what.
    pub item: Item,
    /// What comes before is there already.
    pub offset: u64,
}

/// What the source has of a local snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Length of the manifest, bytes.
    pub manifest_bytes: u64,
    /// Bytes of the files that are no holes, in the manifest's order.
    pub data_bytes: Vec<u64>,
    /// What the VM needs beside its snapshot: first the images below its disks, in the manifest's order, then
    /// its kernel and its initrd, if it has them.
    pub images: Vec<Image>,
}

/// A file that the operator keeps and no snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Where it lies at the source; it may lie at the same place at the target.
    pub path: String,
    /// Its length, bytes.
    pub size: u64,
    /// Of that, what is no hole.
    pub data_bytes: u64,
    /// blake3 of its content.
    pub digest: [u8; 32],
}

/// A part of a file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Where it begins in the file.
    pub offset: u64,
    /// 1 to [`MAX_CHUNK_BYTES`] bytes.
    pub bytes: Vec<u8>,
}

/// Where a host gives files to other hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferAddress {
    /// `None`: as the coordinator sees the host.
    pub ip: Option<IpAddr>,
    /// TCP.
    pub port: u16,
}

/// Where the files of a member's local snapshot, or an image, can be fetched.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Source {
    /// Whose certificate the other end has to show.
    pub host: Name,
    /// `address:port`.
    pub address: String,
    /// blake3 of the manifest, as SAVED told it, or of the image.
    pub digest: [u8; 32],
}

/// How far a FETCH is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Moved {
    /// Bytes that came over the network.
    pub sent: u64,
    /// Bytes that will have come when it ends; 0 while that is not known. What the target has already is not sent, nor are holes.
    pub to_send: u64,
    /// Lengths of all files that the member needs, added up.
    pub total: u64,
}

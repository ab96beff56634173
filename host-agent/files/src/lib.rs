//! The file tracker: which files a VM at one of its snapshots consists of, which of them a restore on another host
//! needs, and why it does not need the others.
//!
//! | module | what is in it |
//! |---|---|
//! | [`vbox`] | VirtualBox: a `.vbox`, its tree of snapshots and its chains of disks |
//! | [`qcow2`] | a chain of qcow2 images |
//! | [`vdi`] | the header of a VDI |
//! | `sum` | several VMs together |
//! | `listing` | sorts files into needed, not needed and missing |
//! | `place` | where a file is that another file names |
//!
//! It looks at files and changes none (but [`vdi::rename`], which gives a copy a name of its own). What it reads of them is capped, whatever they claim.

mod error;
mod listing;
mod place;
pub mod qcow2;
mod sum;
mod uuid;
pub mod vbox;
pub mod vdi;

pub use error::FilesError;
pub use sum::sum;

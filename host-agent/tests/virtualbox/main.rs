//! The VirtualBox driver: what it makes of every answer of VBoxManage 7.2.22 that was recorded, and its life with a VirtualBox in
//! memory that writes real settings and answers in recorded words.
//!
//! `fixtures/*.txt`: one recorded session each; `$` a call, `=` its exit code, `>` what it printed, `!` what it complained.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod answers;
#[path = "../transfer/authority.rs"]
mod authority;
mod cuts;
mod elsewhere;
mod guestcontrol;
mod household;
mod lives;
mod making;
mod moving;
mod program;
mod real;
mod recorded;
mod shared;
mod simulated;
mod support;
#[path = "../transfer/vdi.rs"]
mod vdi_header;

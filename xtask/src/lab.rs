//! A cluster of real VMs on this machine, on which the commands of `xtask` work.
//!
//! | module | what is in it |
//! |---|---|
//! | `namespaces` | network namespaces in place of machines, and what runs in them |
//! | `cluster` | configuration files, daemons, the operator's command |
//! | `console` | what the guests' consoles say |
//! | `record` | what `unasnap --json` says, as far as it is used |
//! | `waiting` | bounded waits |

pub mod cluster;
pub mod console;
pub mod namespaces;
pub mod record;
pub mod waiting;

//! A cluster of real VMs on this machine, on which the commands of `xtask` work.
//!
//! | module | what is in it |
//! |---|---|
//! | `namespaces` | network namespaces in place of machines, and what runs in them |
//! | `bank` | the workload by which consistency is checked |
//! | `cluster` | configuration files, daemons, the operator's command |
//! | `console` | what the guests' consoles say |
//! | `disk` | a small disk that can fill up |
//! | `shell` | a shell in the guests |
//! | `record` | what `unasnap --json` says, as far as it is used |
//! | `waiting` | bounded waits |

pub mod bank;
pub mod cluster;
pub mod console;
pub mod disk;
pub mod namespaces;
pub mod record;
pub mod shell;
pub mod waiting;

//! Workloads that run inside member VMs, and whose outcome tells whether a restore lost or doubled anything.
//!
//! - [`ring`]: the published RCPBT. A numbered token goes round a ring of nodes over persistent TCP.
//! - [`stream`]: one busy request/response TCP stream, every byte checked. It is the control experiment: without
//!   colouring a restored stream hangs for ever, and this program shows that as no progress.
//! - [`bank`]: every member pays every other over TCP and UDP, and an offline proof that a restored snapshot was consistent.
//! - [`disk`]: a number on a disk that must follow the one in RAM.
//!
//! Beside them: [`beat`] shows gaps to the world, [`gauge`] is the benchmark's hand in a guest, [`meter`] measures gaps, [`sample`] is how measuring programs say their figures.
//!
//! None has an application time-out or reconnects: a broken TCP connection must be seen, not healed.

pub mod bank;
pub mod beat;
pub mod disk;
pub mod gauge;
pub mod meter;
pub mod net;
pub mod ring;
pub mod sample;
pub mod stream;

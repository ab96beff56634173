//! How much of a disk snapshots may take.

/// What the operator wants.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Bytes that are kept free for the disks of the running VMs.
    pub reserve: u64,
    /// Most bytes that all snapshots may take together.
    pub quota: Option<u64>,
}

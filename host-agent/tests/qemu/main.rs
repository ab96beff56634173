//! The QEMU driver with real guests. Run by `cargo xtask test`, which provides kernel and initramfs; wants root.

mod adoption;
mod bench;
mod faults;
mod round_trip;

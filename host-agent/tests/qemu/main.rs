//! The QEMU driver with real guests. Run by `cargo xtask test`, which provides kernel and initramfs; wants root.

#[cfg(test)]
mod access;
#[cfg(test)]
mod adoption;
#[cfg(test)]
mod bench;
#[cfg(test)]
mod buttons;
#[cfg(test)]
mod cluster;
#[cfg(test)]
mod copies;
#[cfg(test)]
mod debian;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod household;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod privileges;
#[cfg(test)]
mod round_trip;
#[cfg(test)]
mod secrets;

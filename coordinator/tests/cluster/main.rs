//! The command and the coordinator as an operator and host agents meet them: separate processes, real
//! TLS, real participants.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod bad_input;
mod clocks;
mod commands;
mod controls;
mod courses;
mod crashes;
mod fault_points;
mod households;
mod limits;
mod pauses;
mod support;
mod trust;

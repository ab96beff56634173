//! The command and the coordinator as an operator and host agents meet them: separate processes, real
//! TLS, real participants.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod access;
mod bad_input;
mod clocks;
mod commands;
mod controls;
mod courses;
mod crashes;
mod deployments;
mod fault_points;
mod households;
mod image_check;
mod images;
mod limits;
mod mending;
mod moves;
mod pauses;
mod preloads;
mod replicas;
mod support;
mod trust;

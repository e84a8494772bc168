//! Instances, images, networks and their state on one host.

#![forbid(unsafe_code)]

pub mod network;
pub mod state;

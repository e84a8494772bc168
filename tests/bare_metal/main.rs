//! The bare-metal guest (`guest/`) in real machines: what it finds, what it must not break.
//!
//! Runs on any KVM, also one without hardware behind it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

mod devices;
mod hostile;
mod lifecycle;
#[path = "../support/mod.rs"]
mod support;
mod vm;

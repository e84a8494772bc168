//! The bare-metal guest (`guest/`) in real machines: what it finds, what it must not break.
//!
//! Runs on any KVM, also one without hardware behind it.

mod devices;
mod hostile;
mod hotplug;
mod jail;
mod lifecycle;
#[path = "../support/mod.rs"]
mod support;
mod syscalls;

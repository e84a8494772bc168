//! A machine without KVM, and a guest driver for it: every device can be tested end to end through
//! the same registers, rings and doorbells that a guest uses.
//!
//! ```text
//!  GuestDriver, GuestQueue ── mmio_write ─▶ TestMachine ─┬ FakeDoorbells (as ioeventfd)
//!        │ descriptors, rings                            ├ Bus ─ PciRoot ─ VirtioPci ─ device
//!        ▼                                               ├ FakeMsi (as irqfd)
//!   guest memory ◀── workers run in TestMachine::run ────┴ InlineWorkers
//! ```
//!
//! Nothing runs by itself: workers run when the test calls [`TestMachine::run`], on its thread.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "test support: failing is its way to report"
)]

mod driver;
mod fakes;
mod hammer;
mod loopback;
mod machine;
mod queue;

pub use driver::GuestDriver;
pub use fakes::{FakeDoorbells, FakeMsi, InlineWorkers};
pub use hammer::{Victim, hammer_registers, hammer_rings};
pub use loopback::{LOOPBACK_FEATURE, Loopback, LoopbackLog};
pub use machine::{MEM_LEN, PORT_BASE, TestMachine, WINDOW};
pub use queue::{Buffer, GuestQueue, INDIRECT, NEXT, RawDescriptor, WRITE};

pub use super::transport::registers::{EVENT_IDX, INDIRECT_DESC, VERSION_1, common, status};

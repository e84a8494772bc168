//! vCPU threads.
//!
//! ```text
//!            spawn                      Gate::open
//!   created ──────▶ parked at the gate ───────────▶ KVM_RUN ◀──▶ exit ─▶ bus
//!                        ▲    │ Gate::stop             │ kick (signal)
//!                        │    ▼                        │
//!                        │  ended                      │
//!                        └──────── Gate::pause ────────┘
//! ```
//!
//! Every thread looks at the [`Gate`] before each entry into the guest. To get one out of the guest
//! it is sent a signal, whose handler asks KVM for an immediate exit, so that a signal between the
//! look and the entry is not lost.

mod failure;
mod gate;
mod kick;
mod run;
mod setup;

pub use gate::Gate;
pub use kick::install_handler;
pub use run::{MachineEvent, MachineEvents, Platform, VcpuCounters, VcpuThread};
pub use setup::set_up;

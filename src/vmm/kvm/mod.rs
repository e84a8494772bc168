//! The only place that talks to KVM about a VM as a whole. vCPUs are in [`crate::vcpu`].

mod doorbell;
mod irq;
mod vm;

pub use doorbell::KvmDoorbells;
pub use irq::{KvmMsi, KvmWire, WIRED_LINES};
pub use vm::{KvmError, Vm, adopt};

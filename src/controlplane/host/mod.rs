//! What the host offers and what runs on it.

pub mod doctor;
mod kvm;
mod memory;
mod nameservers;
mod process;
mod routes;

pub use kvm::{KvmError, KvmKind, open_kvm};
pub use memory::{host_memory, host_total_memory, parse_meminfo};
pub use nameservers::host_nameservers;
pub use process::{ProcessIdentity, boot_id};
pub use routes::host_ranges;

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl kiln_model::Clock for SystemClock {
    fn unix_seconds(&self) -> u64 {
        // A clock before 1970 is as good as none.
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }
}

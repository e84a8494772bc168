//! Drivers for virtio devices on PCI, modern interface only, polling.
//!
//! They give the tests every register and every descriptor to set as they please; what keeps to the
//! rules is a layer above (`Queue::submit`, `Blk`, `Net`).

pub mod blk;
pub mod net;
mod queue;
mod transport;

pub use queue::{F_INDIRECT, F_NEXT, F_WRITE, Part, Queue, Used, write_desc};
pub use transport::{Transport, common, status};

/// Device types (virtio 1.2 §5).
pub const NET: u16 = 1;
pub const BLK: u16 = 2;
pub const RNG: u16 = 4;

/// Feature bits common to all devices.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
pub const F_EVENT_IDX: u64 = 1 << 29;
pub const F_VERSION_1: u64 = 1 << 32;

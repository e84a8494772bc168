//! Disk images: what a block device reads and writes.
//!
//! Two axes are kept apart. *Format* (raw, qcow2) is behind [`Disk`]; *how requests are carried
//! out* (in place, io_uring) is behind [`engine::Engine`]. Above both, [`partition`] and
//! [`bootable`] read a kernel out of a disk.

pub mod bootable;
mod disk;
pub mod engine;
mod error;
pub mod partition;

pub use disk::{Disk, Extent, Segment};
pub use error::DiskError;

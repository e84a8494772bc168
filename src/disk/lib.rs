//! Disk images: what a block device reads and writes.
//!
//! Two axes are kept apart. *Format* (raw, qcow2) is behind [`Disk`]; *how requests are carried
//! out* (in place, io_uring) is behind [`engine::Engine`]. Above both, [`partition`] and
//! [`bootable`] read a kernel out of a disk.

pub mod bootable;
mod disk;
pub mod engine;
mod error;
#[cfg(any(test, feature = "test-utils"))]
pub mod faulty;
mod lock;
mod open;
pub mod partition;
mod positioned;
mod qcow2;
mod raw;
pub mod throttle;

pub use disk::{Disk, Extent, PreparedWrite, SECTOR_SIZE, Segment};
pub use error::DiskError;
pub use open::{Format, Layer, open};
#[cfg(any(test, feature = "test-utils"))]
pub use qcow2::fuzzing as qcow2_fuzzing;
pub use qcow2::{
    Backing, Chain, MAX_OVERLAY_SIZE, create_overlay, grow_overlay, merge_overlays, rebase_overlay,
};
pub use raw::RawDisk;

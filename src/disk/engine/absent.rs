//! What an engine without a disk stands on.

use vm_memory::VolatileSlice;

use crate::{Disk, DiskError, Extent};

/// A disk without a single sector: every request but a flush is out of its range.
pub(super) struct NoDisk;

impl NoDisk {
    fn refuse(offset: u64, len: u64) -> Result<(), DiskError> {
        Err(DiskError::OutOfRange { offset, len, size: 0 })
    }
}

impl Disk for NoDisk {
    fn size(&self) -> u64 {
        0
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read_at(&self, _bufs: &[VolatileSlice<'_>], offset: u64) -> Result<(), DiskError> {
        Self::refuse(offset, 0)
    }

    fn write_at(&self, _bufs: &[VolatileSlice<'_>], _offset: u64) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        Self::refuse(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<(), DiskError> {
        Self::refuse(offset, len)
    }

    fn extent(&self, _offset: u64, _len: u64, _write: bool) -> Option<Extent> {
        None
    }
}

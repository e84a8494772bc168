//! A disk for tests and fuzz targets.

use std::sync::Arc;

use vm_memory::VolatileSlice;

use crate::{Disk, DiskError, Extent};

/// A disk of bytes in memory, read-only.
pub struct MemoryDisk(Vec<u8>);

impl MemoryDisk {
    /// A disk that reads as `bytes`.
    pub fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self(bytes))
    }
}

impl Disk for MemoryDisk {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read_at(&self, bufs: &[VolatileSlice<'_>], offset: u64) -> Result<(), DiskError> {
        let mut at = offset;
        for buf in bufs {
            let end = at.saturating_add(buf.len() as u64);
            let found = usize::try_from(at).ok().zip(usize::try_from(end).ok());
            let Some(found) = found.and_then(|(at, end)| self.0.get(at..end)) else {
                return Err(DiskError::OutOfRange { offset, len: end - offset, size: self.size() });
            };
            buf.copy_from(found);
            at = end;
        }
        Ok(())
    }

    fn write_at(&self, _: &[VolatileSlice<'_>], _: u64) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }

    fn extent(&self, _: u64, _: u64, _: bool) -> Option<Extent> {
        None
    }
}

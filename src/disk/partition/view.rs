//! A window onto a disk.

use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::Partition;
use crate::{Disk, DiskError};

/// A read-only range of a disk. Offsets count from its start; nothing outside can be reached.
#[derive(Clone)]
pub struct PartitionView {
    disk: Arc<dyn Disk>,
    start: u64,
    len: u64,
}

impl PartitionView {
    /// The range of `partition`, which came from the table of `disk`.
    pub fn new(disk: Arc<dyn Disk>, partition: &Partition) -> Self {
        Self { disk, start: partition.start, len: partition.len }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `buf` from `offset` on. Blocks.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`] for any range that is not wholly inside, and what the disk says.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.read_volatile_at(VolatileSlice::from(buf), offset)
    }

    /// Like [`PartitionView::read_exact_at`], into memory that a guest may touch meanwhile.
    ///
    /// # Errors
    /// The same.
    pub fn read_volatile_at(&self, buf: VolatileSlice<'_>, offset: u64) -> Result<(), DiskError> {
        let len = buf.len() as u64;
        let absolute = self
            .start
            .checked_add(offset)
            .filter(|_| offset.checked_add(len).is_some_and(|end| end <= self.len));
        let Some(absolute) = absolute else {
            return Err(DiskError::OutOfRange { offset, len, size: self.len });
        };
        if buf.is_empty() {
            return Ok(());
        }
        self.disk.read_at(&[buf], absolute)
    }
}

impl std::fmt::Debug for PartitionView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartitionView")
            .field("start", &self.start)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition::{PartitionType, testing::MemoryDisk};

    #[test]
    fn ranges_past_the_end_are_refused() {
        let disk = MemoryDisk::new((0..2048u32).map(|i| (i / 512) as u8).collect());
        let partition = Partition {
            number: 1,
            start: 512,
            len: 1024,
            kind: PartitionType::Mbr(0x83),
            name: String::new(),
            partuuid: None,
        };
        let view = PartitionView::new(disk, &partition);
        let mut buf = [0u8; 4];
        view.read_exact_at(&mut buf, 1020).unwrap();
        assert_eq!(buf, [2; 4]);
        for offset in [1021, 1024, u64::MAX - 2, u64::MAX] {
            let error = view.read_exact_at(&mut buf, offset).unwrap_err();
            assert!(matches!(error, DiskError::OutOfRange { size: 1024, .. }));
        }
        view.read_exact_at(&mut [], 1024).unwrap();
    }
}

//! What file systems read from: a partition, and the budget that its metadata is charged to.

use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::filesystem::FsError;
use super::limits::Budget;
use crate::partition::PartitionView;

/// A partition as its file system driver sees it.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    view: PartitionView,
    budget: Arc<Budget>,
}

impl Source {
    pub(crate) fn new(view: PartitionView, budget: Arc<Budget>) -> Self {
        Self { view, budget }
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.view.len()
    }

    /// Reads structure: inodes, directories, allocation tables. Costs budget. `len` must have been
    /// bounded.
    pub(crate) fn metadata_vec(&self, len: usize, offset: u64) -> Result<Vec<u8>, FsError> {
        self.budget.spend(len as u64)?;
        let mut buf = vec![0; len];
        self.data(VolatileSlice::from(buf.as_mut_slice()), offset)?;
        Ok(buf)
    }

    /// Reads contents of files, which their own limits bound.
    pub(crate) fn data(&self, buf: VolatileSlice<'_>, offset: u64) -> Result<(), FsError> {
        let read = self.view.read_volatile_at(buf, offset);
        read.map_err(FsError::from)
    }

    /// Pays for `bytes` that are worked on without being read again.
    pub(crate) fn spend(&self, bytes: u64) -> Result<(), FsError> {
        self.budget.spend(bytes).map_err(FsError::from)
    }
}

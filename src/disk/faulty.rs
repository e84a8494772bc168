//! A disk that fails on demand and remembers what it was asked.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::VolatileSlice;

use crate::positioned::total_len;
use crate::{Disk, DiskError};

/// What a disk was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `read_at`.
    Read {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// `write_at`.
    Write {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// `flush`.
    Flush,
    /// `discard`.
    Discard {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// `write_zeroes`.
    WriteZeroes {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
        /// May reclaim the range.
        unmap: bool,
    },
}

type Fault = Box<dyn Fn(Operation) -> Option<DiskError> + Send>;

/// Passes operations on to another disk, unless told to fail them. Tells nobody where the bytes
/// are, so every operation comes by.
pub struct FaultyDisk {
    inner: Arc<dyn Disk>,
    log: Mutex<Vec<Operation>>,
    fault: Mutex<Fault>,
}

impl FaultyDisk {
    /// Fails nothing yet.
    pub fn new(inner: Arc<dyn Disk>) -> Self {
        Self { inner, log: Mutex::default(), fault: Mutex::new(Box::new(|_| None)) }
    }

    /// From now on an operation fails with what `fault` returns for it.
    pub fn fail(&self, fault: impl Fn(Operation) -> Option<DiskError> + Send + 'static) {
        *lock(&self.fault) = Box::new(fault);
    }

    /// Operations since the last call.
    pub fn take_log(&self) -> Vec<Operation> {
        std::mem::take(&mut lock(&self.log))
    }

    fn enter(&self, operation: Operation) -> Result<(), DiskError> {
        lock(&self.log).push(operation);
        lock(&self.fault)(operation).map_or(Ok(()), Err)
    }
}

/// The error of a host whose device is broken.
pub fn host_error() -> DiskError {
    DiskError::Io { action: "a test".to_owned(), source: io::Error::from_raw_os_error(libc::EIO) }
}

impl Disk for FaultyDisk {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_only(&self) -> bool {
        self.inner.read_only()
    }

    fn read_at(&self, bufs: &[VolatileSlice<'_>], offset: u64) -> Result<(), DiskError> {
        self.enter(Operation::Read { offset, len: total_len(bufs).unwrap_or(u64::MAX) })?;
        self.inner.read_at(bufs, offset)
    }

    fn write_at(&self, bufs: &[VolatileSlice<'_>], offset: u64) -> Result<(), DiskError> {
        self.enter(Operation::Write { offset, len: total_len(bufs).unwrap_or(u64::MAX) })?;
        self.inner.write_at(bufs, offset)
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.enter(Operation::Flush)?;
        self.inner.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.enter(Operation::Discard { offset, len })?;
        self.inner.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        self.enter(Operation::WriteZeroes { offset, len, unmap })?;
        self.inner.write_zeroes(offset, len, unmap)
    }

    fn extent(&self, _offset: u64, _len: u64, _write: bool) -> Option<crate::Extent> {
        None
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

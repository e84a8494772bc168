//! The [`Disk`] trait.

use std::os::fd::RawFd;

use vm_memory::{GuestAddress, VolatileSlice};

use crate::DiskError;

/// Unit of addresses and sizes of block devices, in bytes.
pub const SECTOR_SIZE: u64 = 512;

/// A random-access array of bytes. Implementations check every range and never panic.
///
/// All methods may block and may be called from several threads at once.
pub trait Disk: Send + Sync {
    /// Size in bytes, a multiple of 512. Only [`Disk::grow`] changes it.
    fn size(&self) -> u64;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Fills `bufs` from `offset` on, or fails as a whole.
    fn read_at(&self, bufs: &[VolatileSlice<'_>], offset: u64) -> Result<(), DiskError>;

    /// Writes `bufs` from `offset` on. After an error the range holds old, new or mixed bytes.
    fn write_at(&self, bufs: &[VolatileSlice<'_>], offset: u64) -> Result<(), DiskError>;

    /// Returns when everything written before is on stable storage.
    fn flush(&self) -> Result<(), DiskError>;

    /// Lets the host reclaim the range. It then reads as zeroes or as its old contents.
    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError>;

    /// Makes the range read as zeroes; `unmap` allows to reclaim it.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError>;

    /// Where the bytes at `offset` live in an open file, as far as they are contiguous there, so
    /// that an engine may read (or, with `write`, overwrite) them in place. `None`: they must go
    /// through the other methods. An answer stays true while the disk is open.
    fn extent(&self, offset: u64, len: u64, write: bool) -> Option<Extent>;

    /// Reserves a place for data that are new at `offset`, as far as that is contiguous, so that an
    /// engine can write them there by itself; the disk shows them when told with
    /// [`Disk::finish_write`]. `None`: they must go through [`Disk::write_at`].
    ///
    /// Who holds a prepared write must not call a method that changes the disk: it may wait for
    /// that write.
    fn prepare_write(&self, offset: u64, len: u64) -> Option<PreparedWrite> {
        let _ = (offset, len);
        None
    }

    /// Ends a prepared write. `done`: all of its data are written.
    fn finish_write(&self, write: PreparedWrite, done: bool) {
        let _ = (write, done);
    }

    /// The file, if its bytes are the disk's: an engine may then discard and zero by itself.
    fn flat_file(&self) -> Option<RawFd> {
        None
    }

    /// The file whose `fdatasync` alone makes durable what is completed now; `None` if that takes
    /// [`Disk::flush`].
    fn flush_file(&self) -> Option<RawFd> {
        None
    }

    /// Makes the disk larger; what is new reads as zeroes, or as what the images below have there. A size that
    /// it has already changes nothing, and it never becomes smaller. Returns when that is on stable storage.
    fn grow(&self, size: u64) -> Result<(), DiskError> {
        let _ = size;
        Err(DiskError::Unsupported("growing an image of this format"))
    }

    /// Bytes that are best discarded together, a power of two of at least 512.
    fn discard_granularity(&self) -> u32 {
        4096
    }

    /// Fills `buf` from `offset` on.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.read_at(&[VolatileSlice::from(buf)], offset)
    }
}

/// A piece of a file that holds a piece of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The file; open as long as the disk is.
    pub fd: RawFd,
    /// First byte in the file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// A write that [`Disk::prepare_write`] has allowed. Has to be given to [`Disk::finish_write`].
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct PreparedWrite {
    /// Where the data go.
    pub extent: Extent,
    /// First byte on the disk.
    pub(crate) offset: u64,
}

/// A buffer in guest memory, as a descriptor names it. Unchecked until it is resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub addr: GuestAddress,
    /// Length in bytes.
    pub len: u32,
}

/// Checks that a range lies inside a disk of `size` bytes, and returns its length. `len` is `None`
/// when the sum of the buffers does not fit 64 bits.
pub(crate) fn check_range(offset: u64, len: Option<u64>, size: u64) -> Result<u64, DiskError> {
    let reported = len.unwrap_or(u64::MAX);
    match len.and_then(|len| offset.checked_add(len)) {
        Some(end) if end <= size => Ok(reported),
        _ => Err(DiskError::OutOfRange { offset, len: reported, size }),
    }
}

//! Raw images: a file or block device whose bytes are the disk's.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt};

use vm_memory::VolatileSlice;
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use crate::disk::{SECTOR_SIZE, check_range};
use crate::lock::ImageFile;
use crate::positioned;
use crate::{Disk, DiskError, Extent};

/// Zeroes for files that cannot be zeroed by the file system.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// A file or block device as a disk.
///
/// The size is read once. A file that shrinks later makes requests fail; one that grows keeps its
/// old size here.
#[derive(Debug)]
pub struct RawDisk {
    file: ImageFile,
    size: u64,
    read_only: bool,
}

impl RawDisk {
    /// Takes an open file that nobody else uses. Its size must be a multiple of 512: rounding down
    /// would hide the tail of the image from the guest, rounding up would grow a file that may be a
    /// shared base.
    pub fn new(file: File, read_only: bool) -> Result<Self, DiskError> {
        Self::over(ImageFile::private(file), read_only)
    }

    /// The same for a file with its locks.
    pub(crate) fn over(file: ImageFile, read_only: bool) -> Result<Self, DiskError> {
        let size = file_size(&file)?;
        if !size.is_multiple_of(SECTOR_SIZE) {
            return Err(DiskError::Format {
                format: "raw",
                detail: format!(
                    "its size of {size} bytes is not a multiple of 512 (pad it with `truncate --size=%512`)"
                ),
            });
        }
        Ok(Self { file, size, read_only })
    }

    /// The file and its size.
    pub(crate) fn into_parts(self) -> (ImageFile, u64) {
        (self.file, self.size)
    }

    fn check_writable(&self) -> Result<(), DiskError> {
        if self.read_only { Err(DiskError::ReadOnly) } else { Ok(()) }
    }

    fn write_zero_bytes(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        while len > 0 {
            let piece = len.min(ZEROES.len() as u64);
            self.file.write_all_at(&ZEROES[..piece as usize], offset)?;
            offset += piece;
            len -= piece;
        }
        Ok(())
    }
}

impl Disk for RawDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, bufs: &[VolatileSlice<'_>], offset: u64) -> Result<(), DiskError> {
        let len = check_range(offset, positioned::total_len(bufs), self.size)?;
        positioned::read_exact(&self.file, bufs, offset)
            .map_err(|e| DiskError::transfer("read", len, offset, e))
    }

    fn write_at(&self, bufs: &[VolatileSlice<'_>], offset: u64) -> Result<(), DiskError> {
        self.check_writable()?;
        let len = check_range(offset, positioned::total_len(bufs), self.size)?;
        positioned::write_all(&self.file, bufs, offset)
            .map_err(|e| DiskError::transfer("write", len, offset, e))
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.read_only {
            // Nothing of ours is waiting. Firmware flushes read-only disks too and expects success.
            return Ok(());
        }
        self.file.sync_data().map_err(|source| DiskError::Io { action: "flush".to_owned(), source })
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.check_writable()?;
        let len = check_range(offset, Some(len), self.size)?;
        if len == 0 {
            return Ok(());
        }
        match fallocate(&self.file, FallocateMode::PunchHole, true, offset, len) {
            Ok(()) => Ok(()),
            // A hint only: what cannot be reclaimed keeps its contents.
            Err(e) if is_unsupported(e.errno()) => Ok(()),
            Err(e) => Err(DiskError::transfer("discard", len, offset, e.into())),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        self.check_writable()?;
        let len = check_range(offset, Some(len), self.size)?;
        if len == 0 {
            return Ok(());
        }
        // Both leave zeroes behind; only the first gives space back. Where a file system knows
        // just one of them, it is good enough for either wish.
        let modes = if unmap {
            [FallocateMode::PunchHole, FallocateMode::ZeroRange]
        } else {
            [FallocateMode::ZeroRange, FallocateMode::PunchHole]
        };
        for mode in modes {
            match fallocate(&self.file, mode, true, offset, len) {
                Ok(()) => return Ok(()),
                Err(e) if is_unsupported(e.errno()) => {}
                Err(e) => return Err(DiskError::transfer("zeroing", len, offset, e.into())),
            }
        }
        self.write_zero_bytes(offset, len).map_err(|e| DiskError::transfer("zeroing", len, offset, e))
    }

    fn extent(&self, offset: u64, len: u64, write: bool) -> Option<Extent> {
        if write && self.read_only {
            return None;
        }
        let len = len.min(self.size.checked_sub(offset)?);
        (len > 0).then(|| Extent { fd: self.file.as_raw_fd(), offset, len })
    }

    fn flat_file(&self) -> Option<RawFd> {
        Some(self.file.as_raw_fd())
    }

    fn flush_file(&self) -> Option<RawFd> {
        (!self.read_only).then(|| self.file.as_raw_fd())
    }
}

/// EINVAL is how block devices refuse a range that is not aligned to their sectors.
fn is_unsupported(errno: i32) -> bool {
    matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV)
}

/// Size of a regular file or block device.
pub(crate) fn file_size(file: &File) -> Result<u64, DiskError> {
    let io_error = |source| DiskError::Io { action: "reading the size of the image file".to_owned(), source };
    let metadata = file.metadata().map_err(io_error)?;
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    if metadata.file_type().is_block_device() {
        // All our I/O names its offset, so moving the file position disturbs nobody.
        let mut file = file;
        return io::Seek::seek(&mut file, io::SeekFrom::End(0)).map_err(io_error);
    }
    Err(DiskError::Format {
        format: "disk",
        detail: "it is neither a regular file nor a block device".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(size: u64) -> RawDisk {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        RawDisk::new(file, false).unwrap()
    }

    fn write(disk: &dyn Disk, data: &[u8], offset: u64) -> Result<(), DiskError> {
        disk.write_at(&[VolatileSlice::from(&mut data.to_vec()[..])], offset)
    }

    fn read(disk: &dyn Disk, len: usize, offset: u64) -> Vec<u8> {
        let mut buf = vec![0xaa; len];
        disk.read_exact_at(&mut buf, offset).unwrap();
        buf
    }

    #[test]
    fn what_is_written_is_read() {
        let disk = disk(8192);
        write(&disk, &[7; 1024], 512).unwrap();
        assert_eq!(read(&disk, 2048, 0), [vec![0; 512], vec![7; 1024], vec![0; 512]].concat());
        disk.flush().unwrap();
    }

    #[test]
    fn ranges_outside_the_disk_are_refused() {
        let disk = disk(4096);
        for (offset, len) in [(4096, 1), (4095, 2), (u64::MAX, 1), (0, 4097), (u64::MAX - 1, 4)] {
            assert!(matches!(write(&disk, &vec![0; len], offset), Err(DiskError::OutOfRange { .. })));
            let len = len as u64;
            assert!(matches!(disk.discard(offset, len), Err(DiskError::OutOfRange { .. })));
            assert!(matches!(disk.write_zeroes(offset, len, true), Err(DiskError::OutOfRange { .. })));
        }
        assert_eq!(disk.extent(4096, 1, false), None);
        assert_eq!(disk.extent(u64::MAX, u64::MAX, false), None);
        assert_eq!(disk.extent(4000, 4096, false).unwrap().len, 96);
    }

    #[test]
    fn a_read_only_disk_refuses_changes_and_flushes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let disk = RawDisk::new(file, true).unwrap();
        assert!(matches!(write(&disk, &[1], 0), Err(DiskError::ReadOnly)));
        assert!(matches!(disk.discard(0, 512), Err(DiskError::ReadOnly)));
        assert!(matches!(disk.write_zeroes(0, 512, false), Err(DiskError::ReadOnly)));
        assert_eq!(disk.extent(0, 512, true), None);
        disk.flush().unwrap();
    }

    #[test]
    fn discarded_and_zeroed_ranges_read_as_zeroes() {
        let disk = disk(1 << 20);
        write(&disk, &vec![9; 1 << 20], 0).unwrap();
        disk.discard(0, 128 * 1024).unwrap();
        disk.write_zeroes(256 * 1024, 1000, false).unwrap();
        disk.write_zeroes(512 * 1024, 128 * 1024, true).unwrap();
        assert!(read(&disk, 128 * 1024, 0).iter().all(|&b| b == 0));
        assert!(read(&disk, 1000, 256 * 1024).iter().all(|&b| b == 0));
        assert!(read(&disk, 128 * 1024, 512 * 1024).iter().all(|&b| b == 0));
        assert_eq!(read(&disk, 1, 256 * 1024 + 1000), [9]);
        assert_eq!(read(&disk, 1, 128 * 1024), [9]);
    }

    #[test]
    fn a_size_with_half_a_sector_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1000).unwrap();
        let error = RawDisk::new(file, false).unwrap_err();
        assert!(error.to_string().contains("not a multiple of 512"), "{error}");
    }

    #[test]
    fn a_directory_is_refused() {
        let error = RawDisk::new(File::open("/").unwrap(), true).unwrap_err();
        assert!(matches!(error, DiskError::Format { .. }));
    }
}

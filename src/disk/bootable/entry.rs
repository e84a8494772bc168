//! What a search finds: files that are there, ready to be read into a guest.

use std::io::{self, Read};
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::filesystem::{Contents, FsError};

/// A kernel or initrd inside an image. Cheap to clone; reading needs nothing but the disk.
#[derive(Debug, Clone)]
pub struct BootFile {
    contents: Arc<Contents>,
    start: u64,
    len: u64,
    /// `/boot/vmlinuz-6.1 on partition 1 (ext4)`.
    place: String,
}

impl BootFile {
    pub(super) fn new(contents: Arc<Contents>, start: u64, len: u64, place: String) -> Self {
        Self { contents, start, len, place }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it is, for people: `/boot/vmlinuz-6.1 on partition 1 (ext4)`.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Fills `buf` from `offset` on. Blocks. Larger pieces are faster.
    ///
    /// # Errors
    /// A range that is not wholly inside the file, or a failed read.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<(), FsError> {
        self.read_volatile_at(VolatileSlice::from(buf), offset)
    }

    /// Like [`BootFile::read_exact_at`], straight into guest memory.
    ///
    /// # Errors
    /// The same.
    pub fn read_volatile_at(&self, buf: VolatileSlice<'_>, offset: u64) -> Result<(), FsError> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(FsError::Damaged("a file is shorter than it should be"));
        }
        // In range: `start + len` is at most the length of the file.
        self.contents.read_volatile_at(buf, self.start + offset)
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// [`FsError::TooLarge`] beyond `limit` bytes, before anything is allocated.
    pub fn read(&self, limit: u64) -> Result<Vec<u8>, FsError> {
        if self.len > limit {
            return Err(FsError::TooLarge { size: self.len, limit });
        }
        let mut bytes = vec![0; self.len as usize];
        self.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Reads from the front to the back. Not buffered: ask for large pieces.
    pub fn reader(&self) -> BootFileReader {
        BootFileReader { file: self.clone(), at: 0 }
    }
}

/// Sequential access to a [`BootFile`].
#[derive(Debug)]
pub struct BootFileReader {
    file: BootFile,
    at: u64,
}

impl Read for BootFileReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.file.len - self.at;
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let (buf, _) = buf.split_at_mut(len);
        self.file.read_exact_at(buf, self.at).map_err(io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }
}

/// A kernel with all it needs to start.
#[derive(Debug, Clone)]
pub struct BootEntry {
    /// Title in the menu, printable.
    pub title: String,
    /// Where the entry is written down: `grub.cfg on partition 1 (ext4)`.
    pub origin: String,
    /// bzImage or ELF, not looked at.
    pub kernel: BootFile,
    /// To be loaded one after the other; together at most [`super::Limits::initrd`] bytes.
    pub initrds: Vec<BootFile>,
    /// As the entry has it, without what Kiln adds. No control characters.
    pub cmdline: String,
}

//! Bytes to be copied into guest memory, wherever they are.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use kiln_disk::bootable::BootFile;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, Permissions};

/// A kernel or an initial RAM disk.
#[derive(Clone, Copy)]
pub enum Blob<'a> {
    /// In memory.
    Bytes(&'a [u8]),
    /// In a regular file, copied from there without a buffer in between. Moves the file's offset.
    File(&'a File),
    /// Inside a disk image, copied from there without a buffer in between.
    Image(&'a BootFile),
}

impl Blob<'_> {
    /// Length in bytes.
    pub fn len(&self) -> io::Result<u64> {
        match self {
            Blob::Bytes(bytes) => Ok(bytes.len() as u64),
            Blob::File(file) => Ok(file.metadata()?.len()),
            Blob::Image(file) => Ok(file.len()),
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `out` from `offset`; an error when the blob ends before.
    pub(super) fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match self {
            Blob::Bytes(bytes) => {
                let bytes = usize::try_from(offset)
                    .ok()
                    .and_then(|start| bytes.get(start..start.checked_add(out.len())?))
                    .ok_or(io::ErrorKind::UnexpectedEof)?;
                out.copy_from_slice(bytes);
                Ok(())
            }
            Blob::File(file) => file.read_exact_at(out, offset),
            Blob::Image(file) => file.read_exact_at(out, offset).map_err(io::Error::other),
        }
    }

    /// Copies `len` bytes from `offset` to `address` of guest memory.
    pub(super) fn copy_to(
        &self,
        mem: &GuestMemoryMmap,
        address: u64,
        offset: u64,
        len: u64,
    ) -> Result<(), GuestMemoryError> {
        let eof = || GuestMemoryError::IOError(io::ErrorKind::UnexpectedEof.into());
        let address = GuestAddress(address);
        let count = usize::try_from(len).map_err(|_| eof())?;
        match self {
            Blob::Bytes(bytes) => {
                let bytes = usize::try_from(offset)
                    .ok()
                    .and_then(|start| bytes.get(start..start.checked_add(count)?))
                    .ok_or_else(eof)?;
                mem.write_slice(bytes, address)
            }
            Blob::File(file) => {
                let mut file = *file;
                file.seek(SeekFrom::Start(offset)).map_err(GuestMemoryError::IOError)?;
                mem.read_exact_volatile_from(address, &mut file, count)
            }
            Blob::Image(file) => {
                let mut at = offset;
                for slice in mem.get_slices(address, count, Permissions::Write)? {
                    let slice = slice?;
                    let failed = |error| GuestMemoryError::IOError(io::Error::other(error));
                    file.read_volatile_at(slice, at).map_err(failed)?;
                    at += slice.len() as u64;
                }
                Ok(())
            }
        }
    }
}

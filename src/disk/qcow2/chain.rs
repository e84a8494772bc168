//! A chain of images for those who copy disks rather than use them: what stretches hold, and which images say so.

use std::fs::File;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use vm_memory::VolatileSlice;

use super::header::bad;
use super::merge::Said;
use super::write::Zeroing;
use super::{Qcow2Disk, Source};
use crate::open::{Format, Layer, locked};
use crate::{Disk, DiskError};

/// Images that lie over each other, the topmost of them a qcow2 image.
pub struct Chain(Qcow2Disk);

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chain").field("size", &self.size()).finish_non_exhaustive()
    }
}

impl Chain {
    /// Opens images, top first, with the locks that [`crate::open`] takes.
    pub fn open(layers: Vec<Layer>, read_only: bool) -> Result<Self, DiskError> {
        let mut layers = locked(layers, read_only)?.into_iter();
        match layers.next() {
            Some((top, Format::Qcow2)) => Ok(Chain(Qcow2Disk::open(top, layers, read_only)?)),
            _ => Err(bad("a chain has a qcow2 image at its top")),
        }
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.0.size()
    }

    /// Fills `buf` from `offset` on; past the end of the disk with zeroes.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        let slice = VolatileSlice::from(buf);
        let len = slice.len() as u64;
        // Nothing is added up that a disk does not reach.
        let inside = self.size().saturating_sub(offset).min(len);
        let whole = slice.subslice(0, inside as usize).map_err(|_| DiskError::BadBuffer)?;
        let rest = slice.offset(inside as usize).map_err(|_| DiskError::BadBuffer)?;
        crate::positioned::fill_zero(&[rest]);
        self.0.read(&[whole], offset, inside)
    }

    /// Writes `buf`, which stays as it is, from `offset` on.
    pub fn write(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.0.write_at(&[VolatileSlice::from(buf)], offset)
    }

    /// Makes the topmost image say that a range is zero, whatever is below it. Takes no room for it.
    pub fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.0.zero_range(offset, len, Zeroing::Say)
    }

    /// Returns when everything written before is on stable storage.
    pub fn flush(&self) -> Result<(), DiskError> {
        self.0.flush()
    }

    /// Whether one of the upper `depth` qcow2 images says anything of the byte at `offset`, and for how many of
    /// the `len` bytes from there on the answer is the same. Of what is past the end none does.
    pub fn says(&self, depth: usize, offset: u64, len: u64) -> Result<(bool, u64), DiskError> {
        self.within(offset, len, |len| {
            let (said, run) = self.0.said(depth, offset, len)?;
            Ok((said != Said::Nothing, run))
        })
    }

    /// Whether there can be anything but zeroes at `offset`, and for how many of the `len` bytes from there on
    /// the answer is the same.
    pub fn holds(&self, offset: u64, len: u64) -> Result<(bool, u64), DiskError> {
        self.within(offset, len, |len| {
            Ok(match self.0.find(offset, len)? {
                (Source::Zero, run) => (false, run),
                (Source::File { file, offset, sparse: false, .. }, run) => data_at(file, offset, run),
                (Source::File { .. } | Source::Compressed(..), run) => (true, run),
            })
        })
    }

    fn within(
        &self,
        offset: u64,
        len: u64,
        look: impl FnOnce(u64) -> Result<(bool, u64), DiskError>,
    ) -> Result<(bool, u64), DiskError> {
        match self.size().saturating_sub(offset).min(len) {
            0 => Ok((false, len)),
            inside => look(inside),
        }
    }
}

/// Whether a raw file has data at `offset`, and for how many of `len` bytes.
fn data_at(file: &File, offset: u64, len: u64) -> (bool, u64) {
    let Ok(from) = i64::try_from(offset) else { return (true, len) };
    let until = |position: i64| u64::try_from(position).unwrap_or(0).saturating_sub(offset).min(len);
    match lseek(file, from, Whence::SeekData) {
        // The rest is a hole.
        Err(Errno::ENXIO) => (false, len),
        Ok(data) if data > from => (false, until(data)),
        // Or a device or file system that does not know holes.
        _ => match lseek(file, from, Whence::SeekHole) {
            Ok(hole) if hole > from => (true, until(hole)),
            _ => (true, len),
        },
    }
}

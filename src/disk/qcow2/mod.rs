//! Qcow2 images, read and written.
//!
//! ```text
//!  guest byte ─▶ L1 entry ─▶ L2 entry ─▶ host cluster of the top image
//!                  │ none      │ unallocated
//!                  ▼           ▼
//!               image below, at the same byte ─▶ … ─▶ raw base, or zeroes
//! ```
//!
//! Written here rather than taken from a library, for three properties that a machine's disk needs
//! and that we did not find together:
//!
//! - **A process may die at any instruction.** Refcounts reach the file before what they count, and
//!   L1 entries after the table they point at; so an image left behind is consistent, or leaks.
//! - **A host may lose power at any time.** Between data, L2 and L1 there are barriers, as far as a
//!   flush has anything to order. What a guest has flushed is there; what it has not is old or new.
//! - **Any file may be handed in.** Names of other files inside an image are never followed, and no
//!   content leads to a panic or to unbounded work.
//!
//! Data are moved outside of all locks, and clusters never change their place or owner while the
//! image is open. So an engine may be told where the bytes are, read and write them in place, and
//! even write fresh clusters by itself before they are mapped ([`Disk::prepare_write`]).

mod alloc;
mod chain;
mod compressed;
mod create;
mod entry;
#[cfg(any(test, feature = "test-utils"))]
pub mod fuzzing;
mod header;
mod image;
mod merge;
mod tables;
mod write;

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use vm_memory::VolatileSlice;

use crate::disk::check_range;
use crate::lock::ImageFile;
use crate::open::Format;
use crate::positioned::{self, part, total_len};
use crate::{Disk, DiskError, Extent, PreparedWrite, RawDisk};
use entry::Compressed;
use image::{Image, Place};

pub use chain::Chain;
pub use create::{Backing, MAX_OVERLAY_SIZE, create_overlay, grow_overlay};
pub use merge::{merge_overlays, rebase_overlay};

/// A qcow2 image over the images below it.
pub(crate) struct Qcow2Disk {
    top: Image,
    below: Vec<Below>,
    read_only: bool,
}

/// An image that is only read.
enum Below {
    Raw { file: ImageFile, size: u64 },
    Qcow2(Box<Image>),
}

/// Where some bytes of the disk are.
enum Source<'d> {
    /// In a file. `sparse`: what is past its end reads as zeroes.
    File {
        file: &'d File,
        offset: u64,
        sparse: bool,
        writable: bool,
    },
    Zero,
    /// In a cluster that has to be inflated.
    Compressed(&'d Image, Compressed),
}

impl Qcow2Disk {
    pub(crate) fn open(
        file: ImageFile,
        below: impl ExactSizeIterator<Item = (ImageFile, Format)>,
        read_only: bool,
    ) -> Result<Self, DiskError> {
        let top = Image::open(file, !read_only, below.len() > 0)?;
        let mut left = below.len();
        let below = below
            .map(|(file, format)| {
                left -= 1;
                match format {
                    Format::Raw if left > 0 => Err(DiskError::raw_overlay()),
                    Format::Raw => {
                        let (file, size) = RawDisk::over(file, true)?.into_parts();
                        Ok(Below::Raw { file, size })
                    }
                    Format::Qcow2 => Ok(Below::Qcow2(Box::new(Image::open(file, false, left > 0)?))),
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { top, below, read_only })
    }

    /// Tells where the byte at `offset` is, and how many of the `len` bytes from there on have the
    /// same source. `len` is not 0.
    fn find(&self, offset: u64, mut len: u64) -> Result<(Source<'_>, u64), DiskError> {
        let mut next = Some(&self.top);
        let mut below = self.below.iter();
        while let Some(image) = next {
            // What an image does not reach reads as zeroes, whatever is below it.
            let Some(rest) = image.size().checked_sub(offset).filter(|&rest| rest > 0) else {
                return Ok((Source::Zero, len));
            };
            let run = image.lookup(offset, len.min(rest))?;
            len = run.len;
            match run.place {
                Place::Data { offset, writable } => {
                    return Ok((Source::File { file: &image.file, offset, sparse: true, writable }, len));
                }
                Place::Zero => return Ok((Source::Zero, len)),
                Place::Compressed(stream) => return Ok((Source::Compressed(image, stream), len)),
                Place::Unallocated => {}
            }
            next = match below.next() {
                Some(Below::Qcow2(image)) => Some(image),
                Some(Below::Raw { file, size }) => {
                    let Some(rest) = size.checked_sub(offset).filter(|&rest| rest > 0) else {
                        return Ok((Source::Zero, len));
                    };
                    let source = Source::File { file, offset, sparse: false, writable: false };
                    return Ok((source, len.min(rest)));
                }
                None => None,
            };
        }
        Ok((Source::Zero, len))
    }

    /// Fills `bufs`, which hold `len` bytes, from `offset` on; past the end with zeroes.
    fn read(&self, bufs: &[VolatileSlice<'_>], offset: u64, len: u64) -> Result<(), DiskError> {
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let (source, run) = self.find(at, len - done)?;
            let bufs = part(bufs, done, run);
            let failed = |source| DiskError::transfer("read", run, at, source);
            match source {
                Source::File { file, offset, sparse: true, .. } => {
                    positioned::read_zero_filled(file, &bufs, offset).map_err(failed)?;
                }
                Source::File { file, offset, .. } => {
                    positioned::read_exact(file, &bufs, offset).map_err(failed)?;
                }
                Source::Zero => positioned::fill_zero(&bufs),
                Source::Compressed(image, stream) => {
                    let cluster = image.inflate(stream)?;
                    let start = image.geometry.in_cluster(at) as usize;
                    positioned::copy_from(&bufs, cluster.get(start..).unwrap_or_default());
                }
            }
            done += run;
        }
        Ok(())
    }

    fn check_writable(&self) -> Result<(), DiskError> {
        if self.read_only { Err(DiskError::ReadOnly) } else { Ok(()) }
    }

    fn zero_range(&self, offset: u64, len: u64, how: write::Zeroing) -> Result<(), DiskError> {
        self.check_writable()?;
        let len = check_range(offset, Some(len), self.top.size())?;
        self.zero(offset, len, how)
    }
}

impl Disk for Qcow2Disk {
    fn size(&self) -> u64 {
        self.top.size()
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, bufs: &[VolatileSlice<'_>], offset: u64) -> Result<(), DiskError> {
        let len = check_range(offset, total_len(bufs), self.top.size())?;
        self.read(bufs, offset, len)
    }

    fn write_at(&self, bufs: &[VolatileSlice<'_>], offset: u64) -> Result<(), DiskError> {
        self.check_writable()?;
        let len = check_range(offset, total_len(bufs), self.top.size())?;
        self.write(bufs, offset, len)
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.read_only { Ok(()) } else { self.top.flush() }
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.zero_range(offset, len, write::Zeroing::Discard)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        self.zero_range(offset, len, if unmap { write::Zeroing::Unmap } else { write::Zeroing::Keep })
    }

    fn extent(&self, offset: u64, len: u64, write: bool) -> Option<Extent> {
        check_range(offset, Some(len), self.top.size()).ok().filter(|&len| len > 0)?;
        match self.find(offset, len).ok()? {
            (Source::File { file, offset, writable, .. }, len) if !write || (writable && !self.read_only) => {
                Some(Extent { fd: file.as_raw_fd(), offset, len })
            }
            _ => None,
        }
    }

    fn prepare_write(&self, offset: u64, len: u64) -> Option<PreparedWrite> {
        self.check_writable().ok()?;
        check_range(offset, Some(len), self.top.size()).ok().filter(|&len| len > 0)?;
        self.top.prepare_write(offset, len)
    }

    fn finish_write(&self, write: PreparedWrite, done: bool) {
        self.top.finish_write(&write, done);
    }

    fn flush_file(&self) -> Option<RawFd> {
        let clean = !self.read_only && self.top.state().tables.is_clean();
        clean.then(|| self.top.file.as_raw_fd())
    }

    fn grow(&self, size: u64) -> Result<(), DiskError> {
        self.check_writable()?;
        self.top.grow(size)
    }

    fn discard_granularity(&self) -> u32 {
        // At most a cluster, so at most 2 MiB.
        self.top.geometry.sub_size() as u32
    }
}

impl Drop for Qcow2Disk {
    fn drop(&mut self) {
        if !self.read_only
            && let Err(error) = self.top.close()
        {
            tracing::warn!("a qcow2 image was not closed cleanly: {error}");
        }
    }
}

#[cfg(test)]
mod tests;

//! Makes one layer of several, and lets a layer lie over another one that says the same.
//!
//! ```text
//!   a ─▶ b ─▶ c ─▶ base        merge [a, b, c]        m ─▶ base
//!   what a says, else what b says, else what c says; where none of them says anything, m says nothing
//! ```

use std::fs::File;
use std::os::unix::fs::FileExt;

use vm_memory::VolatileSlice;

use super::create::{Backing, GEOMETRY, check_backing, create_overlay, new_header};
use super::header::{Header, bad};
use super::image::{Image, Place};
use super::{Below, Qcow2Disk};
use crate::lock::ImageFile;
use crate::open::{Format, Layer, open};
use crate::raw::file_size;
use crate::{Disk, DiskError};

/// Bytes copied at once.
const CHUNK: u64 = 1 << 20;

/// What layers say of a stretch of the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    Nothing,
    Zero,
    Data,
}

impl Qcow2Disk {
    /// What the upper `depth` qcow2 images say from `offset` on, and for how many of the `len` bytes; neither is
    /// 0.
    pub(super) fn said(&self, depth: usize, offset: u64, mut len: u64) -> Result<(Said, u64), DiskError> {
        let below = self.below.iter().filter_map(|below| match below {
            Below::Qcow2(image) => Some(image.as_ref()),
            Below::Raw { .. } => None,
        });
        for image in std::iter::once(&self.top).chain(below).take(depth) {
            // What an image does not reach reads as zeroes, whatever is below it.
            let Some(rest) = image.size().checked_sub(offset).filter(|&rest| rest > 0) else {
                return Ok((Said::Zero, len));
            };
            let run = image.lookup(offset, len.min(rest))?;
            len = run.len;
            match run.place {
                Place::Unallocated => {}
                Place::Zero => return Ok((Said::Zero, len)),
                Place::Data { .. } | Place::Compressed(_) => return Ok((Said::Data, len)),
            }
        }
        Ok((Said::Nothing, len))
    }
}

/// Writes what `upper`, qcow2 images from the top down, say of the disk into `target`, replacing its contents by
/// an overlay of the size of the topmost. It lies over `below`, as the lowest of them does, the first of which
/// `backing` names. Durable when it returns.
///
/// Takes as long as what they hold takes to copy, whatever the size of the disk.
pub fn merge_overlays(
    upper: Vec<File>,
    below: Vec<Layer>,
    target: &File,
    backing: Option<&Backing>,
) -> Result<(), DiskError> {
    let mut images = Vec::with_capacity(upper.len());
    for file in upper {
        // What the lowest lies over is named, and not read here.
        images.push(Image::open(ImageFile::shared(file)?, false, true)?);
    }
    let mut images = images.into_iter();
    let Some(top) = images.next() else { return Err(bad("there are no layers to make one of")) };
    let rest = images.map(|image| Below::Qcow2(Box::new(image))).collect();
    let source = Qcow2Disk { top, below: rest, read_only: true };
    let size = source.size();
    let again = || {
        let failed = |source| DiskError::Io { action: "opening a new overlay twice".to_owned(), source };
        target.try_clone().map_err(failed)
    };
    create_overlay(again()?, size, backing)?;
    let layers = std::iter::once(Layer { file: again()?, format: Format::Qcow2 }).chain(below);
    let target = open(layers.collect(), false)?;
    let mut buffer = vec![0; usize::try_from(CHUNK).unwrap_or(0)];
    let mut offset = 0;
    while offset < size {
        let (said, mut len) = source.said(usize::MAX, offset, size - offset)?;
        match said {
            Said::Nothing => {}
            Said::Zero => target.write_zeroes(offset, len, true)?,
            Said::Data => {
                len = len.min(CHUNK);
                let piece = buffer.get_mut(..usize::try_from(len).unwrap_or(0)).unwrap_or_default();
                let slices = [VolatileSlice::from(piece)];
                source.read_at(&slices, offset)?;
                target.write_at(&slices, offset)?;
            }
        }
        offset += len;
    }
    target.flush()
}

/// Changes the name of what an overlay of [`super::create_overlay`] lies over, which has to say the same. The
/// overlay must be nobody's but the caller's: a power cut in the middle leaves one that cannot be used.
pub fn rebase_overlay(file: &File, backing: &Backing) -> Result<(), DiskError> {
    check_backing(backing)?;
    let header = Header::read(file, file_size(file)?)?;
    let l1_entries = u32::try_from(header.l1_entries).map_err(|_| bad("its L1 table is too large"))?;
    let fresh = new_header(header.size, l1_entries, Some(backing));
    if header.geometry != GEOMETRY
        || header.l1_offset != fresh.l1_offset
        || header.reftable_offset != fresh.reftable_offset
        || header.reftable_entries * 8 != GEOMETRY.cluster_size()
    {
        return Err(bad("it is not as new overlays are"));
    }
    let failed = |source| DiskError::Io { action: "rebasing an overlay".to_owned(), source };
    file.write_all_at(&fresh.bytes(), 0).map_err(failed)
}

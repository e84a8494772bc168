//! Writes a fresh overlay.
//!
//! ```text
//!  cluster 0      1                2                 3 …
//!  header         refcount table   refcount block    L1 table
//! ```
//!
//! Clusters of 128 KiB with extended L2 entries: data are mapped in units of 4 KiB, the page of the
//! guest. A guest's write to fresh ground then never has to copy anything from the base first, and
//! the tables are as small as those of plain 64 KiB clusters.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::header::{Geometry, Header, MAX_BACKING_NAME, NewHeader, bad};
use crate::raw::file_size;
use crate::{DiskError, Format, SECTOR_SIZE};

pub(super) const GEOMETRY: Geometry = Geometry { cluster_bits: 17, extended: true, zero_clusters: true };

/// 64 TiB: its L1 table of 512 KiB, and all refcounts that it can need, are found without growing
/// any table.
pub const MAX_OVERLAY_SIZE: u64 = 64 << 40;

const REFTABLE: u64 = 1;
const REFBLOCK: u64 = 2;
const L1: u64 = 3;

/// The image that a new overlay lies over, as written into its header for other tools to find. We
/// never follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// Absolute path, at most 1023 bytes.
    pub path: String,
    /// Its format.
    pub format: Format,
}

/// Writes an empty overlay of `size_bytes` into `file`, replacing its contents. A size beyond the
/// base's is fine: what the base does not have reads as zeroes.
///
/// Takes the same time for any size. Does not wait for stable storage: the first flush of the disk
/// does.
#[expect(clippy::needless_pass_by_value, reason = "the image is complete: the descriptor has served")]
pub fn create_overlay(file: File, size_bytes: u64, backing: Option<&Backing>) -> Result<(), DiskError> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR_SIZE) || size_bytes > MAX_OVERLAY_SIZE {
        return Err(bad(format!(
            "an overlay cannot have {size_bytes} bytes: the size must be a multiple of 512 up to 64 TiB"
        )));
    }
    backing.map_or(Ok(()), check_backing)?;
    let cluster = GEOMETRY.cluster_size();
    // At most 65536 entries, see MAX_OVERLAY_SIZE.
    let l1_entries = GEOMETRY.l1_entries(size_bytes);
    let used_clusters = L1 + (l1_entries * 8).div_ceil(cluster);
    let header = new_header(size_bytes, l1_entries as u32, backing);
    let write = || {
        file.set_len(0)?;
        file.set_len(used_clusters * cluster)?;
        file.write_all_at(&(REFBLOCK * cluster).to_be_bytes(), REFTABLE * cluster)?;
        let refcounts: Vec<u8> = (0..used_clusters).flat_map(|_| 1u16.to_be_bytes()).collect();
        file.write_all_at(&refcounts, REFBLOCK * cluster)?;
        // Last, so that what is cut short is not taken for an image.
        file.write_all_at(&header.bytes(), 0)
    };
    write().map_err(|source| DiskError::Io { action: "writing a new overlay".to_owned(), source })
}

pub(super) fn check_backing(backing: &Backing) -> Result<(), DiskError> {
    if backing.path.len() > MAX_BACKING_NAME || backing.path.is_empty() {
        return Err(bad("the path of the base has no bytes, or more than 1023"));
    }
    Ok(())
}

/// The header of an overlay that is laid out as above.
pub(super) fn new_header(size: u64, l1_entries: u32, backing: Option<&Backing>) -> NewHeader<'_> {
    let cluster = GEOMETRY.cluster_size();
    NewHeader {
        cluster_bits: GEOMETRY.cluster_bits,
        size,
        l1_offset: L1 * cluster,
        l1_entries,
        reftable_offset: REFTABLE * cluster,
        reftable_clusters: 1,
        backing: backing.map(|backing| (backing.path.as_str(), backing.format.name())),
    }
}

/// Makes an overlay larger that [`create_overlay`] wrote and that nobody else changes meanwhile; what is
/// new reads as what is below it, and beyond that as zeroes. Takes the same time for any size, and is done or
/// not done, even if the host loses power. Returns the number of entries of the L1 table.
pub fn grow_overlay(file: &File, size_bytes: u64) -> Result<usize, DiskError> {
    let file_len = file_size(file)?;
    let header = Header::read(file, file_len)?;
    let l1_entries = GEOMETRY.l1_entries(size_bytes);
    if size_bytes < header.size || !size_bytes.is_multiple_of(SECTOR_SIZE) || size_bytes > MAX_OVERLAY_SIZE {
        return Err(bad(format!("an overlay of {} bytes cannot grow to {size_bytes}", header.size)));
    }
    // What its clusters hold beyond the present table is zero, which is what new entries are.
    let room = (header.l1_entries * 8).next_multiple_of(GEOMETRY.cluster_size());
    if header.geometry != GEOMETRY
        || header.l1_offset != L1 * GEOMETRY.cluster_size()
        || l1_entries * 8 > room
    {
        return Err(bad(format!("its table has no room to grow to {size_bytes} bytes")));
    }
    // Size, encryption (none) and table length are neighbours in one sector: one write changes them together.
    let mut fields = Vec::with_capacity(16);
    fields.extend(size_bytes.to_be_bytes());
    fields.extend(0u32.to_be_bytes());
    fields.extend((l1_entries as u32).to_be_bytes());
    let write = || {
        file.write_all_at(&fields, 24)?;
        // The length of the file stays, so its data are all that there is to wait for.
        file.sync_data()
    };
    write().map_err(|source| DiskError::Io { action: "growing an overlay".to_owned(), source })?;
    // At most 65536, see MAX_OVERLAY_SIZE.
    Ok(l1_entries as usize)
}

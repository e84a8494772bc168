//! The qcow2 header: what we accept of it, and how a fresh one is written.
//!
//! Everything here comes from a file that may be hostile. A header is accepted only if every field
//! that we rely on is in bounds; a feature that we do not know is refused, as the format demands.
//!
//! Offsets are those of the "qcow2 image format" document of QEMU, all fields big endian.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::{DiskError, SECTOR_SIZE};

/// `QFI\xfb`.
const MAGIC: u32 = 0x5146_49fb;

const V2_LEN: usize = 72;
const V3_LEN: usize = 104;

/// Smallest and largest clusters that QEMU knows: 512 bytes and 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// Images with smaller clusters than this are only read: their refcount tables outgrow a cluster.
const WRITABLE_CLUSTER_BITS: u32 = 16;

/// Extended L2 entries need clusters of at least 16 KiB.
const EXTENDED_CLUSTER_BITS: u32 = 14;

/// Bytes of L1 and refcount table that we hold in memory, as QEMU does.
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFTABLE_BYTES: u64 = 8 << 20;

/// Largest offset inside an image: bits 9 to 55 of a table entry.
pub(super) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;

const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// Refcounts of 16 bits: the default everywhere, and the only ones we update.
pub(super) const REFCOUNT_ORDER: u32 = 4;

/// How addresses are split. Copied around freely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    pub cluster_bits: u32,
    /// Entries of 16 bytes, that tell 32 subclusters apart.
    pub extended: bool,
    /// Version 3 or later: clusters may be marked as reading zeroes.
    pub zero_clusters: bool,
}

impl Geometry {
    pub fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Offset inside the cluster.
    pub fn in_cluster(self, offset: u64) -> u64 {
        offset & (self.cluster_size() - 1)
    }

    pub fn is_aligned(self, offset: u64) -> bool {
        self.in_cluster(offset) == 0
    }

    /// log2 of the unit in which data are mapped.
    pub fn sub_bits(self) -> u32 {
        if self.extended { self.cluster_bits - 5 } else { self.cluster_bits }
    }

    pub fn sub_size(self) -> u64 {
        1 << self.sub_bits()
    }

    /// Units of mapping in a cluster: 32 or 1.
    pub fn subs(self) -> u32 {
        if self.extended { 32 } else { 1 }
    }

    /// A bit for each unit.
    pub fn all_subs(self) -> u32 {
        if self.extended { u32::MAX } else { 1 }
    }

    /// Words of 8 bytes per L2 entry.
    pub fn entry_words(self) -> usize {
        if self.extended { 2 } else { 1 }
    }

    /// log2 of the entries of an L2 table.
    fn l2_bits(self) -> u32 {
        self.cluster_bits - if self.extended { 4 } else { 3 }
    }

    /// Clusters that one L2 table maps.
    pub fn l2_entries(self) -> u64 {
        1 << self.l2_bits()
    }

    /// Entries of the L1 table for a disk of `size` bytes.
    pub fn l1_entries(self, size: u64) -> u64 {
        size.div_ceil(1 << (self.cluster_bits + self.l2_bits()))
    }
}

/// What we keep of a header.
#[derive(Debug)]
pub(super) struct Header {
    pub geometry: Geometry,
    /// Virtual size in bytes.
    pub size: u64,
    /// Where the L1 table is, and how many entries of it the size needs.
    pub l1_offset: u64,
    pub l1_entries: u64,
    /// Entries that the table has; at least those.
    pub reftable_offset: u64,
    pub reftable_entries: u64,
    /// The image lies over another one.
    pub has_backing: bool,
    /// Why the image cannot be written, although it can be read.
    pub unwritable: Option<&'static str>,
    /// Bits that a writer which does not know them must clear.
    pub autoclear: u64,
}

impl Header {
    pub fn read(file: &File, file_len: u64) -> Result<Self, DiskError> {
        let mut raw = [0; V3_LEN + 8];
        let available = usize::try_from(file_len).unwrap_or(usize::MAX).min(raw.len());
        let (present, _) = raw.split_at_mut(available);
        file.read_exact_at(present, 0)
            .map_err(|source| DiskError::transfer("read", V3_LEN as u64, 0, source))?;
        if available < V2_LEN {
            return Err(bad("it is shorter than a header"));
        }
        Self::parse(&Fields(raw), file_len)
    }

    fn parse(raw: &Fields, file_len: u64) -> Result<Self, DiskError> {
        if raw.u32(0) != MAGIC {
            return Err(bad("it does not start with a qcow2 header"));
        }
        let version = raw.u32(4);
        let (incompatible, autoclear, refcount_order, header_len) = match version {
            2 => (0, 0, REFCOUNT_ORDER, V2_LEN as u32),
            3 => (raw.u64(72), raw.u64(88), raw.u32(96), raw.u32(100)),
            _ => return Err(bad(format!("its version {version} is not 2 or 3"))),
        };
        if incompatible & INCOMPATIBLE_DATA_FILE != 0 {
            return Err(bad("it keeps its data in another file, which is not supported"));
        }
        if incompatible & INCOMPATIBLE_COMPRESSION != 0 {
            return Err(bad("its compression is not zlib; convert it with `qemu-img convert -O qcow2`"));
        }
        if incompatible & (INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT) != 0 {
            return Err(bad("it is marked as damaged; repair it with `qemu-img check -r all`"));
        }
        let unknown = incompatible & !INCOMPATIBLE_EXTENDED_L2;
        if unknown != 0 {
            return Err(bad(format!("it needs unknown features ({unknown:#x})")));
        }
        if raw.u32(32) != 0 {
            return Err(bad("it is encrypted, which is not supported"));
        }

        let cluster_bits = raw.u32(20);
        let extended = incompatible & INCOMPATIBLE_EXTENDED_L2 != 0;
        if !CLUSTER_BITS.contains(&cluster_bits) || (extended && cluster_bits < EXTENDED_CLUSTER_BITS) {
            return Err(bad(format!("its cluster size of 2^{cluster_bits} is not possible")));
        }
        if refcount_order > 6 || u64::from(header_len) > 1 << cluster_bits {
            return Err(bad("its header is damaged"));
        }
        let geometry = Geometry { cluster_bits, extended, zero_clusters: version >= 3 };

        let size = raw.u64(24);
        if !size.is_multiple_of(SECTOR_SIZE) {
            return Err(bad(format!("its size of {size} bytes is not a multiple of 512")));
        }
        let l1_entries = geometry.l1_entries(size);
        let l1_offset = raw.u64(40);
        if l1_entries > u64::from(raw.u32(36)) {
            return Err(bad("its L1 table is too small for its size"));
        }
        check_table("L1 table", geometry, l1_offset, l1_entries * 8, MAX_L1_BYTES, file_len)?;

        let reftable_offset = raw.u64(48);
        let reftable_bytes = u64::from(raw.u32(56)) << cluster_bits;

        let unwritable = if version < 3 {
            Some("it has format version 2; upgrade it with `qemu-img amend -o compat=1.1`")
        } else if raw.u32(60) != 0 {
            Some("it has internal snapshots")
        } else if refcount_order != REFCOUNT_ORDER {
            Some("its refcounts do not have 16 bits")
        } else if cluster_bits < WRITABLE_CLUSTER_BITS {
            Some("its clusters are smaller than 64 KiB")
        } else {
            None
        };
        // Readers have no use for refcounts.
        if unwritable.is_none() {
            check_table(
                "refcount table",
                geometry,
                reftable_offset,
                reftable_bytes,
                MAX_REFTABLE_BYTES,
                file_len,
            )?;
        }

        Ok(Self {
            geometry,
            size,
            l1_offset,
            l1_entries,
            reftable_offset,
            reftable_entries: reftable_bytes / 8,
            has_backing: raw.u64(8) != 0,
            unwritable,
            autoclear,
        })
    }
}

/// Checks that a table starts at a cluster and lies inside the file. This also bounds the memory
/// that loading it takes.
fn check_table(
    what: &str,
    geometry: Geometry,
    offset: u64,
    len: u64,
    max: u64,
    file_len: u64,
) -> Result<(), DiskError> {
    if len == 0 {
        return Ok(());
    }
    let inside = offset.checked_add(len).is_some_and(|end| end <= file_len);
    if offset == 0 || !geometry.is_aligned(offset) || len > max || !inside {
        return Err(bad(format!("its {what} does not lie inside the file")));
    }
    Ok(())
}

/// Zeroes the bits of features that a writer has to understand.
pub(super) fn clear_autoclear(file: &File) -> std::io::Result<()> {
    file.write_all_at(&[0; 8], 88)
}

/// A fresh header with extended L2 entries, all of cluster 0.
pub(super) struct NewHeader<'a> {
    pub cluster_bits: u32,
    pub size: u64,
    pub l1_offset: u64,
    pub l1_entries: u32,
    pub reftable_offset: u64,
    pub reftable_clusters: u32,
    /// Name and format of the backing file.
    pub backing: Option<(&'a str, &'a str)>,
}

impl NewHeader<'_> {
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(V3_LEN + 64);
        let backing_format = self.backing.map_or("", |(_, format)| format);
        let backing_name = self.backing.map_or("", |(name, _)| name);
        let extension_len =
            if self.backing.is_some() { 8 + backing_format.len().next_multiple_of(8) } else { 0 };
        let name_offset = if self.backing.is_some() { V3_LEN + 8 + extension_len + 8 } else { 0 };

        out.extend(MAGIC.to_be_bytes());
        out.extend(3u32.to_be_bytes());
        out.extend((name_offset as u64).to_be_bytes());
        out.extend((backing_name.len() as u32).to_be_bytes());
        out.extend(self.cluster_bits.to_be_bytes());
        out.extend(self.size.to_be_bytes());
        out.extend(0u32.to_be_bytes()); // crypt_method
        out.extend(self.l1_entries.to_be_bytes());
        out.extend(self.l1_offset.to_be_bytes());
        out.extend(self.reftable_offset.to_be_bytes());
        out.extend(self.reftable_clusters.to_be_bytes());
        out.extend([0; 4 + 8]); // snapshots
        out.extend(INCOMPATIBLE_EXTENDED_L2.to_be_bytes());
        out.extend([0; 8 + 8]); // compatible, autoclear
        out.extend(REFCOUNT_ORDER.to_be_bytes());
        out.extend((V3_LEN as u32 + 8).to_be_bytes());
        out.extend([0; 8]); // compression type zlib, padding
        if self.backing.is_some() {
            out.extend(EXTENSION_BACKING_FORMAT.to_be_bytes());
            out.extend((backing_format.len() as u32).to_be_bytes());
            out.extend(backing_format.bytes());
            out.resize(out.len().next_multiple_of(8), 0);
        }
        out.extend([0; 8]); // end of extensions
        out.extend(backing_name.bytes());
        out
    }
}

/// The longest name that a header may hold.
pub(super) const MAX_BACKING_NAME: usize = 1023;

pub(super) fn bad(detail: impl Into<String>) -> DiskError {
    DiskError::Format { format: "qcow2", detail: detail.into() }
}

/// The raw header. Offsets are constants of this module.
struct Fields([u8; V3_LEN + 8]);

impl Fields {
    fn bytes<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.0.get(offset..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_be_bytes(self.bytes(offset))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_be_bytes(self.bytes(offset))
    }
}

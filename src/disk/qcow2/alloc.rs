//! Finds room for new clusters and keeps the refcounts.
//!
//! New clusters always come from the end of the file and are never used twice while the image is
//! open. So a fresh cluster reads as zeroes, and I/O that is still on its way to a cluster can
//! never hit somebody else's data. What a guest discards keeps its place in the image and gives its
//! blocks back to the file system.
//!
//! Refcounts are written ahead, for some clusters at once, before the first of them is used. A
//! crash therefore leaks a few clusters of address space; no cluster is ever in use with a refcount
//! of zero. Closing the image takes back what was not used.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::header::{Geometry, OFFSET_MASK, REFCOUNT_ORDER};

/// Clusters whose refcounts are written at once: 8 MiB of a fresh overlay.
const CHUNK: u64 = 64;

/// Chunks that may turn out to be in use before the image counts as damaged. After a crash there
/// are one or two.
const MAX_SKIPPED: u32 = 64;

/// Bytes of a refcount.
const REFCOUNT_LEN: u64 = 1 << (REFCOUNT_ORDER - 3);

pub(super) struct Allocator {
    geometry: Geometry,
    reftable_offset: u64,
    /// Offsets of refcount blocks; zero where there is none.
    reftable: Vec<u64>,
    /// Clusters `next..end` have a refcount of one and no user.
    next: u64,
    end: u64,
    /// Further clusters with a refcount of one and no user, as offsets.
    spare: Vec<u64>,
}

impl Allocator {
    /// Allocates behind the first `file_len` bytes.
    pub fn new(geometry: Geometry, reftable_offset: u64, reftable: Vec<u64>, file_len: u64) -> Self {
        let end = file_len.div_ceil(geometry.cluster_size());
        Self { geometry, reftable_offset, reftable, next: end, end, spare: Vec::new() }
    }

    /// Offset of a cluster that nothing refers to and that reads as zeroes.
    pub fn allocate(&mut self, file: &File) -> io::Result<u64> {
        if let Some(offset) = self.spare.pop() {
            return Ok(offset);
        }
        if self.next == self.end {
            self.reserve(file)?;
        }
        let offset = self.next << self.geometry.cluster_bits;
        self.next += 1;
        Ok(offset)
    }

    /// Takes back a cluster that was not written to.
    pub fn give_back(&mut self, offset: u64) {
        self.spare.push(offset);
    }

    /// Clears the refcounts of what was not used.
    pub fn release(&mut self, file: &File) -> io::Result<()> {
        for offset in std::mem::take(&mut self.spare) {
            self.write_refcounts(file, offset >> self.geometry.cluster_bits, 1, 0)?;
        }
        let unused = self.end - self.next;
        if unused > 0 {
            self.write_refcounts(file, self.next, unused, 0)?;
            self.end = self.next;
        }
        Ok(())
    }

    /// Clusters whose refcounts share a block.
    fn block_entries(&self) -> u64 {
        self.geometry.cluster_size() / REFCOUNT_LEN
    }

    fn reserve(&mut self, file: &File) -> io::Result<()> {
        for _ in 0..MAX_SKIPPED {
            let first = self.end;
            let block = self.block_of(first)?;
            if block == 0 {
                self.add_block(file, first)?;
                continue;
            }
            let count = CHUNK.min(self.block_entries() - first % self.block_entries());
            let mut refcounts = [0; (CHUNK * REFCOUNT_LEN) as usize];
            let (refcounts, _) = refcounts.split_at_mut((count * REFCOUNT_LEN) as usize);
            read_zero_filled(file, refcounts, self.refcount_place(block, first))?;
            let used = refcounts.chunks_exact(REFCOUNT_LEN as usize).rposition(|count| count != [0, 0]);
            if let Some(last) = used {
                // Left behind by a crash.
                self.end = first + last as u64 + 1;
                self.next = self.end;
                continue;
            }
            self.write_refcounts(file, first, count, 1)?;
            self.next = first;
            self.end = first + count;
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the refcounts of the image are damaged"))
    }

    /// Offset of the refcount block for a cluster, or 0.
    fn block_of(&self, cluster: u64) -> io::Result<u64> {
        let block = usize::try_from(cluster / self.block_entries()).ok().and_then(|i| self.reftable.get(i));
        let in_reach = cluster + CHUNK < OFFSET_MASK >> self.geometry.cluster_bits;
        match block {
            Some(&block) if in_reach => Ok(block),
            _ => Err(io::Error::new(io::ErrorKind::StorageFull, "the image cannot grow any more")),
        }
    }

    fn refcount_place(&self, block: u64, cluster: u64) -> u64 {
        block + cluster % self.block_entries() * REFCOUNT_LEN
    }

    /// Sets the refcounts of `count` clusters, all in one existing block.
    fn write_refcounts(&self, file: &File, first: u64, count: u64, value: u16) -> io::Result<()> {
        let block = self.block_of(first)?;
        let bytes: Vec<u8> = (0..count).flat_map(|_| value.to_be_bytes()).collect();
        file.write_all_at(&bytes, self.refcount_place(block, first))
    }

    /// Makes `cluster`, at the end of the file, the refcount block for itself and its followers.
    fn add_block(&mut self, file: &File, cluster: u64) -> io::Result<()> {
        let offset = cluster << self.geometry.cluster_bits;
        let index = cluster / self.block_entries();
        extend_to(file, offset + self.geometry.cluster_size())?;
        file.write_all_at(&1u16.to_be_bytes(), self.refcount_place(offset, cluster))?;
        // The block counts itself, and has to before it is referred to. Once in many GiB.
        file.sync_data()?;
        file.write_all_at(&offset.to_be_bytes(), self.reftable_offset + index * 8)?;
        // `block_of` has looked at this entry.
        if let Some(entry) = usize::try_from(index).ok().and_then(|index| self.reftable.get_mut(index)) {
            *entry = offset;
        }
        self.end = cluster + 1;
        self.next = self.end;
        Ok(())
    }
}

/// Makes the file reach to `end`, which lies in a cluster that nobody else uses. Unlike
/// `set_len`, this never cuts off what another thread has just written behind it.
pub(super) fn extend_to(file: &File, end: u64) -> io::Result<()> {
    file.write_all_at(&[0], end - 1)
}

/// Fills `buf` from `offset` on; what lies past the end of the file reads as zeroes.
pub(super) fn read_zero_filled(file: &File, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match file.read_at(buf, offset) {
            Ok(0) => {
                buf.fill(0);
                break;
            }
            Ok(done) => {
                buf = buf.get_mut(done..).unwrap_or_default();
                offset += done as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

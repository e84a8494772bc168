//! Where the bytes of an inode are: extent tree, block map, or in the inode itself.

use super::super::bytes::Bytes;
use super::super::contents::{Contents, Runs};
use super::{Ext, FsError, INODE_EXTENTS, INODE_INLINE_DATA, Inode};

const EXTENT_MAGIC: u16 = 0xf30a;
const MAX_DEPTH: u16 = 5;
/// Longer extents are allocated but not written: they read as zero.
const MAX_WRITTEN: u16 = 32768;

impl Ext {
    /// Finds the runs of any kind of inode.
    pub(super) fn map(&self, inode: &Inode) -> Result<Contents, FsError> {
        if inode.flags & INODE_INLINE_DATA != 0 {
            let mut bytes = inode.block.to_vec();
            bytes.extend_from_slice(&inode.inline_tail);
            let len = usize::try_from(inode.size).unwrap_or(usize::MAX);
            if len > bytes.len() {
                return Err(FsError::Damaged("inline data is incomplete"));
            }
            bytes.truncate(len);
            return Ok(Contents::inline(bytes));
        }
        let mut runs = Runs::new(&self.source, inode.size);
        if inode.flags & INODE_EXTENTS != 0 {
            self.walk_extents(&inode.block, None, &mut runs)?;
        } else {
            self.walk_block_map(inode, &mut runs)?;
        }
        Ok(runs.finish())
    }

    /// Adds the extents of one node (header and entries of 12 bytes) and of all below it.
    fn walk_extents(&self, node: &[u8], expected_depth: Option<u16>, runs: &mut Runs) -> Result<(), FsError> {
        let header = Bytes(node);
        let (entries, depth) = (header.le16(2), header.le16(6));
        if header.le16(0) != EXTENT_MAGIC {
            return Err(FsError::Damaged("an extent node has no magic number"));
        }
        // A child is one level lower than its parent: recursion ends.
        if depth > MAX_DEPTH || expected_depth.is_some_and(|expected| expected != depth) {
            return Err(FsError::Damaged("an extent tree has an impossible depth"));
        }
        for index in 1..=usize::from(entries) {
            let Some(entry) = header.slice(12 * index, 12).map(Bytes) else {
                return Err(FsError::Damaged("an extent node is too short for its entries"));
            };
            if let Some(below) = depth.checked_sub(1) {
                let block = u64::from(entry.le16(8)) << 32 | u64::from(entry.le32(4));
                let child = self.read_block(block, 0, self.block_size)?;
                self.walk_extents(&child, Some(below), runs)?;
                continue;
            }
            let length = entry.le16(4);
            let block = u64::from(entry.le16(6)) << 32 | u64::from(entry.le32(8));
            if length != 0 && length <= MAX_WRITTEN {
                self.add_run(u64::from(entry.le32(0)), u64::from(length), block, runs)?;
            }
        }
        Ok(())
    }

    /// Adds `count` blocks of the file, from `at` on, that begin at `block`.
    fn add_run(&self, at: u64, count: u64, block: u64, runs: &mut Runs) -> Result<(), FsError> {
        let size = u64::from(self.block_size);
        let end = block.saturating_add(count);
        // Both ends, before anything is multiplied.
        self.block_offset(end.saturating_sub(1))?;
        let mut next = block;
        // `at` and `count` come from fields of at most 32 bits.
        let mut push = |first: u64, last: u64, place: u64| {
            runs.push((at + first - block) * size, (last - first) * size, place)
        };
        for (&replaced, replacement) in self.overlay.range(block..end) {
            if replacement.escaped {
                return Err(FsError::Unsupported("a file like this in its journal"));
            }
            push(next, replaced, self.block_offset(next)?)?;
            push(replaced, replaced + 1, replacement.place)?;
            next = replaced + 1;
        }
        if next < end {
            push(next, end, self.block_offset(next)?)?;
        }
        Ok(())
    }

    /// Twelve direct blocks, then blocks of block numbers in one, two and three steps.
    fn walk_block_map(&self, inode: &Inode, runs: &mut Runs) -> Result<(), FsError> {
        let root = Bytes(&inode.block);
        let blocks = inode.size.div_ceil(u64::from(self.block_size));
        let mut at = 0;
        for index in 0..15usize {
            let block = root.le32(4 * index);
            let steps = u32::try_from(index).unwrap_or(0).saturating_sub(11);
            self.walk_indirect(block, steps, &mut at, blocks, runs)?;
        }
        if at < blocks {
            return Err(FsError::Damaged("a file is larger than its block map"));
        }
        Ok(())
    }

    fn walk_indirect(
        &self,
        block: u32,
        steps: u32,
        at: &mut u64,
        blocks: u64,
        runs: &mut Runs,
    ) -> Result<(), FsError> {
        if *at >= blocks {
            return Ok(());
        }
        let per_block = u64::from(self.block_size / 4);
        if block == 0 {
            *at = at.saturating_add(per_block.saturating_pow(steps));
            return Ok(());
        }
        let Some(below) = steps.checked_sub(1) else {
            self.add_run(*at, 1, u64::from(block), runs)?;
            *at += 1;
            return Ok(());
        };
        let table = self.read_block(u64::from(block), 0, self.block_size)?;
        for entry in table.as_chunks::<4>().0 {
            self.walk_indirect(u32::from_le_bytes(*entry), below, at, blocks, runs)?;
        }
        Ok(())
    }
}

/// The part of inline data that lies in the inode's extended attributes, as `system.data`.
pub(super) fn inline_tail(inode: &[u8]) -> Vec<u8> {
    const ATTRIBUTE_MAGIC: u32 = 0xea02_0000;
    const NAME_INDEX_SYSTEM: u8 = 7;
    let fields = Bytes(inode);
    let start = 128 + usize::from(fields.le16(0x80));
    if fields.le32(start) != ATTRIBUTE_MAGIC {
        return Vec::new();
    }
    // Entries of 16 bytes and a name follow the magic; offsets of values count from there.
    let base = start + 4;
    let mut at = base;
    while let Some(entry) = fields.slice(at, 16).map(Bytes) {
        let name_length = usize::from(entry.u8(0));
        if entry.le32(0) == 0 {
            break;
        }
        let name = fields.slice(at + 16, name_length);
        if entry.u8(1) == NAME_INDEX_SYSTEM && name == Some(b"data") {
            let offset = base + usize::from(entry.le16(2));
            let size = usize::try_from(entry.le32(8)).unwrap_or(usize::MAX);
            return fields.slice(offset, size).unwrap_or_default().to_vec();
        }
        at += (16 + name_length).next_multiple_of(4);
    }
    Vec::new()
}

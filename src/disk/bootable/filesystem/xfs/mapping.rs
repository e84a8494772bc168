//! Extents of a data fork: a list in the inode, or a B+ tree below it.
//!
//! A record is 128 bits: unwritten (1), offset in the file (54), block (52), count (21).

use super::super::bytes::Bytes;
use super::{ForkFormat, FsError, Inode, MAX_SYMLINK, Xfs};

const RECORD: usize = 16;
/// Levels of a tree; eight hold more than any disk.
const MAX_LEVEL: u16 = 8;
const BMAP_MAGIC_V4: u32 = 0x424d_4150;
const BMAP_MAGIC_V5: u32 = 0x424d_4133;
const SYMLINK_MAGIC: u32 = 0x5853_4c4d;
const SYMLINK_HEADER: usize = 56;

/// Takes offset in the file, length, and place on the partition, in bytes.
type Found<'f> = dyn FnMut(u64, u64, u64) -> Result<(), FsError> + 'f;

impl Xfs {
    /// Calls `found` for every written extent, in the order of the tree.
    pub(super) fn map(
        &self,
        inode: &Inode,
        mut found: impl FnMut(u64, u64, u64) -> Result<(), FsError>,
    ) -> Result<(), FsError> {
        let fork = Bytes(&inode.fork);
        match inode.format {
            ForkFormat::Local => Err(FsError::Damaged("a file lies inside its inode")),
            ForkFormat::Extents => {
                let len = usize::try_from(inode.extents)
                    .ok()
                    .and_then(|count| count.checked_mul(RECORD))
                    .and_then(|len| fork.slice(0, len))
                    .ok_or(FsError::Damaged("an inode has too many extents"))?;
                self.records(len, &mut found)
            }
            ForkFormat::Btree => {
                let (level, count) = (fork.be16(0), usize::from(fork.be16(2)));
                if level == 0 || level > MAX_LEVEL {
                    return Err(FsError::Damaged("an extent tree has an impossible depth"));
                }
                let most = inode.fork.len().saturating_sub(4) / 16;
                self.children(fork, 4 + most * 8, count, most, level - 1, &mut found)
            }
        }
    }

    /// Visits the children whose numbers begin at `pointers` of a node.
    fn children(
        &self,
        node: Bytes<'_>,
        pointers: usize,
        count: usize,
        most: usize,
        level: u16,
        found: &mut Found<'_>,
    ) -> Result<(), FsError> {
        if count > most {
            return Err(FsError::Damaged("an extent node is too short for its entries"));
        }
        for index in 0..count {
            let child = node.be64(pointers + 8 * index);
            self.walk(child, level, found)?;
        }
        Ok(())
    }

    /// Visits one block of the tree. A child is one level lower than its parent: recursion ends.
    fn walk(&self, block: u64, level: u16, found: &mut Found<'_>) -> Result<(), FsError> {
        let raw = self.source.metadata_vec(self.block_size as usize, self.block_offset(block)?)?;
        let node = Bytes(&raw);
        let (magic, header) = if self.is_v5 { (BMAP_MAGIC_V5, 72) } else { (BMAP_MAGIC_V4, 24) };
        if node.be32(0) != magic || node.be16(4) != level {
            return Err(FsError::Damaged("an extent tree has an impossible node"));
        }
        let count = usize::from(node.be16(6));
        match level.checked_sub(1) {
            Some(below) => {
                let most = (raw.len() - header) / 16;
                self.children(node, header + most * 8, count, most, below, found)
            }
            None => {
                let records = node
                    .slice(header, count * RECORD)
                    .ok_or(FsError::Damaged("an extent node is too short for its entries"))?;
                self.records(records, found)
            }
        }
    }

    fn records(&self, records: &[u8], found: &mut Found<'_>) -> Result<(), FsError> {
        for record in records.as_chunks::<RECORD>().0 {
            let record = u128::from_be_bytes(*record);
            // Each field is masked to less than 64 bits.
            let count = (record & 0x1f_ffff) as u64;
            let block = ((record >> 21) & ((1 << 52) - 1)) as u64;
            let offset = ((record >> 73) & ((1 << 54) - 1)) as u64;
            let is_unwritten = record >> 127 != 0;
            if is_unwritten || count == 0 {
                continue;
            }
            let size = u64::from(self.block_size);
            let at = offset.checked_mul(size).ok_or(FsError::Damaged("an extent lies beyond any file"))?;
            // All blocks of an extent lie in one group.
            let place = self.block_offset(block)?;
            self.block_offset(block.saturating_add(count - 1))?;
            found(at, count * size, place)?;
        }
        Ok(())
    }

    /// A symlink too long for its inode. In version 5 each extent has a header.
    pub(super) fn remote_symlink(&self, symlink: &Inode) -> Result<Vec<u8>, FsError> {
        let size = symlink.size as usize;
        let mut target = Vec::new();
        self.map(symlink, |_, len, place| {
            let room = len.min(MAX_SYMLINK + SYMLINK_HEADER as u64);
            let raw = self.source.metadata_vec(room as usize, place)?;
            let mut piece = raw.as_slice();
            if self.is_v5 {
                let header = Bytes(&raw);
                if header.be32(0) != SYMLINK_MAGIC {
                    return Err(FsError::Damaged("a symlink has no magic number"));
                }
                piece = header
                    .slice(SYMLINK_HEADER, header.be32(8) as usize)
                    .ok_or(FsError::Damaged("a symlink is cut short"))?;
            }
            let wanted = size.saturating_sub(target.len()).min(piece.len());
            target.extend_from_slice(piece.get(..wanted).unwrap_or_default());
            Ok(())
        })?;
        if target.len() != size {
            return Err(FsError::Damaged("a symlink is cut short"));
        }
        Ok(target)
    }
}

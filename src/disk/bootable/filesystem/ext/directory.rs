//! Directories: linear entries of inode (4), length (2), name length (1), type (1), name.

use super::super::bytes::Bytes;
use super::{Ext, FsError, INODE_ENCRYPTED, INODE_INLINE_DATA, Inode, MAX_DIRECTORY};

const ENTRY_HEADER: usize = 8;

impl Ext {
    /// Calls `each` with name and inode of every entry until it answers `false`.
    pub(super) fn for_each_entry(
        &self,
        directory: &Inode,
        mut each: impl FnMut(&[u8], u32) -> bool,
    ) -> Result<(), FsError> {
        if directory.flags & INODE_ENCRYPTED != 0 {
            return Err(FsError::Unsupported("encryption of directories"));
        }
        if directory.size > MAX_DIRECTORY {
            return Err(FsError::Damaged("a directory is far too large"));
        }
        let contents = self.map(directory)?;
        let len = contents.len();
        if directory.flags & INODE_INLINE_DATA != 0 {
            // The first four bytes name the parent; entries follow in two separate stretches.
            let bytes = contents.read_all(MAX_DIRECTORY)?;
            let (head, tail) = bytes.split_at(bytes.len().min(60));
            let head = head.get(4..).unwrap_or_default();
            let _ = entries(head, &mut each)? && entries(tail, &mut each)?;
            return Ok(());
        }
        let mut block = vec![0; self.block_size as usize];
        let mut at = 0;
        while at < len {
            self.source.spend(u64::from(self.block_size))?;
            let part = (len - at).min(u64::from(self.block_size)) as usize;
            let Some(block) = block.get_mut(..part) else {
                break;
            };
            contents.read_exact_at(block, at)?;
            if !entries(block, &mut each)? {
                return Ok(());
            }
            at += u64::from(self.block_size);
        }
        Ok(())
    }
}

/// Walks the entries of one block. `Ok(false)`: the caller has seen enough.
fn entries(block: &[u8], each: &mut impl FnMut(&[u8], u32) -> bool) -> Result<bool, FsError> {
    let mut rest = block;
    while rest.len() >= ENTRY_HEADER {
        let fields = Bytes(rest);
        let inode = fields.le32(0);
        // A block of 64 KiB that one entry fills has a length that does not fit in 16 bits.
        let length = match fields.le16(4) {
            0 | 0xffff if rest.len() == 0x1_0000 => rest.len(),
            length => usize::from(length & !3),
        };
        let name_length = usize::from(fields.u8(6));
        if length < ENTRY_HEADER || length > rest.len() {
            return Err(FsError::Damaged("a directory entry has an impossible length"));
        }
        if inode != 0 && name_length != 0 {
            let name = fields
                .slice(ENTRY_HEADER, name_length)
                .filter(|_| ENTRY_HEADER + name_length <= length)
                .ok_or(FsError::Damaged("a name is longer than its entry"))?;
            if !each(name, inode) {
                return Ok(false);
            }
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(true)
}

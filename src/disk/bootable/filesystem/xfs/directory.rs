//! Directories: entries inside the inode, or in blocks of their own.

use super::super::bytes::Bytes;
use super::{ForkFormat, Format, FsError, Inode, MAX_DIRECTORY, Xfs};

const BLOCK_V4: u32 = 0x5844_3242;
const BLOCK_V5: u32 = 0x5844_4233;
const DATA_V4: u32 = 0x5844_3244;
const DATA_V5: u32 = 0x5844_4433;
/// Marks unused room between entries.
const FREE: u16 = 0xffff;

impl Xfs {
    /// Calls `each` with name and inode of every entry until it answers `false`.
    pub(super) fn for_each_entry(
        &self,
        directory: &Inode,
        mut each: impl FnMut(&[u8], u64) -> bool,
    ) -> Result<(), FsError> {
        if directory.format == ForkFormat::Local {
            return self.short_form(directory, &mut each);
        }
        if directory.size > MAX_DIRECTORY {
            return Err(FsError::Damaged("a directory is far too large"));
        }
        // The size ends where the blocks with entries end; hashes and free space come far after.
        let contents = self.contents(directory)?;
        let mut block = vec![0; self.directory_block_size as usize];
        let mut at = 0;
        while at + block.len() as u64 <= contents.len() {
            self.source.spend(block.len() as u64)?;
            contents.read_exact_at(&mut block, at)?;
            if !self.block(&block, &mut each)? {
                return Ok(());
            }
            at += block.len() as u64;
        }
        Ok(())
    }

    /// Count (1), count of 8-byte numbers (1), parent (4 or 8), then entries.
    fn short_form(
        &self,
        directory: &Inode,
        each: &mut impl FnMut(&[u8], u64) -> bool,
    ) -> Result<(), FsError> {
        let fork = Bytes(&directory.fork);
        let cut_short = FsError::Damaged("a directory is cut short");
        let is_wide = fork.u8(1) != 0;
        let number_len = if is_wide { 8 } else { 4 };
        let mut at = 2 + number_len;
        for _ in 0..fork.u8(0) {
            let name_len = usize::from(fork.u8(at));
            let Some(name) = fork.slice(at + 3, name_len) else {
                return Err(cut_short);
            };
            at += 3 + name_len + usize::from(self.has_ftype);
            if fork.slice(at, number_len).is_none() {
                return Err(cut_short);
            }
            let inode = if is_wide { fork.be64(at) } else { u64::from(fork.be32(at)) };
            at += number_len;
            if !each(name, inode) {
                break;
            }
        }
        Ok(())
    }

    /// Entries of one block. `Ok(false)`: the caller has seen enough.
    fn block(&self, raw: &[u8], each: &mut impl FnMut(&[u8], u64) -> bool) -> Result<bool, FsError> {
        let fields = Bytes(raw);
        let damaged = FsError::Damaged("a directory block makes no sense");
        let end = match fields.be32(0) {
            DATA_V4 | DATA_V5 => raw.len(),
            // A directory of one block keeps its hashes at the end of it.
            BLOCK_V4 | BLOCK_V5 => {
                let count = fields.be32(raw.len().saturating_sub(8)) as usize;
                let hashes = count.checked_mul(8).and_then(|len| len.checked_add(8));
                match hashes.and_then(|len| raw.len().checked_sub(len)) {
                    Some(end) => end,
                    None => return Err(damaged),
                }
            }
            // A hole.
            0 => return Ok(true),
            _ => return Err(damaged),
        };
        let mut at = if self.is_v5 { 64 } else { 16 };
        while at < end {
            if fields.be16(at) == FREE {
                let length = usize::from(fields.be16(at + 2));
                if length < 8 {
                    return Err(damaged);
                }
                at += length;
                continue;
            }
            let name_len = usize::from(fields.u8(at + 8));
            let length = (11 + name_len + usize::from(self.has_ftype)).next_multiple_of(8);
            let Some(name) = fields.slice(at + 9, name_len).filter(|_| at + length <= end) else {
                return Err(damaged);
            };
            if !each(name, fields.be64(at)) {
                return Ok(false);
            }
            at += length;
        }
        Ok(true)
    }
}

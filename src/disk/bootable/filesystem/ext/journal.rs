//! The journal of a file system that was not unmounted (kernel documentation, "Journal (jbd2)").
//!
//! ```text
//! superblock │ descriptor · block · block │ commit │ revocation · descriptor · block │ commit │ old …
//!              └ tags: where each belongs            └ blocks not to be replayed
//! ```
//!
//! Nothing is written back: the newest committed copy of every block is remembered, and reads are
//! led there. All of it is big endian. Fast commits are not looked at.

use std::collections::BTreeMap;

use super::super::bytes::Bytes;
use super::super::contents::Contents;
use super::{Ext, FsError};

const MAGIC: u32 = 0xc03b_3998;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const REVOCATION: u32 = 5;

const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
/// revoke, 64bit, async commit, both checksums, fast commit.
const INCOMPAT_KNOWN: u32 = 0x3f;

const TAG_ESCAPED: u32 = 0x1;
const TAG_SAME_UUID: u32 = 0x2;
const TAG_LAST: u32 = 0x8;

/// Four times what `mke2fs` makes at most.
const MAX_BLOCKS: u32 = 1 << 20;

/// Where the newest copy of a block is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Replacement {
    /// Place on the partition.
    pub(super) place: u64,
    /// The first four bytes were the journal's magic number and are zero in the copy.
    pub(super) escaped: bool,
    sequence: u32,
}

/// Replacements of blocks, by number.
pub(super) type Overlay = BTreeMap<u64, Replacement>;

/// Puts back what the journal had to hide.
pub(super) fn unescape(block: &mut [u8]) {
    for (byte, magic) in block.iter_mut().zip(MAGIC.to_be_bytes()) {
        *byte = magic;
    }
}

impl Ext {
    /// Reads the journal in inode `number`.
    pub(super) fn load_journal(&self, number: u32) -> Result<Overlay, FsError> {
        let journal = self.map(&self.inode(number)?)?;
        let Some(mut log) = Log::open(self, &journal)? else {
            return Ok(Overlay::new());
        };
        log.scan()?;
        let revoked = log.revoked;
        log.committed.retain(|block, replacement| {
            let not_before = revoked.get(block).copied();
            not_before.is_none_or(|sequence| is_after(replacement.sequence, sequence))
        });
        Ok(log.committed)
    }
}

/// Sequence numbers wrap around.
fn is_after(left: u32, right: u32) -> bool {
    left != right && left.wrapping_sub(right) < 1 << 31
}

struct Log<'a> {
    fs: &'a Ext,
    journal: &'a Contents,
    incompat: u32,
    /// The ring of blocks, and the place in it.
    first: u32,
    end: u32,
    at: u32,
    /// Blocks that may still be looked at before the ring closes.
    left: u32,
    sequence: u32,
    pending: Vec<(u64, Replacement)>,
    pending_revoked: Vec<u64>,
    committed: Overlay,
    revoked: BTreeMap<u64, u32>,
}

impl<'a> Log<'a> {
    /// `None` when there is nothing to replay.
    fn open(fs: &'a Ext, journal: &'a Contents) -> Result<Option<Self>, FsError> {
        let mut raw = vec![0; 1024];
        fs.source.spend(1024)?;
        journal.read_exact_at(&mut raw, 0)?;
        let fields = Bytes(&raw);
        let damaged = Err(FsError::Damaged("the journal makes no sense"));
        if fields.be32(0) != MAGIC || !matches!(fields.be32(4), 3 | 4) {
            return damaged;
        }
        let start = fields.be32(28);
        if start == 0 {
            return Ok(None);
        }
        let incompat = if fields.be32(4) == 4 { fields.be32(40) } else { 0 };
        if incompat & !INCOMPAT_KNOWN != 0 {
            return Err(FsError::Unsupported("a feature of its journal"));
        }
        let fast = match fields.be32(84) {
            _ if incompat & INCOMPAT_FAST_COMMIT == 0 => 0,
            0 => 256,
            blocks => blocks,
        };
        let (first, blocks) = (fields.be32(20), fields.be32(16));
        let end = blocks.saturating_sub(fast);
        let is_sound = fields.be32(12) == fs.block_size
            && blocks <= MAX_BLOCKS
            && u64::from(blocks) * u64::from(fs.block_size) <= journal.len()
            && first != 0
            && (first..end).contains(&start);
        if !is_sound {
            return damaged;
        }
        Ok(Some(Self {
            fs,
            journal,
            incompat,
            first,
            end,
            at: start,
            left: end - first,
            sequence: fields.be32(24),
            pending: Vec::new(),
            pending_revoked: Vec::new(),
            committed: Overlay::new(),
            revoked: BTreeMap::new(),
        }))
    }

    /// Goes from transaction to transaction. Whatever does not continue the sequence is the end.
    fn scan(&mut self) -> Result<(), FsError> {
        let mut block = vec![0; self.fs.block_size as usize];
        while let Some(number) = self.step() {
            self.fs.source.spend(u64::from(self.fs.block_size))?;
            let offset = u64::from(number) * u64::from(self.fs.block_size);
            self.journal.read_exact_at(&mut block, offset)?;
            let fields = Bytes(&block);
            if fields.be32(0) != MAGIC || fields.be32(8) != self.sequence {
                return Ok(());
            }
            match fields.be32(4) {
                DESCRIPTOR => self.descriptor(fields)?,
                REVOCATION => self.revocation(fields)?,
                COMMIT => self.commit(),
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    /// The next block of the ring, until it has gone round once.
    fn step(&mut self) -> Option<u32> {
        self.left = self.left.checked_sub(1)?;
        let here = self.at;
        self.at += 1;
        if self.at >= self.end {
            self.at = self.first;
        }
        Some(here)
    }

    fn room(&self) -> usize {
        let has_tail = self.incompat & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) != 0;
        self.fs.block_size as usize - if has_tail { 4 } else { 0 }
    }

    fn descriptor(&mut self, block: Bytes<'_>) -> Result<(), FsError> {
        let is_64bit = self.incompat & INCOMPAT_64BIT != 0;
        let is_v3 = self.incompat & INCOMPAT_CSUM_V3 != 0;
        let is_v2 = self.incompat & INCOMPAT_CSUM_V2 != 0;
        let tag_len = match (is_v3, is_64bit) {
            (true, _) => 16,
            (false, true) => 12 + if is_v2 { 2 } else { 0 },
            (false, false) => 8 + if is_v2 { 2 } else { 0 },
        };
        let mut at = 12;
        while at + tag_len <= self.room() {
            // The least price: memory is held per tag.
            self.fs.source.spend(0)?;
            let flags = if is_v3 { block.be32(at + 4) } else { u32::from(block.be16(at + 6)) };
            let high = if is_64bit { block.be32(at + 8) } else { 0 };
            let Some(copy) = self.step() else {
                return Ok(());
            };
            let offset = u64::from(copy) * u64::from(self.fs.block_size);
            let Some(place) = self.journal.place_of(offset) else {
                return Err(FsError::Damaged("the journal has a hole"));
            };
            self.pending.push((
                u64::from(high) << 32 | u64::from(block.be32(at)),
                Replacement { place, escaped: flags & TAG_ESCAPED != 0, sequence: self.sequence },
            ));
            at += tag_len;
            if flags & TAG_SAME_UUID == 0 {
                at += 16;
            }
            if flags & TAG_LAST != 0 {
                break;
            }
        }
        Ok(())
    }

    fn revocation(&mut self, block: Bytes<'_>) -> Result<(), FsError> {
        let is_64bit = self.incompat & INCOMPAT_64BIT != 0;
        let size = if is_64bit { 8 } else { 4 };
        let end = (block.be32(12) as usize).min(self.room());
        let mut at = 16;
        while at + size <= end {
            self.fs.source.spend(0)?;
            self.pending_revoked.push(if is_64bit { block.be64(at) } else { u64::from(block.be32(at)) });
            at += size;
        }
        Ok(())
    }

    fn commit(&mut self) {
        self.committed.extend(self.pending.drain(..));
        let sequence = self.sequence;
        let revoked = self.pending_revoked.drain(..);
        self.revoked.extend(revoked.map(|block| (block, sequence)));
        self.sequence = self.sequence.wrapping_add(1);
    }
}

//! Trees of items by key, and where their nodes are.

use std::collections::BTreeMap;

use super::super::super::source::Source;
use super::super::FsError;
use super::super::bytes::Bytes;

/// Object, kind and offset, which items are ordered by.
pub(super) type Key = (u64, u8, u64);

/// Takes an item, and says whether it wants more.
type Visit<'a> = dyn FnMut(Key, &[u8]) -> Result<bool, FsError> + 'a;

/// Bytes of the header of a node.
const HEADER: usize = 101;
const KEY: usize = 17;
const LEAF_ITEM: usize = 25;
const CHILD: usize = 33;
/// As Linux (`BTRFS_MAX_LEVEL`).
const MAX_LEVEL: u8 = 7;

const CHUNK_TREE_OBJECT: u64 = 256;
const CHUNK_ITEM: u8 = 228;
const CHUNK_FIXED: usize = 48;
const STRIPE: usize = 32;
/// One copy, or two on the same device: the first stripe has all of it.
const PLAIN: u64 = 0x1 | 0x2 | 0x4 | 0x20;
/// More chunks than the largest usual disk has, of at least 8 MiB each.
const MAX_CHUNKS: usize = 1 << 16;

/// Root of a tree: its logical address, and how many levels are below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tree {
    pub(super) at: u64,
    pub(super) level: u8,
}

#[derive(Debug, Clone, Copy)]
struct Chunk {
    len: u64,
    place: u64,
}

/// Where logical addresses are.
pub(super) struct Chunks {
    node_size: usize,
    by_address: BTreeMap<u64, Chunk>,
}

fn key(fields: Bytes<'_>, at: usize) -> Key {
    (fields.le64(at), fields.u8(at + 8), fields.le64(at + 9))
}

impl Chunks {
    /// None yet; nodes of trees have `node_size` bytes.
    pub(super) fn new(node_size: u32) -> Result<Self, FsError> {
        if !node_size.is_power_of_two() || !(4096..=1 << 16).contains(&node_size) {
            return Err(FsError::Damaged("the superblock makes no sense"));
        }
        Ok(Self { node_size: node_size as usize, by_address: BTreeMap::new() })
    }

    /// Those that the superblock has, which the chunk tree is in.
    pub(super) fn add_array(&mut self, mut array: &[u8]) -> Result<(), FsError> {
        while !array.is_empty() {
            let fields = Bytes(array);
            let (_, _, at) = key(fields, 0);
            let item = array.get(KEY..).unwrap_or_default();
            self.add(at, item)?;
            let stripes = usize::from(Bytes(item).le16(44));
            array = item.get(CHUNK_FIXED + stripes * STRIPE..).unwrap_or_default();
        }
        Ok(())
    }

    /// All chunks.
    pub(super) fn add_tree(&mut self, source: &Source, tree: Tree) -> Result<(), FsError> {
        let mut found = Vec::new();
        self.walk(source, tree, (CHUNK_TREE_OBJECT, CHUNK_ITEM, 0), &mut |key, item| {
            if (key.0, key.1) != (CHUNK_TREE_OBJECT, CHUNK_ITEM) {
                return Ok(false);
            }
            if found.len() >= MAX_CHUNKS {
                return Err(FsError::Exhausted);
            }
            // What follows the first stripe is of no use.
            found.push((key.2, item.get(..CHUNK_FIXED + STRIPE).unwrap_or_default().to_vec()));
            Ok(true)
        })?;
        found.iter().try_for_each(|(at, item)| self.add(*at, item))
    }

    fn add(&mut self, at: u64, item: &[u8]) -> Result<(), FsError> {
        if item.len() < CHUNK_FIXED + STRIPE {
            return Err(FsError::Damaged("a chunk is cut short"));
        }
        let fields = Bytes(item);
        if fields.le64(24) & !PLAIN != 0 {
            return Err(FsError::Unsupported("RAID of Btrfs"));
        }
        let chunk = Chunk { len: fields.le64(0), place: fields.le64(CHUNK_FIXED + 8) };
        self.by_address.insert(at, chunk);
        Ok(())
    }

    /// Where `len` bytes of a logical address lie on the partition.
    pub(super) fn place(&self, address: u64, len: u64) -> Result<u64, FsError> {
        let found = self.by_address.range(..=address).next_back().and_then(|(at, chunk)| {
            let skip = address - at;
            skip.checked_add(len).filter(|end| *end <= chunk.len)?;
            // The end is a place too.
            chunk.place.checked_add(chunk.len)?;
            Some(chunk.place + skip)
        });
        found.ok_or(FsError::Damaged("an address is in no chunk"))
    }

    /// Hands out items from `from` on in their order, until `visit` answers `false`, which is answered then.
    pub(super) fn walk(
        &self,
        source: &Source,
        tree: Tree,
        from: Key,
        visit: &mut Visit<'_>,
    ) -> Result<bool, FsError> {
        if tree.level > MAX_LEVEL {
            return Err(FsError::Damaged("a tree is too high"));
        }
        let place = self.place(tree.at, self.node_size as u64)?;
        let node = source.metadata_vec(self.node_size, place)?;
        let fields = Bytes(&node);
        if fields.le64(0x30) != tree.at || fields.u8(0x64) != tree.level {
            return Err(FsError::Damaged("a node of a tree is another one"));
        }
        let count = fields.le32(0x60) as usize;
        let entry = if tree.level == 0 { LEAF_ITEM } else { CHILD };
        if count > (self.node_size - HEADER) / entry {
            return Err(FsError::Damaged("a node of a tree is too full"));
        }
        let at = |index: usize| HEADER + index * entry;
        if tree.level == 0 {
            for index in (0..count).filter(|index| key(fields, at(*index)) >= from) {
                let (start, len) = (fields.le32(at(index) + KEY), fields.le32(at(index) + KEY + 4));
                let item = (start as usize).checked_add(HEADER).and_then(|at| fields.slice(at, len as usize));
                let item = item.ok_or(FsError::Damaged("an item is outside of its node"))?;
                if !visit(key(fields, at(index)), item)? {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        // The last child that begins before `from` has what `from` would be.
        let first = (0..count).rev().find(|index| key(fields, at(*index)) <= from).unwrap_or(0);
        for index in first..count {
            // Lower at each step, so that there is an end.
            let child = Tree { at: fields.le64(at(index) + KEY), level: tree.level - 1 };
            if !self.walk(source, child, from, visit)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

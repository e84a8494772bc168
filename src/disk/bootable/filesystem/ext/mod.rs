//! ext2, ext3 and ext4 (kernel documentation, `filesystems/ext4`).
//!
//! ```text
//! superblock at 1024 ─▶ group descriptors ─▶ inode tables ─▶ inode ─▶ extent tree or block map
//! ```
//!
//! Directories are read front to back: the hash index of large ones hides in what looks like unused
//! entries, which is just what the format intends for readers that do not know it. A journal that
//! was not replayed is read as if it had been, see [`journal`]. Metadata checksums are not verified:
//! they tell accidents from health, not friend from foe, and all values are checked where used.

mod directory;
mod journal;
mod mapping;

use super::super::source::Source;
use super::bytes::{Bytes, text, uuid};
use super::{Contents, Format, FsError, FsKind, MAX_DIRECTORY, MAX_NAMES, MAX_SYMLINK, NodeKind};

const SUPERBLOCK: u64 = 1024;
const MAGIC: u16 = 0xef53;
const ROOT_INODE: u32 = 2;

const COMPAT_HAS_JOURNAL: u32 = 0x4;

const INCOMPAT_COMPRESSION: u32 = 0x1;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_EXTENTS: u32 = 0x40;
const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_DIRDATA: u32 = 0x1000;
/// filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir,
/// inline_data, encrypt, casefold.
const INCOMPAT_KNOWN: u32 = 0x3_e7d6;

const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;

const INODE_ENCRYPTED: u32 = 0x800;
const INODE_EXTENTS: u32 = 0x8_0000;
const INODE_INLINE_DATA: u32 = 0x1000_0000;

/// Says whether there is an ext superblock, and of which generation.
pub(super) fn probe(source: &Source) -> Result<Option<FsKind>, FsError> {
    if source.len() < SUPERBLOCK + 1024 {
        return Ok(None);
    }
    let superblock = source.metadata_vec(1024, SUPERBLOCK)?;
    let fields = Bytes(&superblock);
    Ok((fields.le16(0x38) == MAGIC).then(|| generation(fields)))
}

fn generation(superblock: Bytes<'_>) -> FsKind {
    let (compat, incompat) = (superblock.le32(0x5c), superblock.le32(0x60));
    if incompat & (INCOMPAT_EXTENTS | INCOMPAT_64BIT) != 0 {
        FsKind::Ext4
    } else if compat & COMPAT_HAS_JOURNAL != 0 {
        FsKind::Ext3
    } else {
        FsKind::Ext2
    }
}

/// A mounted ext file system.
pub(super) struct Ext {
    source: Source,
    kind: FsKind,
    label: Option<String>,
    uuid: Option<String>,
    /// 1024 to 65536.
    block_size: u32,
    blocks: u64,
    first_data_block: u32,
    blocks_per_group: u32,
    inodes_per_group: u32,
    inode_size: u16,
    descriptor_size: u16,
    incompat: u32,
    ro_compat: u32,
    first_meta_bg: u32,
    /// Blocks whose newest copy is in the journal.
    overlay: journal::Overlay,
}

/// An inode, as far as reading needs it.
#[derive(Clone)]
pub(super) struct Inode {
    kind: NodeKind,
    flags: u32,
    size: u64,
    /// `i_block`: root of the extent tree or block map, short symlink, inline data.
    block: [u8; 60],
    /// Continuation of inline data in the extended attributes.
    inline_tail: Vec<u8>,
}

impl Ext {
    pub(super) fn mount(source: Source) -> Result<Self, FsError> {
        let superblock = source.metadata_vec(1024, SUPERBLOCK)?;
        let fields = Bytes(&superblock);
        let incompat = fields.le32(0x60);
        if incompat & (INCOMPAT_COMPRESSION | INCOMPAT_JOURNAL_DEV | INCOMPAT_DIRDATA) != 0
            || incompat & !INCOMPAT_KNOWN != 0
        {
            return Err(FsError::Unsupported("a feature of this ext file system"));
        }
        let log_block_size = fields.le32(0x18);
        if log_block_size > 6 {
            return Err(FsError::Damaged("impossible block size"));
        }
        let is_64bit = incompat & INCOMPAT_64BIT != 0;
        let high = if is_64bit { fields.le32(0x150) } else { 0 };
        let mut fs = Self {
            kind: generation(fields),
            label: text(&fields.array::<16>(0x78)),
            uuid: uuid(&fields.array(0x68)),
            block_size: 1024 << log_block_size,
            blocks: u64::from(high) << 32 | u64::from(fields.le32(0x4)),
            first_data_block: fields.le32(0x14),
            blocks_per_group: fields.le32(0x20),
            inodes_per_group: fields.le32(0x28),
            inode_size: if fields.le32(0x4c) == 0 { 128 } else { fields.le16(0x58) },
            descriptor_size: if is_64bit { fields.le16(0xfe) } else { 32 },
            incompat,
            ro_compat: fields.le32(0x64),
            first_meta_bg: fields.le32(0x104),
            overlay: journal::Overlay::new(),
            source,
        };
        fs.check()?;
        if incompat & INCOMPAT_RECOVER != 0 {
            let number = fields.le32(0xe0);
            if number == 0 {
                return Err(FsError::Unsupported("a journal on another device"));
            }
            fs.overlay = fs.load_journal(number)?;
        }
        Ok(fs)
    }

    /// What all arithmetic below relies on.
    fn check(&self) -> Result<(), FsError> {
        if self.blocks_per_group == 0 || self.inodes_per_group == 0 {
            return Err(FsError::Damaged("block groups are empty"));
        }
        if self.inode_size < 128 || u32::from(self.inode_size) > self.block_size {
            return Err(FsError::Damaged("impossible inode size"));
        }
        if !(32..=1024).contains(&self.descriptor_size) {
            return Err(FsError::Damaged("impossible group descriptor size"));
        }
        match self.blocks.checked_mul(u64::from(self.block_size)) {
            Some(size) if size <= self.source.len() => Ok(()),
            _ => Err(FsError::Damaged("it is larger than its partition (is the image truncated?)")),
        }
    }

    /// Offset of a block on the partition.
    fn block_offset(&self, block: u64) -> Result<u64, FsError> {
        if block >= self.blocks {
            return Err(FsError::Damaged("a block number is out of range"));
        }
        Ok(block * u64::from(self.block_size))
    }

    /// Reads bytes of one block of metadata.
    fn read_block(&self, block: u64, at: u32, len: u32) -> Result<Vec<u8>, FsError> {
        let offset = self.block_offset(block)?;
        if u64::from(at) + u64::from(len) > u64::from(self.block_size) {
            return Err(FsError::Damaged("a structure crosses the end of its block"));
        }
        let Some(replacement) = self.overlay.get(&block) else {
            let offset = offset + u64::from(at);
            return self.source.metadata_vec(len as usize, offset);
        };
        let size = self.block_size as usize;
        let mut whole = self.source.metadata_vec(size, replacement.place)?;
        if replacement.escaped {
            journal::unescape(&mut whole);
        }
        let part = Bytes(&whole).slice(at as usize, len as usize);
        Ok(part.unwrap_or_default().to_vec())
    }

    /// Whether a group keeps a copy of the superblock (`sparse_super`).
    fn has_superblock(&self, group: u64) -> bool {
        let is_power_of = |base: u64| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        };
        self.ro_compat & RO_COMPAT_SPARSE_SUPER == 0 || group <= 1 || [3, 5, 7].into_iter().any(is_power_of)
    }

    /// Block of the inode table of `group`.
    fn inode_table(&self, group: u32) -> Result<u64, FsError> {
        let per_block = self.block_size / u32::from(self.descriptor_size);
        let (meta, index) = (group / per_block, group % per_block);
        let block = if self.incompat & INCOMPAT_META_BG != 0 && meta >= self.first_meta_bg {
            let first = u64::from(meta) * u64::from(per_block);
            u64::from(self.first_data_block)
                + first * u64::from(self.blocks_per_group)
                + u64::from(self.has_superblock(first))
        } else {
            u64::from(self.first_data_block) + 1 + u64::from(meta)
        };
        let size = u32::from(self.descriptor_size);
        let descriptor = self.read_block(block, index * size, size)?;
        let fields = Bytes(&descriptor);
        let high = if size >= 64 { fields.le32(0x28) } else { 0 };
        Ok(u64::from(high) << 32 | u64::from(fields.le32(0x8)))
    }

    fn inode(&self, number: u32) -> Result<Inode, FsError> {
        let Some(index) = number.checked_sub(1) else {
            return Err(FsError::Damaged("inode 0 is used"));
        };
        let table = self.inode_table(index / self.inodes_per_group)?;
        let offset = u64::from(index % self.inodes_per_group) * u64::from(self.inode_size);
        let block = table.saturating_add(offset / u64::from(self.block_size));
        // Less than a block, so it fits.
        let at = (offset % u64::from(self.block_size)) as u32;
        let raw = self.read_block(block, at, u32::from(self.inode_size))?;
        let fields = Bytes(&raw);
        let kind = match fields.le16(0) & 0xf000 {
            0x4000 => NodeKind::Directory,
            0x8000 => NodeKind::File,
            0xa000 => NodeKind::Symlink,
            _ => NodeKind::Other,
        };
        let flags = fields.le32(0x20);
        let size = u64::from(fields.le32(0x6c)) << 32 | u64::from(fields.le32(0x4));
        let inline_tail =
            if flags & INODE_INLINE_DATA != 0 { mapping::inline_tail(&raw) } else { Vec::new() };
        Ok(Inode { kind, flags, size, block: fields.array(0x28), inline_tail })
    }
}

impl Format for Ext {
    type Node = Inode;

    fn kind(&self) -> FsKind {
        self.kind
    }

    fn label(&self) -> Option<String> {
        self.label.clone()
    }

    fn uuid(&self) -> Option<String> {
        self.uuid.clone()
    }

    fn root(&self) -> Result<Inode, FsError> {
        self.inode(ROOT_INODE)
    }

    fn node_kind(&self, node: &Inode) -> NodeKind {
        node.kind
    }

    fn lookup(&self, directory: &Inode, name: &str) -> Result<Inode, FsError> {
        let mut found = None;
        self.for_each_entry(directory, |entry_name, inode| {
            if entry_name == name.as_bytes() {
                found = Some(inode);
            }
            found.is_none()
        })?;
        self.inode(found.ok_or(FsError::NotFound)?)
    }

    fn list(&self, directory: &Inode) -> Result<Vec<String>, FsError> {
        let mut names = Vec::new();
        self.for_each_entry(directory, |name, _| {
            if let Ok(name) = std::str::from_utf8(name)
                && !matches!(name, "." | "..")
            {
                names.push(name.to_owned());
            }
            names.len() < MAX_NAMES
        })?;
        Ok(names)
    }

    fn read_link(&self, symlink: &Inode) -> Result<String, FsError> {
        if symlink.flags & INODE_ENCRYPTED != 0 {
            return Err(FsError::Unsupported("encryption of files"));
        }
        let target = if symlink.size < 60 && symlink.flags & INODE_INLINE_DATA == 0 {
            let used = symlink.block.get(..symlink.size as usize);
            used.unwrap_or_default().to_vec()
        } else {
            let target = self.contents(symlink)?;
            self.source.spend(target.len().min(MAX_SYMLINK))?;
            target.read_all(MAX_SYMLINK)?
        };
        String::from_utf8(target).map_err(|_| FsError::NotFound)
    }

    fn contents(&self, file: &Inode) -> Result<Contents, FsError> {
        if file.flags & INODE_ENCRYPTED != 0 {
            return Err(FsError::Unsupported("encryption of files"));
        }
        self.map(file)
    }
}

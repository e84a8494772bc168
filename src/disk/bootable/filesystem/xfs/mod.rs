//! XFS, versions 4 and 5 ("XFS Algorithms & Data Structures", 3rd edition). Big endian throughout.
//!
//! ```text
//! allocation group 0 │ allocation group 1 │ …          inode number = group · block · slot
//! superblock, inodes, data                             block number = group · block
//! ```
//!
//! Directories are read front to back, so that their hash trees are not needed. The log is not
//! replayed: after a crash of the guest, what changed last may not be seen here until it has been
//! mounted once. Checksums are not verified, values are checked where used.

mod directory;
mod mapping;

use super::super::source::Source;
use super::bytes::{Bytes, text, uuid};
use super::contents::Runs;
use super::{Contents, Format, FsError, FsKind, MAX_DIRECTORY, MAX_NAMES, MAX_SYMLINK, NodeKind};

const MAGIC: &[u8] = b"XFSB";
const INODE_MAGIC: u16 = 0x494e;

const VERSION_DIRV2: u16 = 0x2000;
const VERSION_MOREBITS: u16 = 0x8000;
const FEATURES2_FTYPE: u32 = 0x200;
const INCOMPAT_FTYPE: u32 = 0x1;
/// ftype, sparse inodes, metadata uuid, big timestamps, needs repair, many extents, exchange range,
/// parent pointers.
const INCOMPAT_KNOWN: u32 = 0xff;

const INODE_REALTIME: u16 = 0x1;
const INODE2_MANY_EXTENTS: u64 = 0x10;

/// Says whether there is an XFS superblock.
pub(super) fn probe(source: &Source) -> Result<Option<FsKind>, FsError> {
    if source.len() < 512 {
        return Ok(None);
    }
    let magic = source.metadata_vec(MAGIC.len(), 0)?;
    Ok((magic == MAGIC).then_some(FsKind::Xfs))
}

/// A mounted XFS.
pub(super) struct Xfs {
    source: Source,
    label: Option<String>,
    uuid: Option<String>,
    is_v5: bool,
    has_ftype: bool,
    block_size: u32,
    blocks: u64,
    group_blocks: u32,
    groups: u32,
    inode_size: u16,
    /// Bits of a block number within its group, and of a slot within its block.
    group_block_bits: u32,
    slot_bits: u32,
    directory_block_size: u32,
    root_inode: u64,
}

/// How the data fork is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ForkFormat {
    Local,
    Extents,
    Btree,
}

/// An inode and its data fork.
#[derive(Clone)]
pub(super) struct Inode {
    kind: NodeKind,
    size: u64,
    format: ForkFormat,
    extents: u64,
    fork: Vec<u8>,
}

impl Xfs {
    pub(super) fn mount(source: Source) -> Result<Self, FsError> {
        let superblock = source.metadata_vec(512, 0)?;
        let fields = Bytes(&superblock);
        let version = fields.be16(100);
        let is_v5 = version & 0xf == 5;
        if !is_v5 && (version & 0xf != 4 || version & VERSION_DIRV2 == 0) {
            return Err(FsError::Unsupported("this version of XFS"));
        }
        if is_v5 && fields.be32(216) & !INCOMPAT_KNOWN != 0 {
            return Err(FsError::Unsupported("a feature of this XFS file system"));
        }
        let (block_bits, directory_bits) = (fields.u8(120), fields.u8(192));
        let fs = Self {
            label: text(&fields.array::<12>(108)),
            uuid: uuid(&fields.array(32)),
            is_v5,
            has_ftype: if is_v5 {
                fields.be32(216) & INCOMPAT_FTYPE != 0
            } else {
                version & VERSION_MOREBITS != 0 && fields.be32(200) & FEATURES2_FTYPE != 0
            },
            block_size: fields.be32(4),
            blocks: fields.be64(8),
            group_blocks: fields.be32(84),
            groups: fields.be32(88),
            inode_size: fields.be16(104),
            group_block_bits: u32::from(fields.u8(124)),
            slot_bits: u32::from(fields.u8(123)),
            directory_block_size: 1u32
                .checked_shl(u32::from(block_bits) + u32::from(directory_bits))
                .unwrap_or(0),
            root_inode: fields.be64(56),
            source,
        };
        fs.check()?;
        Ok(fs)
    }

    /// What all arithmetic below relies on.
    fn check(&self) -> Result<(), FsError> {
        let sizes_are_sound = self.block_size.is_power_of_two()
            && (512..=1 << 16).contains(&self.block_size)
            && (self.block_size..=1 << 16).contains(&self.directory_block_size)
            && (256..=2048).contains(&self.inode_size)
            && self.inode_size.is_power_of_two()
            && u32::from(self.inode_size) <= self.block_size;
        let groups_are_sound = self.groups != 0
            && self.group_blocks != 0
            && self.group_block_bits < 32
            && self.slot_bits <= 8
            && u64::from(self.inode_size) << self.slot_bits == u64::from(self.block_size);
        if !sizes_are_sound || !groups_are_sound {
            return Err(FsError::Damaged("the superblock makes no sense"));
        }
        match self.blocks.checked_mul(u64::from(self.block_size)) {
            Some(size) if size <= self.source.len() => Ok(()),
            _ => Err(FsError::Damaged("it is larger than its partition (is the image truncated?)")),
        }
    }

    /// Offset of a block on the partition.
    fn block_offset(&self, number: u64) -> Result<u64, FsError> {
        let group = number >> self.group_block_bits;
        let block = number & ((1 << self.group_block_bits) - 1);
        let absolute = group
            .checked_mul(u64::from(self.group_blocks))
            .and_then(|first| first.checked_add(block))
            .filter(|&absolute| {
                block < u64::from(self.group_blocks)
                    && group < u64::from(self.groups)
                    && absolute < self.blocks
            })
            .ok_or(FsError::Damaged("a block number is out of range"))?;
        // Less than `blocks`, whose product with the block size was checked.
        Ok(absolute * u64::from(self.block_size))
    }

    fn inode(&self, number: u64) -> Result<Inode, FsError> {
        let slot = number & ((1 << self.slot_bits) - 1);
        let block = self.block_offset(number >> self.slot_bits)?;
        let offset = block + slot * u64::from(self.inode_size);
        let raw = self.source.metadata_vec(usize::from(self.inode_size), offset)?;
        let fields = Bytes(&raw);
        if fields.be16(0) != INODE_MAGIC {
            return Err(FsError::Damaged("an inode has no magic number"));
        }
        let kind = match fields.be16(2) & 0xf000 {
            0x4000 => NodeKind::Directory,
            0x8000 => NodeKind::File,
            0xa000 => NodeKind::Symlink,
            _ => NodeKind::Other,
        };
        let is_v3 = fields.u8(4) == 3;
        let format = match fields.u8(5) {
            1 => ForkFormat::Local,
            2 => ForkFormat::Extents,
            3 => ForkFormat::Btree,
            _ if kind == NodeKind::Other => ForkFormat::Local,
            _ => return Err(FsError::Damaged("an inode has an impossible format")),
        };
        if fields.be16(90) & INODE_REALTIME != 0 && kind == NodeKind::File {
            return Err(FsError::Unsupported("a realtime section of XFS"));
        }
        let has_many_extents = is_v3 && fields.be64(120) & INODE2_MANY_EXTENTS != 0;
        let core = if is_v3 { 176 } else { 100 };
        let room = raw.len() - core;
        // The attribute fork begins at a multiple of 8 after the core.
        let fork_len = match usize::from(fields.u8(82)) * 8 {
            0 => room,
            attributes => attributes.min(room),
        };
        Ok(Inode {
            kind,
            size: fields.be64(56),
            format,
            extents: if has_many_extents { fields.be64(24) } else { u64::from(fields.be32(76)) },
            fork: fields.slice(core, fork_len).unwrap_or_default().to_vec(),
        })
    }
}

impl Format for Xfs {
    type Node = Inode;

    fn kind(&self) -> FsKind {
        FsKind::Xfs
    }

    fn label(&self) -> Option<String> {
        self.label.clone()
    }

    fn uuid(&self) -> Option<String> {
        self.uuid.clone()
    }

    fn root(&self) -> Result<Inode, FsError> {
        self.inode(self.root_inode)
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
        if symlink.size > MAX_SYMLINK {
            return Err(FsError::Damaged("a symlink is too long"));
        }
        let target = match symlink.format {
            ForkFormat::Local => {
                let used = symlink.fork.get(..symlink.size as usize);
                used.ok_or(FsError::Damaged("a symlink is cut short"))?.to_vec()
            }
            _ => self.remote_symlink(symlink)?,
        };
        String::from_utf8(target).map_err(|_| FsError::NotFound)
    }

    fn contents(&self, file: &Inode) -> Result<Contents, FsError> {
        let mut runs = Runs::new(&self.source, file.size);
        self.map(file, |at, len, place| runs.push(at, len, place))?;
        Ok(runs.finish())
    }
}

//! Btrfs on one device ("On-disk Format" of its developers' documentation). Little endian throughout.
//!
//! ```text
//!   superblock ──▶ chunk tree: logical addresses ─▶ places on the partition
//!              └─▶ root tree: a tree for each subvolume ─▶ directories, inodes, extents
//! ```
//!
//! What is mounted is the subvolume that Linux would mount, or the one that distributions put the system into;
//! names that are missing in its root are looked up at the top, where boot loaders see all subvolumes as
//! directories. Extents that are compressed with zlib or zstd are read. The log is not replayed: after a crash of
//! the guest, what changed last may not be seen here until it has been mounted once. Checksums are not verified,
//! values are checked where used.

mod extents;
mod tree;

use super::super::source::Source;
use super::bytes::{Bytes, text, uuid};
use super::{Contents, Format, FsError, FsKind, MAX_NAMES, MAX_SYMLINK, NodeKind};
use extents::Extents;
use tree::{Chunks, Key, Tree};

const SUPERBLOCK: u64 = 64 << 10;
const SUPERBLOCK_LEN: usize = 4096;
const MAGIC: &[u8] = b"_BHRfS_M";
/// Everything up to more copies in RAID1, and simple quotas. Not: zones, and what replaces the extent tree.
const INCOMPAT_KNOWN: u64 = 0xfff | 0x1_0000;
const SYSTEM_CHUNKS: usize = 0x32b;
const SYSTEM_CHUNKS_LEN: usize = 2048;

/// Kinds of items.
const INODE_ITEM: u8 = 1;
const DIR_ITEM: u8 = 84;
const DIR_INDEX: u8 = 96;
const EXTENT_DATA: u8 = 108;
const ROOT_ITEM: u8 = 132;

/// The tree of the top-level subvolume.
const TOP_LEVEL: u64 = 5;
/// Inode of the root directory of every subvolume.
const ROOT_DIRECTORY: u64 = 256;
/// Subvolumes for the system where the top level has none and is the default: those of Ubuntu and Arch, of Debian,
/// of Fedora.
const USUAL_SUBVOLUMES: [&str; 3] = ["@", "@rootfs", "root"];

/// Says whether there is a Btrfs superblock.
pub(super) fn probe(source: &Source) -> Result<Option<FsKind>, FsError> {
    if source.len() < SUPERBLOCK + SUPERBLOCK_LEN as u64 {
        return Ok(None);
    }
    let magic = source.metadata_vec(MAGIC.len(), SUPERBLOCK + 0x40)?;
    Ok((magic == MAGIC).then_some(FsKind::Btrfs))
}

/// A mounted Btrfs.
pub(super) struct Btrfs {
    source: Source,
    label: Option<String>,
    uuid: Option<String>,
    chunks: Chunks,
    roots: Tree,
    top: Tree,
    system: Tree,
}

/// An inode of a subvolume.
#[derive(Clone, Copy)]
pub(super) struct Inode {
    tree: Tree,
    number: u64,
    kind: NodeKind,
    size: u64,
}

/// What a name stands for: an item of the same tree, or the root of another.
type Location = Key;

impl Btrfs {
    pub(super) fn mount(source: Source) -> Result<Self, FsError> {
        let superblock = source.metadata_vec(SUPERBLOCK_LEN, SUPERBLOCK)?;
        let fields = Bytes(&superblock);
        if fields.le64(0xbc) & !INCOMPAT_KNOWN != 0 {
            return Err(FsError::Unsupported("a feature of this Btrfs file system"));
        }
        if fields.le64(0x88) != 1 {
            return Err(FsError::Unsupported("Btrfs on several devices"));
        }
        // Of the device, whose own size this is.
        if fields.le64(0xd1) > source.len() {
            return Err(FsError::Damaged("it is larger than its partition (is the image truncated?)"));
        }
        let mut chunks = Chunks::new(fields.le32(0x94))?;
        let room = fields.slice(SYSTEM_CHUNKS, SYSTEM_CHUNKS_LEN).unwrap_or_default();
        let used = room.get(..fields.le32(0xa0) as usize);
        chunks.add_array(used.ok_or(FsError::Damaged("the superblock makes no sense"))?)?;
        let all = Tree { at: fields.le64(0x58), level: fields.u8(0xc7) };
        chunks.add_tree(&source, all)?;
        let roots = Tree { at: fields.le64(0x50), level: fields.u8(0xc6) };
        let mut fs = Btrfs {
            label: text(&fields.array::<256>(0x12b)),
            uuid: uuid(&fields.array(0x20)),
            source,
            chunks,
            roots,
            // Until they are found.
            top: roots,
            system: roots,
        };
        fs.top = fs.subvolume(TOP_LEVEL)?;
        fs.system = fs.find_system(fields.le64(0x80))?;
        Ok(fs)
    }

    /// The subvolume that is mounted; `directory`: inode of the directory of the root tree.
    fn find_system(&self, directory: u64) -> Result<Tree, FsError> {
        let mut default = None;
        self.walk(self.roots, (directory, DIR_ITEM, 0), |key, item| {
            let own = (key.0, key.1) == (directory, DIR_ITEM);
            let named = entries(item).find(|(name, _)| own && *name == b"default");
            default = named.map(|(_, location)| location.0);
            Ok(own && default.is_none())
        })?;
        if let Some(id) = default.filter(|id| *id != TOP_LEVEL) {
            return self.subvolume(id);
        }
        if self.find_entry(self.top, ROOT_DIRECTORY, "etc")?.is_none() {
            for name in USUAL_SUBVOLUMES {
                if let Some((id, ROOT_ITEM, _)) = self.find_entry(self.top, ROOT_DIRECTORY, name)? {
                    return self.subvolume(id);
                }
            }
        }
        Ok(self.top)
    }

    fn walk(
        &self,
        tree: Tree,
        from: Key,
        mut visit: impl FnMut(Key, &[u8]) -> Result<bool, FsError>,
    ) -> Result<(), FsError> {
        self.chunks.walk(&self.source, tree, from, &mut visit).map(drop)
    }

    /// The first item of that object and kind.
    fn item(&self, tree: Tree, object: u64, kind: u8) -> Result<Vec<u8>, FsError> {
        let mut found = None;
        self.walk(tree, (object, kind, 0), |key, item| {
            found = ((key.0, key.1) == (object, kind)).then(|| item.to_vec());
            Ok(false)
        })?;
        found.ok_or(FsError::NotFound)
    }

    fn subvolume(&self, id: u64) -> Result<Tree, FsError> {
        let item = self.item(self.roots, id, ROOT_ITEM)?;
        let fields = Bytes(&item);
        Ok(Tree { at: fields.le64(176), level: fields.u8(238) })
    }

    fn inode(&self, tree: Tree, number: u64) -> Result<Inode, FsError> {
        let item = self.item(tree, number, INODE_ITEM)?;
        let fields = Bytes(&item);
        let kind = match fields.le32(52) & 0xf000 {
            0x4000 => NodeKind::Directory,
            0x8000 => NodeKind::File,
            0xa000 => NodeKind::Symlink,
            _ => NodeKind::Other,
        };
        Ok(Inode { tree, number, kind, size: fields.le64(16) })
    }

    /// Hands out the names in a directory until `found` has enough.
    fn for_each_entry(
        &self,
        tree: Tree,
        directory: u64,
        mut found: impl FnMut(&[u8], Location) -> bool,
    ) -> Result<(), FsError> {
        self.walk(tree, (directory, DIR_INDEX, 0), |key, item| {
            if (key.0, key.1) != (directory, DIR_INDEX) {
                return Ok(false);
            }
            Ok(entries(item).all(|(name, location)| found(name, location)))
        })
    }

    fn find_entry(&self, tree: Tree, directory: u64, name: &str) -> Result<Option<Location>, FsError> {
        let mut found = None;
        self.for_each_entry(tree, directory, |other, location| {
            found = (other == name.as_bytes()).then_some(location);
            found.is_none()
        })?;
        Ok(found)
    }

    fn extents(&self, file: &Inode) -> Result<Extents, FsError> {
        let mut extents = Extents::new(&self.source, file.size);
        self.walk(file.tree, (file.number, EXTENT_DATA, 0), |key, item| {
            if (key.0, key.1) != (file.number, EXTENT_DATA) {
                return Ok(false);
            }
            extents.push(&self.chunks, key.2, item)?;
            Ok(true)
        })?;
        Ok(extents)
    }
}

/// Names and what they stand for, in an item of a directory.
fn entries(item: &[u8]) -> impl Iterator<Item = (&[u8], Location)> {
    const FIXED: usize = 30;
    let mut at = 0;
    std::iter::from_fn(move || {
        let fields = Bytes(item.get(at..)?);
        let (data, name) = (usize::from(fields.le16(25)), usize::from(fields.le16(27)));
        let named = fields.slice(FIXED, name).filter(|name| !name.is_empty())?;
        at += FIXED + name + data;
        Some((named, (fields.le64(0), fields.u8(8), fields.le64(9))))
    })
}

impl Format for Btrfs {
    type Node = Inode;

    fn kind(&self) -> FsKind {
        FsKind::Btrfs
    }

    fn label(&self) -> Option<String> {
        self.label.clone()
    }

    fn uuid(&self) -> Option<String> {
        self.uuid.clone()
    }

    fn root(&self) -> Result<Inode, FsError> {
        self.inode(self.system, ROOT_DIRECTORY)
    }

    fn node_kind(&self, node: &Inode) -> NodeKind {
        node.kind
    }

    fn lookup(&self, directory: &Inode, name: &str) -> Result<Inode, FsError> {
        let (mut tree, mut found) =
            (directory.tree, self.find_entry(directory.tree, directory.number, name)?);
        if found.is_none() && (tree, directory.number) == (self.system, ROOT_DIRECTORY) {
            (tree, found) = (self.top, self.find_entry(self.top, ROOT_DIRECTORY, name)?);
        }
        match found {
            Some((number, INODE_ITEM, _)) => self.inode(tree, number),
            Some((id, ROOT_ITEM, _)) => self.inode(self.subvolume(id)?, ROOT_DIRECTORY),
            Some(_) => Err(FsError::Damaged("a name stands for nothing")),
            None => Err(FsError::NotFound),
        }
    }

    fn list(&self, directory: &Inode) -> Result<Vec<String>, FsError> {
        let mut names = Vec::new();
        self.for_each_entry(directory.tree, directory.number, |name, _| {
            names.extend(std::str::from_utf8(name).ok().map(str::to_owned));
            names.len() < MAX_NAMES
        })?;
        Ok(names)
    }

    fn read_link(&self, symlink: &Inode) -> Result<String, FsError> {
        let target = self.extents(symlink)?.finish().read_all(MAX_SYMLINK)?;
        String::from_utf8(target).map_err(|_| FsError::NotFound)
    }

    fn contents(&self, file: &Inode) -> Result<Contents, FsError> {
        Ok(self.extents(file)?.finish())
    }
}

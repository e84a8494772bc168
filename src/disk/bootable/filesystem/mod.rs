//! Read-only file systems, as much of them as it takes to load a kernel.
//!
//! ```text
//!   path ──▶ resolve (symlinks, "..") ──▶ Format: lookup, list, read_link, open ──▶ Contents (runs)
//!            one walk for all                 btrfs · ext · fat · xfs               one reader for all
//! ```
//!
//! A driver only turns names into nodes and nodes into runs of bytes on the partition. Everything it
//! reads on the way is charged to the search's budget, so that a tree that loops or fans out without
//! end stops there; nothing is cached past one call. Reading happens behind `&self`: a mounted file
//! system can be shared between threads.

mod btrfs;
mod bytes;
mod contents;
mod ext;
mod fat;
mod magic;
mod resolve;
#[cfg(test)]
mod tests;
mod xfs;

use serde::Serialize;

pub use contents::Contents;

use super::limits::Exhausted;
use super::source::Source;
use crate::DiskError;

/// What a partition is formatted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FsKind {
    /// Second extended file system.
    Ext2,
    /// With a journal.
    Ext3,
    /// With extents or later features.
    Ext4,
    /// FAT with 12-bit entries.
    Fat12,
    /// FAT with 16-bit entries.
    Fat16,
    /// FAT with 32-bit entries.
    Fat32,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// LUKS container, which is recognised but not opened.
    Luks,
    /// LVM physical volume, which is recognised but not opened.
    Lvm,
    /// Squashfs, which is recognised but not read.
    Squashfs,
    /// EROFS, which is recognised but not read.
    Erofs,
    /// Swap space.
    Swap,
}

impl std::fmt::Display for FsKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::Fat12 => "FAT12",
            Self::Fat16 => "FAT16",
            Self::Fat32 => "FAT32",
            Self::Xfs => "XFS",
            Self::Btrfs => "Btrfs",
            Self::Luks => "LUKS",
            Self::Lvm => "LVM",
            Self::Squashfs => "Squashfs",
            Self::Erofs => "EROFS",
            Self::Swap => "swap",
        })
    }
}

/// Why something could not be read from a file system.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// No such name, or a component of the path is no directory.
    #[error("not found")]
    NotFound,
    /// A directory or device where a file was wanted, or the other way round.
    #[error("not a {0}")]
    WrongKind(&'static str),
    /// Symlinks lead in circles or nowhere sensible.
    #[error("too many symlinks")]
    SymlinkLoop,
    /// Larger than the caller takes.
    #[error("{size} bytes is more than the limit of {limit}")]
    TooLarge {
        /// Size of the file in bytes.
        size: u64,
        /// What was allowed.
        limit: u64,
    },
    /// The structure on disk contradicts itself.
    #[error("the file system is damaged: {0}")]
    Damaged(&'static str),
    /// A feature that this reader does not have.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// [`super::Limits::metadata`] is used up.
    #[error("reading it takes more work than any usual image needs (is the file system damaged?)")]
    Exhausted,
    /// The disk could not be read.
    #[error(transparent)]
    Read(#[from] DiskError),
}

impl From<Exhausted> for FsError {
    fn from(_: Exhausted) -> Self {
        Self::Exhausted
    }
}

impl FsError {
    /// Whether it only says that there is no such file.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound | Self::WrongKind(_))
    }
}

/// What a name in a directory stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Device, pipe, socket.
    Other,
}

/// A mounted file system. Paths are absolute, with `/` between names; names that are not UTF-8 are
/// not seen.
pub trait FileSystem: Send + Sync {
    /// How it is formatted.
    fn kind(&self) -> FsKind;

    /// Volume label, as it is on disk; `None` when empty.
    fn label(&self) -> Option<String>;

    /// The identity that `root=UUID=` and `search --fs-uuid` take.
    fn uuid(&self) -> Option<String>;

    /// Opens a regular file. Symlinks are followed.
    fn open(&self, path: &str) -> Result<Contents, FsError>;

    /// Names in a directory, without `.` and `..`, in the order on disk.
    fn list_dir(&self, path: &str) -> Result<Vec<String>, FsError>;

    /// What `path` names, symlinks followed.
    fn stat(&self, path: &str) -> Result<NodeKind, FsError>;

    /// Reads a whole file of at most `limit` bytes.
    fn read_file(&self, path: &str, limit: u64) -> Result<Vec<u8>, FsError> {
        self.open(path)?.read_all(limit)
    }

    /// Whether `path` leads to anything.
    fn exists(&self, path: &str) -> bool {
        self.stat(path).is_ok()
    }
}

/// One kind of file system: what [`resolve::Mounted`] needs to offer [`FileSystem`].
trait Format: Send + Sync {
    /// A file, directory or symlink, read and checked.
    type Node: Clone;

    fn kind(&self) -> FsKind;
    fn label(&self) -> Option<String>;
    fn uuid(&self) -> Option<String>;
    fn root(&self) -> Result<Self::Node, FsError>;
    fn node_kind(&self, node: &Self::Node) -> NodeKind;
    /// Looks `name` up in a directory.
    fn lookup(&self, directory: &Self::Node, name: &str) -> Result<Self::Node, FsError>;
    /// Names in a directory without `.` and `..`.
    fn list(&self, directory: &Self::Node) -> Result<Vec<String>, FsError>;
    /// Target of a symlink, at most [`MAX_SYMLINK`] bytes.
    fn read_link(&self, symlink: &Self::Node) -> Result<String, FsError>;
    /// Contents of a regular file.
    fn contents(&self, file: &Self::Node) -> Result<Contents, FsError>;
}

/// `PATH_MAX` of Linux.
const MAX_SYMLINK: u64 = 4096;
/// Largest directory that is searched, in bytes. `/boot` has a few KiB.
const MAX_DIRECTORY: u64 = 16 << 20;

/// Names that a listing has at most; the others are not seen.
const MAX_NAMES: usize = 1 << 14;

/// Recognises and mounts the file system of a partition. `Ok(None)`: nothing that is known.
///
/// # Errors
/// [`MountError`] where the kind is known but cannot be read.
pub(crate) fn mount(source: &Source) -> Result<Option<Box<dyn FileSystem>>, MountError> {
    let failed = |kind| move |error| MountError::Failed { kind, error };
    if let Some(kind) = ext::probe(source).map_err(MountError::Probe)? {
        let fs = ext::Ext::mount(source.clone()).map_err(failed(kind))?;
        return Ok(Some(Box::new(resolve::Mounted(fs))));
    }
    if let Some(kind) = xfs::probe(source).map_err(MountError::Probe)? {
        let fs = xfs::Xfs::mount(source.clone()).map_err(failed(kind))?;
        return Ok(Some(Box::new(resolve::Mounted(fs))));
    }
    if let Some(kind) = btrfs::probe(source).map_err(MountError::Probe)? {
        let fs = btrfs::Btrfs::mount(source.clone()).map_err(failed(kind))?;
        return Ok(Some(Box::new(resolve::Mounted(fs))));
    }
    if let Some(kind) = magic::unreadable(source).map_err(MountError::Probe)? {
        return Err(MountError::NotReadable(kind));
    }
    // Last: a FAT boot sector has no magic number that other things could not have too.
    if let Some(kind) = fat::probe(source).map_err(MountError::Probe)? {
        let fs = fat::Fat::mount(source.clone()).map_err(failed(kind))?;
        return Ok(Some(Box::new(resolve::Mounted(fs))));
    }
    Ok(None)
}

/// Why a partition cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Its first bytes could not be read.
    #[error("reading the start of the partition failed")]
    Probe(#[source] FsError),
    /// A kind that Kiln knows by its magic only.
    #[error("{0} cannot be read by Kiln yet")]
    NotReadable(FsKind),
    /// The superblock is no good.
    #[error("its {kind} file system cannot be read")]
    Failed {
        /// What its magic says.
        kind: FsKind,
        /// What is wrong.
        #[source]
        error: FsError,
    },
}

//! A file or block device that a person names as a disk image: opened once, its format declared,
//! its outer shape checked.
//!
//! The format comes from the person or from the file's name, never from its contents. Contents are
//! looked at only to refuse what contradicts the declaration.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use kiln_model::ByteSize;
use kiln_vmspec::DiskFormat;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::qcow2_header::{self, HEADER_LEN};

/// Disks are made of sectors of this many bytes.
const SECTOR: u64 = 512;

/// Why a file cannot be used as a disk image.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It cannot be opened or read.
    #[error("cannot {action} image file {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A directory, a pipe or a socket.
    #[error("{path} is {what}, not a disk image or block device")]
    NotADisk {
        /// Which file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Nothing in it.
    #[error("image file {0} is empty")]
    Empty(PathBuf),
    /// The name does not say the format.
    #[error(
        "cannot tell the format of {0} from its name (say --format raw or --format qcow2; contents are \
         never used to guess)"
    )]
    FormatUnknown(PathBuf),
    /// Not whole sectors.
    #[error(
        "raw image {path} has {bytes} bytes, which is not a multiple of 512: it is cut off or not a disk image"
    )]
    PartialSector {
        /// Which file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Declared raw, but it looks like qcow2.
    #[error("{0} is declared raw but starts with a qcow2 header (say --format qcow2)")]
    LooksLikeQcow2(PathBuf),
    /// Declared qcow2, but it is not.
    #[error("{path} is declared qcow2 but {detail}")]
    NotQcow2 {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The file is not the one that the instance was made from.
    #[error(
        "{0} has changed since the instance was made from it, so its volume no longer fits (restore the file, \
         or terminate the instance)"
    )]
    Changed(PathBuf),
}

/// What tells whether a file is still the one it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Last change of the contents: seconds and nanoseconds since the Unix epoch.
    modified: (i64, i64),
}

/// An open image.
#[derive(Debug)]
pub struct Source {
    /// Open for reading.
    pub file: File,
    /// Absolute path.
    pub path: PathBuf,
    /// As declared.
    pub format: DiskFormat,
    /// Size of the file or device.
    pub file_bytes: u64,
    /// Size of the disk inside.
    pub virtual_size: ByteSize,
    /// For comparison at a later start.
    pub identity: FileIdentity,
}

/// The format that `path` has by declaration: the person's word first, the name's end second.
pub fn declared_format(path: &Path, declared: Option<DiskFormat>) -> Result<DiskFormat, SourceError> {
    let by_name = || match path.extension().and_then(OsStr::to_str)? {
        "raw" | "img" => Some(DiskFormat::Raw),
        "qcow2" => Some(DiskFormat::Qcow2),
        _ => None,
    };
    declared.or_else(by_name).ok_or_else(|| SourceError::FormatUnknown(path.to_owned()))
}

impl Source {
    /// Opens `path` for reading and checks that it can be a disk of its declared format.
    pub fn open(path: &Path, declared: Option<DiskFormat>) -> Result<Self, SourceError> {
        let failed = |action| move |source| SourceError::Io { action, path: path.to_owned(), source };
        // Non-blocking, so that a pipe without writer does not hang us.
        let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
        let mut file =
            OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(failed("open"))?;
        let metadata = file.metadata().map_err(failed("examine"))?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let what = if kind.is_dir() { "a directory" } else { "a special file" };
            return Err(SourceError::NotADisk { path: path.to_owned(), what });
        }
        let file_bytes = file.seek(SeekFrom::End(0)).map_err(failed("measure"))?;
        file.rewind().map_err(failed("measure"))?;
        if file_bytes == 0 {
            return Err(SourceError::Empty(path.to_owned()));
        }
        let format = declared_format(path, declared)?;
        let mut header = [0; HEADER_LEN];
        let filled = read_up_to(&file, &mut header).map_err(failed("read"))?;
        let header = header.get(..filled).unwrap_or_default();
        let virtual_size = ByteSize::bytes(check_format(path, format, header, file_bytes)?);
        let path = fs::canonicalize(path).map_err(failed("find"))?;
        let identity = FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: file_bytes,
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        };
        Ok(Source { file, path, format, file_bytes, virtual_size, identity })
    }
}

fn read_up_to(file: &File, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buf.get_mut(filled..).filter(|r| !r.is_empty()) {
        let offset = u64::try_from(filled).unwrap_or(u64::MAX);
        match file.read_at(rest, offset) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Checks the declaration against the first bytes; answers the size of the disk inside.
fn check_format(path: &Path, format: DiskFormat, header: &[u8], file_bytes: u64) -> Result<u64, SourceError> {
    match format {
        DiskFormat::Raw if qcow2_header::has_magic(header) => {
            Err(SourceError::LooksLikeQcow2(path.to_owned()))
        }
        DiskFormat::Raw if !file_bytes.is_multiple_of(SECTOR) => {
            Err(SourceError::PartialSector { path: path.to_owned(), bytes: file_bytes })
        }
        DiskFormat::Raw => Ok(file_bytes),
        DiskFormat::Qcow2 => qcow2_header::virtual_size(header)
            .map_err(|e| SourceError::NotQcow2 { path: path.to_owned(), detail: e.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::qcow2_header::sample;
    use super::*;

    fn file(name: &str, contents: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, contents).unwrap();
        (dir, path)
    }

    fn refusal(name: &str, contents: &[u8], declared: Option<DiskFormat>) -> SourceError {
        let (_dir, path) = file(name, contents);
        Source::open(&path, declared).unwrap_err()
    }

    #[test]
    fn format_is_declared_or_named_but_never_guessed() {
        for (name, format) in
            [("a.raw", DiskFormat::Raw), ("a.img", DiskFormat::Raw), ("a.qcow2", DiskFormat::Qcow2)]
        {
            assert_eq!(declared_format(Path::new(name), None).unwrap(), format);
        }
        assert_eq!(declared_format(Path::new("a.raw"), Some(DiskFormat::Qcow2)).unwrap(), DiskFormat::Qcow2);
        for name in ["disk", "a.vmdk", "a.QCOW2x", "/dev/sdb"] {
            assert!(matches!(declared_format(Path::new(name), None), Err(SourceError::FormatUnknown(_))));
        }
    }

    #[test]
    fn unusable_files_are_told_apart() {
        assert!(matches!(refusal("a.raw", &[], None), SourceError::Empty(_)));
        assert!(matches!(refusal("a.raw", &[0; 513], None), SourceError::PartialSector { bytes: 513, .. }));
        assert!(matches!(refusal("a", &[0; 512], None), SourceError::FormatUnknown(_)));
        assert!(matches!(refusal("a.raw", &sample(1 << 20), None), SourceError::LooksLikeQcow2(_)));
        assert!(matches!(refusal("a.qcow2", &[0; 512], None), SourceError::NotQcow2 { .. }));
        assert!(matches!(refusal("a.qcow2", b"QFI", None), SourceError::NotQcow2 { .. }));
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            Source::open(dir.path(), None),
            Err(SourceError::NotADisk { what: "a directory", .. })
        ));
        let error = Source::open(&dir.path().join("none.raw"), None).unwrap_err();
        assert!(error.to_string().starts_with("cannot open image file /"), "{error}");
        assert!(matches!(
            Source::open(Path::new("/dev/null"), Some(DiskFormat::Raw)),
            Err(SourceError::NotADisk { what: "a special file", .. })
        ));
    }

    #[test]
    fn size_is_that_of_the_disk_inside() {
        let (_dir, path) = file("a.qcow2", &sample(5 << 30));
        let source = Source::open(&path, None).unwrap();
        assert_eq!(source.virtual_size, ByteSize::bytes(5 << 30));
        let (_dir, path) = file("a.raw", &[1; 1024]);
        assert_eq!(Source::open(&path, None).unwrap().virtual_size, ByteSize::bytes(1024));
    }

    #[test]
    fn identity_changes_with_contents() {
        let (_dir, path) = file("a.raw", &[1; 1024]);
        let before = Source::open(&path, None).unwrap().identity;
        assert_eq!(Source::open(&path, None).unwrap().identity, before);
        fs::write(&path, [1; 2048]).unwrap();
        assert_ne!(Source::open(&path, None).unwrap().identity, before);
    }
}

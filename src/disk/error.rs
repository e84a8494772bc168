//! Errors of disks, neutral of any guest-facing protocol.

use std::io;

/// Why a disk request failed. The device maps each kind once to its own status.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The range does not lie inside the disk.
    #[error("range of {len} bytes at {offset} lies outside the disk of {size} bytes")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Size of the disk in bytes.
        size: u64,
    },
    /// A write to a disk opened read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The format or the host does not offer the operation.
    #[error("{0} is not supported by this disk")]
    Unsupported(&'static str),
    /// A guest address of the request does not lie in guest memory.
    #[error("a buffer of the request lies outside guest memory")]
    BadBuffer,
    /// The image is damaged or not of its declared format.
    #[error("the image is not a usable {format} image: {detail}")]
    Format {
        /// Declared format.
        format: &'static str,
        /// What was found, one line.
        detail: String,
    },
    /// Another process holds the image.
    #[error("the image is in use by another machine or tool")]
    InUse,
    /// A disk that is to be written was handed in as a file opened for reading only.
    #[error("the image file was opened read-only, and the disk is to be written")]
    NotWritable,
    /// The host failed.
    #[error("{action} failed")]
    Io {
        /// What was tried, for example `read of 4096 bytes at 65536`.
        action: String,
        /// The host's error.
        #[source]
        source: io::Error,
    },
}

impl DiskError {
    /// A chain with a raw image in the middle.
    pub(crate) fn raw_overlay() -> Self {
        Self::Format {
            format: "raw",
            detail: "a raw image cannot be an overlay over another image".to_owned(),
        }
    }

    /// An I/O error of a transfer.
    pub(crate) fn transfer(verb: &str, len: u64, offset: u64, source: io::Error) -> Self {
        Self::Io { action: format!("{verb} of {len} bytes at {offset}"), source }
    }
}

//! Boot entries as configurations write them, before anyone looked whether their files are there.

use super::volumes::VolumeId;

/// A file, or a part of one, that an entry names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileRef {
    pub(crate) volume: VolumeId,
    /// Absolute, on that volume.
    pub(crate) path: String,
    /// Offset and length of a section of a unified kernel image; `None` for the whole file.
    pub(crate) section: Option<(u64, u64)>,
}

impl FileRef {
    pub(crate) fn whole(volume: VolumeId, path: &str) -> Self {
        let slash = if path.starts_with('/') { "" } else { "/" };
        Self { volume, path: format!("{slash}{path}"), section: None }
    }
}

/// An entry of a boot configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) title: String,
    /// `grub.cfg on partition 1 (ext4)`.
    pub(crate) origin: String,
    pub(crate) kernel: FileRef,
    pub(crate) initrds: Vec<FileRef>,
    pub(crate) cmdline: String,
}

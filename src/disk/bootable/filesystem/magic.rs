//! Kinds of contents that are recognised, so that a person is told what stands in the way.

use super::super::source::Source;
use super::{FsError, FsKind};

const MAGICS: [(FsKind, u64, &[u8]); 5] = [
    (FsKind::Luks, 0, b"LUKS\xba\xbe"),
    (FsKind::Squashfs, 0, b"hsqs"),
    (FsKind::Lvm, 512, b"LABELONE"),
    (FsKind::Erofs, 1024, b"\xe2\xe1\xf5\xe0"),
    (FsKind::Swap, 4086, b"SWAPSPACE2"),
];

/// The kind, if it is one of those.
pub(super) fn unreadable(source: &Source) -> Result<Option<FsKind>, FsError> {
    for (kind, offset, magic) in MAGICS {
        let end = offset + magic.len() as u64;
        if end <= source.len() && source.metadata_vec(magic.len(), offset)? == magic {
            return Ok(Some(kind));
        }
    }
    Ok(None)
}

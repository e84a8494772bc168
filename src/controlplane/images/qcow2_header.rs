//! The first bytes of a qcow2 image (QEMU docs/interop/qcow2.rst, "Header"), big endian.
//!
//! Only what the control plane must know before it hands the file on: the size of the disk, and
//! that the image stands alone. Everything else is checked where the image is read.

/// Bytes looked at: the whole fixed part of version 3.
pub(super) const HEADER_LEN: usize = 104;

const MAGIC: [u8; 4] = *b"QFI\xfb";
const VERSION: usize = 4;
const BACKING_FILE_OFFSET: usize = 8;
const SIZE: usize = 24;
const CRYPT_METHOD: usize = 32;
/// Version 3 only.
const INCOMPATIBLE_FEATURES: usize = 72;
const EXTERNAL_DATA_FILE: u64 = 1 << 2;
/// Largest disk that anything here works with; QEMU's own limit with default clusters.
const MAX_SIZE: u64 = 1 << 50;

/// Why the header is refused; completes "is declared qcow2 but …".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeaderError {
    #[error("has no qcow2 header (say --format raw if it is a plain disk image)")]
    NoMagic,
    #[error("ends within its header: it is cut off")]
    CutOff,
    #[error("is of version {0}; versions 2 and 3 are read")]
    Version(u32),
    #[error(
        "keeps part of its data in a backing file (flatten it: qemu-img convert -O qcow2 FILE FLAT.qcow2)"
    )]
    BackingFile,
    #[error("keeps its data in another file (flatten it: qemu-img convert -O qcow2 FILE FLAT.qcow2)")]
    ExternalData,
    #[error("is encrypted (decrypt it with qemu-img convert first)")]
    Encrypted,
    #[error("says that its disk has {0} bytes, which is no usable size")]
    Size(u64),
}

/// Whether the image claims to be qcow2.
pub(super) fn has_magic(header: &[u8]) -> bool {
    header.starts_with(&MAGIC)
}

fn u32_at(header: &[u8], at: usize) -> Result<u32, HeaderError> {
    header.get(at..).and_then(|h| h.first_chunk()).map(|b| u32::from_be_bytes(*b)).ok_or(HeaderError::CutOff)
}

fn u64_at(header: &[u8], at: usize) -> Result<u64, HeaderError> {
    header.get(at..).and_then(|h| h.first_chunk()).map(|b| u64::from_be_bytes(*b)).ok_or(HeaderError::CutOff)
}

/// Size in bytes of the disk inside an image that stands alone.
pub(super) fn virtual_size(header: &[u8]) -> Result<u64, HeaderError> {
    if !has_magic(header) {
        return Err(HeaderError::NoMagic);
    }
    let version = u32_at(header, VERSION)?;
    if !(2..=3).contains(&version) {
        return Err(HeaderError::Version(version));
    }
    if u64_at(header, BACKING_FILE_OFFSET)? != 0 {
        return Err(HeaderError::BackingFile);
    }
    if u32_at(header, CRYPT_METHOD)? != 0 {
        return Err(HeaderError::Encrypted);
    }
    if version == 3 && u64_at(header, INCOMPATIBLE_FEATURES)? & EXTERNAL_DATA_FILE != 0 {
        return Err(HeaderError::ExternalData);
    }
    let size = u64_at(header, SIZE)?;
    if size == 0 || size > MAX_SIZE || !size.is_multiple_of(512) {
        return Err(HeaderError::Size(size));
    }
    Ok(size)
}

/// A minimal version 3 header for tests.
#[cfg(test)]
pub(super) fn sample(size: u64) -> Vec<u8> {
    let mut header = vec![0; HEADER_LEN];
    header[..4].copy_from_slice(&MAGIC);
    header[VERSION..VERSION + 4].copy_from_slice(&3u32.to_be_bytes());
    header[SIZE..SIZE + 8].copy_from_slice(&size.to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn patched(at: usize, bytes: &[u8]) -> Result<u64, HeaderError> {
        let mut header = sample(1 << 30);
        header[at..at + bytes.len()].copy_from_slice(bytes);
        virtual_size(&header)
    }

    #[test]
    fn image_that_stands_alone_tells_its_size() {
        assert_eq!(virtual_size(&sample(1 << 30)), Ok(1 << 30));
        assert_eq!(patched(VERSION, &2u32.to_be_bytes()), Ok(1 << 30));
    }

    #[test]
    fn other_images_are_refused_with_the_reason() {
        assert_eq!(virtual_size(&[0; 512]), Err(HeaderError::NoMagic));
        assert_eq!(virtual_size(&MAGIC), Err(HeaderError::CutOff));
        assert_eq!(patched(VERSION, &1u32.to_be_bytes()), Err(HeaderError::Version(1)));
        assert_eq!(patched(BACKING_FILE_OFFSET, &104u64.to_be_bytes()), Err(HeaderError::BackingFile));
        assert_eq!(patched(CRYPT_METHOD, &2u32.to_be_bytes()), Err(HeaderError::Encrypted));
        assert_eq!(patched(INCOMPATIBLE_FEATURES, &4u64.to_be_bytes()), Err(HeaderError::ExternalData));
        for size in [0, 513, u64::MAX, (1 << 50) + 512] {
            assert_eq!(patched(SIZE, &size.to_be_bytes()), Err(HeaderError::Size(size)));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn any_bytes_give_a_usable_size_or_an_error(tail in prop::collection::vec(any::<u8>(), 0..120), magic: bool) {
            let mut header = if magic { MAGIC.to_vec() } else { Vec::new() };
            header.extend(tail);
            if let Ok(size) = virtual_size(&header) {
                prop_assert!(size > 0 && size.is_multiple_of(512));
            }
        }
    }
}

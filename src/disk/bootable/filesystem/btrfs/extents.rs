//! Contents of files: extents that lie on the partition as they are, compressed, or inside of their items.

use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_PARSE_ZLIB_HEADER, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use ruzstd::decoding::StreamingDecoder;
use ruzstd::io::Read as _;
use vm_memory::VolatileSlice;

use super::super::super::source::Source;
use super::super::bytes::Bytes;
use super::super::contents::{Pieces, fill};
use super::super::{Contents, FsError};
use super::Chunks;

/// More than any file on a healthy disk has.
const MAX_EXTENTS: usize = 1 << 16;
/// Most bytes of a compressed extent, packed or not.
const MAX_COMPRESSED: u64 = 128 << 10;
/// Where the bytes of an inline extent begin in its item.
const INLINE: usize = 21;

#[derive(Debug, Clone, Copy)]
enum Compression {
    Zlib,
    Zstd,
}

#[derive(Debug)]
enum What {
    /// As it is.
    Plain { place: u64 },
    /// Bytes of the item, unpacked already.
    Inline(Vec<u8>),
    /// `unpacked` bytes, of which those from `skip` on belong to the file here.
    Packed { place: u64, packed: u64, unpacked: u64, skip: u64, by: Compression },
}

/// `len` bytes from `at` on of the file.
#[derive(Debug)]
struct Extent {
    at: u64,
    len: u64,
    what: What,
}

/// The extents of a file in its order, with holes between them.
#[derive(Debug)]
pub(super) struct Extents {
    source: Source,
    len: u64,
    extents: Vec<Extent>,
}

impl Extents {
    /// For a file of `len` bytes.
    pub(super) fn new(source: &Source, len: u64) -> Self {
        Self { source: source.clone(), len, extents: Vec::new() }
    }

    /// Adds the extent that an item tells of.
    pub(super) fn push(&mut self, chunks: &Chunks, at: u64, item: &[u8]) -> Result<(), FsError> {
        const KINDS: [u8; 3] = [0, 1, 2];
        let fields = Bytes(item);
        let by = match fields.u8(16) {
            0 => None,
            1 => Some(Compression::Zlib),
            3 => Some(Compression::Zstd),
            _ => return Err(FsError::Unsupported("this compression of Btrfs")),
        };
        if fields.u8(17) != 0 || fields.le16(18) != 0 || !KINDS.contains(&fields.u8(20)) {
            return Err(FsError::Unsupported("an encoded file of Btrfs"));
        }
        let (unpacked, address) = (fields.le64(8), fields.le64(21));
        let (packed, skip, len) = (fields.le64(29), fields.le64(37), fields.le64(45));
        let (len, what) = match (fields.u8(20), by) {
            (0, by) => {
                let bytes = item.get(INLINE..).unwrap_or_default();
                let bytes = match by {
                    Some(by) if unpacked <= MAX_COMPRESSED => unpack(by, bytes, unpacked as usize)?,
                    Some(_) => return Err(FsError::Damaged("a compressed extent is too large")),
                    None => bytes.to_vec(),
                };
                (bytes.len() as u64, What::Inline(bytes))
            }
            // Holes, and room that nothing was written to.
            (2, _) => return Ok(()),
            _ if address == 0 => return Ok(()),
            (_, None) => {
                let from = address.checked_add(skip).ok_or(FsError::Damaged("an extent makes no sense"))?;
                (len, What::Plain { place: chunks.place(from, len)? })
            }
            (_, Some(by)) => {
                let inside = skip.checked_add(len).is_some_and(|end| end <= unpacked);
                if packed > MAX_COMPRESSED || unpacked > MAX_COMPRESSED || !inside {
                    return Err(FsError::Damaged("a compressed extent makes no sense"));
                }
                (len, What::Packed { place: chunks.place(address, packed)?, packed, unpacked, skip, by })
            }
        };
        let end = self.extents.last().map_or(0, |last| last.at + last.len);
        // What is past the end of the file is cut.
        let len = len.min(self.len.saturating_sub(at));
        if at < end && len > 0 {
            return Err(FsError::Damaged("extents of a file are out of order"));
        }
        if self.extents.len() >= MAX_EXTENTS {
            return Err(FsError::Exhausted);
        }
        if len > 0 {
            self.extents.push(Extent { at, len, what });
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Contents {
        Contents::pieces(self.len, Box::new(self))
    }

    /// Fills `buf` with the bytes from `skip` on of an extent.
    fn read_extent(&self, extent: &Extent, buf: VolatileSlice<'_>, skip: u64) -> Result<(), FsError> {
        let whole = |bytes: &[u8], from: u64| {
            let from = bytes.get(from as usize..).and_then(|rest| rest.get(..buf.len()));
            buf.copy_from(from.ok_or(FsError::Damaged("an extent is cut short"))?);
            Ok(())
        };
        match &extent.what {
            What::Plain { place } => self.source.data(buf, place + skip),
            What::Inline(bytes) => whole(bytes, skip),
            What::Packed { place, packed, unpacked, skip: own, by } => {
                let mut bytes = vec![0; *packed as usize];
                self.source.data(VolatileSlice::from(bytes.as_mut_slice()), *place)?;
                whole(&unpack(*by, &bytes, *unpacked as usize)?, own + skip)
            }
        }
    }
}

impl Pieces for Extents {
    fn read(&self, buf: VolatileSlice<'_>, offset: u64) -> Result<(), FsError> {
        let span = |extent: &Extent| (extent.at, extent.len);
        fill(&self.extents, span, buf, offset, |extent, piece, skip| self.read_extent(extent, piece, skip))
    }
}

/// Unpacks `len` bytes at most [`MAX_COMPRESSED`]; what is missing at the end is zero.
fn unpack(by: Compression, packed: &[u8], len: usize) -> Result<Vec<u8>, FsError> {
    let damaged = || FsError::Damaged("a compressed extent cannot be unpacked");
    let mut bytes = vec![0; len];
    match by {
        Compression::Zlib => {
            let flags = TINFL_FLAG_PARSE_ZLIB_HEADER | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
            let (status, ..) = decompress(&mut DecompressorOxide::new(), packed, &mut bytes, 0, flags);
            if (status as i32) < 0 {
                return Err(damaged());
            }
        }
        Compression::Zstd => {
            if window(packed).is_none_or(|window| window > MAX_COMPRESSED) {
                return Err(damaged());
            }
            let mut decoder = StreamingDecoder::new(packed).map_err(|_| damaged())?;
            let mut filled = 0;
            while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                match decoder.read(rest).map_err(|_| damaged())? {
                    0 => break,
                    count => filled += count,
                }
            }
        }
    }
    Ok(bytes)
}

/// Bytes that a zstd frame wants its reader to keep (RFC 8878 §3.1.1.1), which would be allocated.
fn window(frame: &[u8]) -> Option<u64> {
    let fields = Bytes(frame);
    if fields.le32(0) != 0xfd2f_b528 {
        return None;
    }
    let descriptor = fields.u8(4);
    if descriptor & 0x20 == 0 {
        let (exponent, mantissa) = (u32::from(fields.u8(5) >> 3), u64::from(fields.u8(5) & 7));
        let base = 1u64 << (10 + exponent);
        return Some(base + base / 8 * mantissa);
    }
    // A single segment is as large as its contents, which come behind the id of a dictionary.
    let at = 5 + [0, 1, 2, 4][usize::from(descriptor & 3)];
    Some(match descriptor >> 6 {
        0 => u64::from(fields.u8(at)),
        1 => u64::from(fields.le16(at)) + 256,
        2 => u64::from(fields.le32(at)),
        _ => fields.le64(at),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn packed(by: Compression, text: &[u8]) -> Vec<u8> {
        match by {
            Compression::Zlib => miniz_oxide::deflate::compress_to_vec_zlib(text, 6),
            Compression::Zstd => compress_to_vec(text, CompressionLevel::Fastest),
        }
    }

    #[test]
    fn a_frame_that_wants_much_memory_is_refused() {
        let frame = |rest: &[u8]| [&[0x28, 0xb5, 0x2f, 0xfd], rest].concat();
        assert_eq!(window(&frame(&[0x20, 7])), Some(7));
        assert_eq!(window(&frame(&[0x61, 0, 1, 0])), Some(257));
        assert_eq!(window(&frame(&[0xa0, 0, 0, 2, 0])), Some(2 << 16));
        assert_eq!(window(&frame(&[0, 7 << 3])), Some(128 << 10));
        assert_eq!(window(&frame(&[0, 31 << 3 | 7])), Some((1 << 41) + (7 << 38)));
        assert_eq!(window(b"other"), None);
        assert!(unpack(Compression::Zstd, &frame(&[0, 8 << 3]), 10).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn packed_bytes_come_back_and_damaged_ones_end(
            text in prop::collection::vec(0..4u8, 0..20_000),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            for by in [Compression::Zlib, Compression::Zstd] {
                let mut packed = packed(by, &text);
                // Extents end with a sector.
                packed.resize(packed.len().next_multiple_of(4096), 0);
                prop_assert_eq!(&unpack(by, &packed, text.len()).unwrap(), &text);
                for (at, byte) in &damage {
                    *at.get_mut(&mut packed) = *byte;
                }
                let _ = unpack(by, &packed, MAX_COMPRESSED as usize);
            }
        }
    }
}

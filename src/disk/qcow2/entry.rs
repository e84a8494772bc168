//! L2 entries: where the data of a cluster are.
//!
//! An entry of either kind becomes the same thing, a host cluster with two bitmaps. A standard
//! entry is one with a single unit of mapping.
//!
//! | data | zero | the unit |
//! |---|---|---|
//! | 0 | 0 | is that of the image below |
//! | 1 | 0 | is in the host cluster |
//! | 0 | 1 | reads as zeroes, whether or not there is a host cluster |

use super::header::{Geometry, OFFSET_MASK};

/// The host cluster belongs to this entry alone.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const RESERVED: u64 = 0x3f00_0000_0000_01fe;

/// A decoded L2 entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    Plain(Plain),
    Compressed(Compressed),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Plain {
    /// Offset of the host cluster.
    pub host: Option<u64>,
    /// It may be written in place.
    pub copied: bool,
    pub data: u32,
    pub zero: u32,
}

/// A deflate stream somewhere in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Compressed {
    pub offset: u64,
    /// As long as the stream or longer, at most two clusters.
    pub len: u64,
}

/// An entry that no writer produces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Corrupt;

/// What a unit of mapping holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Data,
    Zero,
    Unallocated,
}

impl Plain {
    pub fn kind(&self, sub: u32) -> Kind {
        let bit = 1u32.checked_shl(sub).unwrap_or(0);
        if self.data & bit != 0 {
            Kind::Data
        } else if self.zero & bit != 0 {
            Kind::Zero
        } else {
            Kind::Unallocated
        }
    }

    /// The host cluster, if its contents may be changed in place.
    pub fn writable_host(&self) -> Option<u64> {
        self.host.filter(|_| self.copied)
    }
}

impl Entry {
    pub fn decode(words: [u64; 2], geometry: Geometry) -> Result<Self, Corrupt> {
        let [descriptor, bitmap] = words;
        if descriptor & COMPRESSED != 0 {
            return Self::decode_compressed(descriptor, bitmap, geometry);
        }
        let offset = descriptor & OFFSET_MASK;
        let zero = descriptor & ZERO != 0;
        if descriptor & RESERVED != 0
            || !geometry.is_aligned(offset)
            || (zero && (geometry.extended || !geometry.zero_clusters))
        {
            return Err(Corrupt);
        }
        let host = (offset != 0).then_some(offset);
        let (data, zero) = if geometry.extended {
            (bitmap as u32, (bitmap >> 32) as u32)
        } else if zero {
            (0, 1)
        } else {
            (u32::from(host.is_some()), 0)
        };
        if data & zero != 0 || (data != 0 && host.is_none()) {
            return Err(Corrupt);
        }
        Ok(Self::Plain(Plain { host, copied: descriptor & COPIED != 0, data, zero }))
    }

    fn decode_compressed(descriptor: u64, bitmap: u64, geometry: Geometry) -> Result<Self, Corrupt> {
        // Between 49 and 61 bits of offset, then the number of further sectors, up to bit 61.
        let offset_bits = 62 - (geometry.cluster_bits - 8);
        let offset = descriptor & ((1 << offset_bits) - 1);
        let sectors = (descriptor & (COMPRESSED - 1)) >> offset_bits;
        if descriptor & COPIED != 0 || offset >> 56 != 0 || bitmap != 0 {
            return Err(Corrupt);
        }
        Ok(Self::Compressed(Compressed { offset, len: (sectors + 1) * 512 - (offset & 511) }))
    }

    /// The words of an entry; of a standard one only the first counts.
    pub fn encode(self, geometry: Geometry) -> [u64; 2] {
        match self {
            Self::Plain(Plain { host, copied, data, zero }) => {
                let mut descriptor = host.unwrap_or(0) | if copied { COPIED } else { 0 };
                if geometry.extended {
                    return [descriptor, u64::from(zero) << 32 | u64::from(data)];
                }
                if zero != 0 {
                    descriptor |= ZERO;
                }
                [descriptor, 0]
            }
            Self::Compressed(Compressed { offset, len }) => {
                let offset_bits = 62 - (geometry.cluster_bits - 8);
                let sectors = (len + (offset & 511)) / 512 - 1;
                [COMPRESSED | sectors << offset_bits | offset, 0]
            }
        }
    }
}

/// The bits of the units that `offset..offset + len` of a cluster touches. `len` is not 0, and the
/// range lies inside the cluster.
pub(super) fn touched(geometry: Geometry, offset: u64, len: u64) -> u32 {
    bits(offset >> geometry.sub_bits(), (offset + len - 1) >> geometry.sub_bits())
}

/// The bits of the units that lie wholly inside `offset..offset + len` of a cluster.
pub(super) fn covered(geometry: Geometry, offset: u64, len: u64) -> u32 {
    let first = offset.div_ceil(geometry.sub_size());
    match ((offset + len) >> geometry.sub_bits()).checked_sub(1) {
        Some(last) if last >= first => bits(first, last),
        _ => 0,
    }
}

fn bits(first: u64, last: u64) -> u32 {
    let up_to_last = u32::MAX >> (31 - last.min(31));
    let from_first = u32::MAX << first.min(31);
    up_to_last & from_first
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn geometry(extended: bool) -> Geometry {
        Geometry { cluster_bits: 16, extended, zero_clusters: true }
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same(words: [u64; 2], extended: bool, cluster_bits in 14u32..=21) {
            let geometry = Geometry { cluster_bits, extended, zero_clusters: true };
            let words = [words[0], if extended { words[1] } else { 0 }];
            if let Ok(entry) = Entry::decode(words, geometry) {
                prop_assert_eq!(entry.encode(geometry), words);
            }
        }
    }

    #[test]
    fn standard_entries_tell_data_zeroes_and_nothing_apart() {
        let kind = |word| match Entry::decode([word, 0], geometry(false)) {
            Ok(Entry::Plain(plain)) => Some((plain.kind(0), plain.host, plain.copied)),
            _ => None,
        };
        assert_eq!(kind(0), Some((Kind::Unallocated, None, false)));
        assert_eq!(kind(0x10000), Some((Kind::Data, Some(0x10000), false)));
        assert_eq!(kind(COPIED | 0x10000), Some((Kind::Data, Some(0x10000), true)));
        assert_eq!(kind(1), Some((Kind::Zero, None, false)));
        assert_eq!(kind(COPIED | 0x10001), Some((Kind::Zero, Some(0x10000), true)));
        for corrupt in [0x10200, 2, 1 << 56, 0x10100] {
            assert_eq!(kind(corrupt), None, "{corrupt:#x}");
        }
    }

    #[test]
    fn extended_entries_refuse_contradictions() {
        let decode = |words| Entry::decode(words, geometry(true));
        assert!(decode([0x10000, 1]).is_ok());
        assert!(decode([0, 1 << 32]).is_ok());
        assert_eq!(decode([0, 1]), Err(Corrupt), "data without a host cluster");
        assert_eq!(decode([0x10000, 1 << 32 | 1]), Err(Corrupt), "data and zero");
        assert_eq!(decode([0x10001, 0]), Err(Corrupt), "the zero flag of standard entries");
    }

    #[test]
    fn touched_and_covered_units() {
        let g = geometry(true); // units of 2 KiB
        assert_eq!(touched(g, 0, 1), 1);
        assert_eq!(touched(g, 2047, 2), 0b11);
        assert_eq!(touched(g, 0, 65536), u32::MAX);
        assert_eq!(touched(g, 65535, 1), 1 << 31);
        assert_eq!(covered(g, 0, 2048), 1);
        assert_eq!(covered(g, 1, 2048), 0);
        assert_eq!(covered(g, 1, 4095), 0b10);
        assert_eq!(covered(g, 0, 65536), u32::MAX);
        assert_eq!(covered(g, 63488, 2048), 1 << 31);
        assert_eq!(covered(g, 63489, 2047), 0);
        let g = geometry(false);
        assert_eq!((touched(g, 5, 5), covered(g, 5, 5), covered(g, 0, 65536)), (1, 0, 1));
    }
}

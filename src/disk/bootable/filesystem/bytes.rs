//! Integers out of bytes that may be too short.
//!
//! Bytes past the end read as zero: a driver checks lengths where a zero would matter.

/// Fields of an on-disk structure, at byte offsets.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        if let Some(found) = at.checked_add(N).and_then(|end| self.0.get(at..end)) {
            bytes.copy_from_slice(found);
        }
        bytes
    }

    pub(super) fn u8(&self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    pub(super) fn le16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    pub(super) fn le32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    pub(super) fn le64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    pub(super) fn be16(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.array(at))
    }

    pub(super) fn be32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.array(at))
    }

    pub(super) fn be64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.array(at))
    }

    /// `len` bytes from `at` on, or `None` when they are not all there.
    pub(super) fn slice(&self, at: usize, len: usize) -> Option<&'a [u8]> {
        self.0.get(at..at.checked_add(len)?)
    }
}

/// Text of a fixed-size field that a zero byte ends.
pub(super) fn text(field: &[u8]) -> Option<String> {
    let used = field.split(|&byte| byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(used);
    let text = text.trim_end_matches(' ');
    (!text.is_empty()).then(|| text.to_owned())
}

/// Lower-case 8-4-4-4-12 of bytes in the order they are written.
pub(super) fn uuid(bytes: &[u8; 16]) -> Option<String> {
    let value = u128::from_be_bytes(*bytes);
    let hex = format!("{value:032x}");
    let (a, rest) = hex.split_at(8);
    let (b, rest) = rest.split_at(4);
    let (c, rest) = rest.split_at(4);
    let (d, e) = rest.split_at(4);
    (value != 0).then(|| format!("{a}-{b}-{c}-{d}-{e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_past_the_end_are_zero() {
        let bytes = Bytes(&[1, 2, 3]);
        assert_eq!((bytes.le16(1), bytes.le16(2), bytes.le32(usize::MAX)), (0x302, 0, 0));
        assert_eq!(bytes.slice(1, usize::MAX), None);
    }

    #[test]
    fn uuid_is_written_in_groups() {
        let bytes = std::array::from_fn(|i| i as u8 + 0xa0);
        let shown = uuid(&bytes);
        assert_eq!(shown.as_deref(), Some("a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf"));
        assert_eq!(uuid(&[0; 16]), None);
    }
}

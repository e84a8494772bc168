//! GUIDs in the mixed byte order of UEFI 2.10 appendix A.

use std::fmt;

/// A GUID as it lies in a GPT: first three fields little endian.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Guid([u8; 16]);

impl Guid {
    /// From the bytes on disk.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// From the groups of its written form; `tail` are the last two.
    pub const fn from_fields(first: u32, second: u16, third: u16, tail: [u8; 8]) -> Self {
        let [a0, a1, a2, a3] = first.to_le_bytes();
        let [b0, b1] = second.to_le_bytes();
        let [c0, c1] = third.to_le_bytes();
        let [t0, t1, t2, t3, t4, t5, t6, t7] = tail;
        Self([a0, a1, a2, a3, b0, b1, c0, c1, t0, t1, t2, t3, t4, t5, t6, t7])
    }

    /// The bytes on disk.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// All zero: an unused GPT entry.
    pub fn is_nil(&self) -> bool {
        self.0 == [0; 16]
    }
}

impl fmt::Display for Guid {
    /// Lower case 8-4-4-4-12, as Linux writes a PARTUUID.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a0, a1, a2, a3, b0, b1, c0, c1, t0, t1, tail @ ..] = self.0;
        let first = u32::from_le_bytes([a0, a1, a2, a3]);
        let second = u16::from_le_bytes([b0, b1]);
        let third = u16::from_le_bytes([c0, c1]);
        write!(f, "{first:08x}-{second:04x}-{third:04x}-{t0:02x}{t1:02x}-")?;
        tail.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use crate::partition::PartitionType;

    #[test]
    fn esp_type_prints_as_the_spec_writes_it() {
        assert_eq!(PartitionType::ESP.to_string(), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
    }
}

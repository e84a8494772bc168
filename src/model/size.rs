//! Sizes in bytes, as people write them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes in one KiB.
pub const KIB: u64 = 1 << 10;
/// Bytes in one MiB.
pub const MIB: u64 = 1 << 20;
/// Bytes in one GiB.
pub const GIB: u64 = 1 << 30;
/// Bytes in one TiB.
pub const TIB: u64 = 1 << 40;

/// A number of bytes. Units are powers of 1024, as everywhere in EC2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(u64);

/// The text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseSizeError {
    /// Not a whole number followed by a known unit.
    #[error("{0:?} is not a size (write a whole number and a unit, such as 512M or 8G)")]
    Malformed(String),
    /// More than 2^64 - 1 bytes.
    #[error("{0:?} is larger than any disk or memory")]
    TooLarge(String),
}

impl ByteSize {
    /// Wraps a number of bytes.
    pub const fn bytes(bytes: u64) -> Self {
        ByteSize(bytes)
    }

    /// The number of bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }

    /// Whole MiB, rounded down.
    pub const fn as_mib(self) -> u64 {
        self.0 / MIB
    }

    /// Parses a whole number with an optional unit: `K`, `M`, `G`, `T`, each also with `B` or `iB`,
    /// in any case. Without a unit the number counts `default_unit` bytes.
    pub fn parse(text: &str, default_unit: u64) -> Result<Self, ParseSizeError> {
        let malformed = || ParseSizeError::Malformed(text.to_owned());
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (digits, unit) = trimmed.split_at(split);
        if digits.is_empty() {
            return Err(malformed());
        }
        let scale = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" => default_unit,
            "b" => 1,
            "k" | "kb" | "kib" => KIB,
            "m" | "mb" | "mib" => MIB,
            "g" | "gb" | "gib" => GIB,
            "t" | "tb" | "tib" => TIB,
            _ => return Err(malformed()),
        };
        let too_large = || ParseSizeError::TooLarge(text.to_owned());
        let count: u64 = digits.parse().map_err(|_| too_large())?;
        count.checked_mul(scale).map(ByteSize).ok_or_else(too_large)
    }
}

impl fmt::Display for ByteSize {
    /// The largest unit that gives at least one, with one decimal where it is not whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            TIB.. => (TIB, "TiB"),
            GIB.. => (GIB, "GiB"),
            MIB.. => (MIB, "MiB"),
            KIB.. => (KIB, "KiB"),
            bytes => return f.pad(&format!("{bytes} B")),
        };
        let whole = self.0 / unit;
        let tenths = (u128::from(self.0 % unit) * 10) / u128::from(unit);
        if tenths == 0 {
            f.pad(&format!("{whole} {name}"))
        } else {
            f.pad(&format!("{whole}.{tenths} {name}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_are_powers_of_1024_in_any_case() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512 * MIB),
            ("512M", 512 * MIB),
            ("512mib", 512 * MIB),
            (" 8 GB ", 8 * GIB),
            ("8g", 8 * GIB),
            ("100b", 100),
            ("1T", TIB),
            ("64KiB", 64 * KIB),
        ] {
            assert_eq!(ByteSize::parse(text, MIB), Ok(ByteSize(bytes)), "{text:?}");
        }
    }

    #[test]
    fn malformed_and_overflowing_text_is_refused() {
        for text in ["", "G", "-1G", "+1", "1.5G", "1 G G", "0x10", "8 Gi8", "٣G"] {
            assert!(matches!(ByteSize::parse(text, MIB), Err(ParseSizeError::Malformed(_))), "{text:?}");
        }
        for text in ["99999999999999999999", "16777216T", "18446744073709551615M"] {
            assert!(matches!(ByteSize::parse(text, MIB), Err(ParseSizeError::TooLarge(_))), "{text:?}");
        }
    }

    #[test]
    fn display_uses_the_largest_fitting_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (KIB, "1 KiB"),
            (512 * MIB, "512 MiB"),
            (3 * GIB / 2, "1.5 GiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_text_parses_or_fails_without_panic(text in ".{0,24}") {
            let _ = ByteSize::parse(&text, GIB);
        }

        #[test]
        fn plain_bytes_round_trip(bytes: u64) {
            prop_assert_eq!(ByteSize::parse(&format!("{bytes}B"), GIB), Ok(ByteSize(bytes)));
        }
    }
}

//! Partition tables: GPT, MBR with logical partitions, or none at all.
//!
//! ```text
//! sector 0 ── 0xEE entry ──▶ GPT: header at LBA 1, else the copy in the last sector
//!          ── entries ─────▶ MBR: primaries 1-4, logicals 5.. along the chain of EBRs
//!          ── neither ─────▶ no table: the whole disk is one file system
//! ```
//!
//! A table is what the guest's Linux would make of it: same numbers, same PARTUUIDs, and what Linux
//! ignores (a GPT without protective MBR) is an error here, not a surprise at mount time. All bytes
//! are hostile: every count is bounded, every range is held against the size of the disk.
//!
//! Sources: UEFI 2.10 §5 (GPT), `Documentation/admin-guide/kernel-parameters` of Linux (PARTUUID of
//! an MBR partition is `SSSSSSSS-PP`).

mod gpt;
mod guid;
mod mbr;
#[cfg(any(test, feature = "test-utils"))]
mod memory_disk;
mod printable;
#[cfg(test)]
pub(crate) mod testing;
mod view;

use serde::Serialize;

pub use guid::Guid;
#[cfg(any(test, feature = "test-utils"))]
pub use memory_disk::MemoryDisk;
pub use printable::printable;
pub use view::PartitionView;

use crate::{Disk, DiskError};

/// What the first sectors of a disk hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TableKind {
    /// GUID partition table.
    Gpt,
    /// DOS partition table.
    Mbr,
    /// No table. The only partition is the disk itself and has the number 0.
    None,
}

/// Type of a partition, as its table writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionType {
    /// Type GUID of a GPT entry.
    Gpt(Guid),
    /// Type byte of an MBR entry.
    Mbr(u8),
    /// The whole disk.
    WholeDisk,
}

impl PartitionType {
    /// EFI system partition (UEFI 2.10 table 5.7; 0xEF in an MBR).
    pub const ESP: Guid =
        Guid::from_fields(0xc12a_7328, 0xf81f, 0x11d2, [0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b]);
    /// Extended boot loader partition (Boot Loader Specification; 0xEA in an MBR).
    pub const XBOOTLDR: Guid =
        Guid::from_fields(0xbc13_c2ff, 0x59e6, 0x4262, [0xa3, 0x52, 0xb2, 0x75, 0xfd, 0x6f, 0x71, 0x72]);
    /// x86-64 root (Discoverable Partitions Specification).
    pub const ROOT_X86_64: Guid =
        Guid::from_fields(0x4f68_bce3, 0xe8cd, 0x4db1, [0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09]);

    /// A short word for people, where the type is a usual one.
    pub fn description(&self) -> Option<&'static str> {
        const LINUX: Guid =
            Guid::from_fields(0x0fc6_3daf, 0x8483, 0x4772, [0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4]);
        const BIOS_BOOT: Guid =
            Guid::from_fields(0x2168_6148, 0x6449, 0x6e6f, [0x74, 0x4e, 0x65, 0x65, 0x64, 0x45, 0x46, 0x49]);
        Some(match *self {
            Self::Gpt(Self::ESP) | Self::Mbr(0xef) => "EFI system",
            Self::Gpt(Self::XBOOTLDR) | Self::Mbr(0xea) => "extended boot loader",
            Self::Gpt(Self::ROOT_X86_64) => "Linux root (x86-64)",
            Self::Gpt(BIOS_BOOT) => "BIOS boot",
            Self::Gpt(LINUX) | Self::Mbr(0x83) => "Linux",
            _ => return None,
        })
    }
}

impl std::fmt::Display for PartitionType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gpt(guid) => guid.fmt(f),
            Self::Mbr(byte) => write!(f, "0x{byte:02x}"),
            Self::WholeDisk => f.write_str("whole disk"),
        }
    }
}

/// One partition. Its range lies inside the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Number as Linux counts: from 1, logical partitions of an MBR from 5, 0 for the whole disk.
    pub number: u32,
    /// First byte.
    pub start: u64,
    /// Length in bytes, not 0.
    pub len: u64,
    /// What the table says it is for.
    pub kind: PartitionType,
    /// Name in a GPT entry, printable; empty elsewhere.
    pub name: String,
    /// What `root=PARTUUID=` takes, lower case. `None` for the whole disk.
    pub partuuid: Option<String>,
}

/// The partitions of a disk, by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionTable {
    /// Kind of table.
    pub kind: TableKind,
    /// Bytes per logical sector that the table counts in: 512 or 4096.
    pub sector_size: u32,
    /// Ordered by number. Never empty where `kind` is [`TableKind::None`].
    pub partitions: Vec<Partition>,
}

/// Why there is no partition table to work with.
#[derive(Debug, thiserror::Error)]
pub enum PartitionError {
    /// Nothing to read.
    #[error("the disk is empty (0 bytes): is this the right file?")]
    EmptyDisk,
    /// Both copies of the GPT are unusable.
    #[error(
        "the GPT is damaged: {primary} in the first copy, {backup} in the second (is the image truncated?)"
    )]
    DamagedGpt {
        /// What is wrong with the copy at the start.
        primary: GptFault,
        /// What is wrong with the copy at the end.
        backup: GptFault,
    },
    /// Both copies of the GPT are unusable for the same reason.
    #[error("the GPT is damaged: {0} in both copies (is the image truncated?)")]
    DamagedGptTwice(GptFault),
    /// A GPT that Linux ignores.
    #[error(
        "the disk has a GPT but no protective MBR, so Linux would not use it; write one with `sgdisk --mbrtogpt` or `sfdisk`"
    )]
    NoProtectiveMbr,
    /// A partition that is not on the disk.
    #[error(
        "partition {number} ends at byte {end}, but the disk has only {size} bytes (is the image truncated?)"
    )]
    OutsideDisk {
        /// Number of the partition.
        number: u32,
        /// First byte after it.
        end: u128,
        /// Size of the disk in bytes.
        size: u64,
    },
    /// An impossible range.
    #[error("the partition table is damaged: partition {number} ends before it starts")]
    BadRange {
        /// Number of the partition.
        number: u32,
    },
    /// The chain of logical partitions does not end.
    #[error("the partition table is damaged: more than {0} logical partitions, or a loop among them")]
    TooManyLogical(usize),
    /// The disk could not be read.
    #[error("reading the partition table failed")]
    Read(#[from] DiskError),
}

/// What is wrong with one copy of a GPT (UEFI 2.10 §5.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GptFault {
    /// No `EFI PART`.
    #[error("header is missing")]
    NoSignature,
    /// HeaderSize is not 92..=sector size.
    #[error("header has an impossible size")]
    HeaderSize,
    /// HeaderCRC32 does not match.
    #[error("header checksum is wrong")]
    HeaderChecksum,
    /// MyLBA is not where the header is.
    #[error("header is not at the sector it names")]
    HeaderPlace,
    /// Number or size of entries is out of bounds.
    #[error("entry array has an impossible size")]
    EntryArraySize,
    /// The entry array is not on the disk.
    #[error("entry array lies outside the disk")]
    EntryArrayPlace,
    /// PartitionEntryArrayCRC32 does not match.
    #[error("entry array checksum is wrong")]
    EntryArrayChecksum,
}

/// Reads the partition table of `disk`. Reads a few hundred KiB at most.
///
/// # Errors
/// An empty disk, a damaged table, a partition outside the disk, or a failed read. A disk without
/// any table is no error: see [`TableKind::None`].
pub fn read_table(disk: &dyn Disk) -> Result<PartitionTable, PartitionError> {
    let size = disk.size();
    if size == 0 {
        return Err(PartitionError::EmptyDisk);
    }
    let mut sector = [0u8; 512];
    if size >= 512 {
        disk.read_exact_at(&mut sector, 0)?;
    }
    match mbr::Sector0::parse(&sector) {
        mbr::Sector0::Protective => gpt::read(disk),
        mbr::Sector0::Table(table) => mbr::read(disk, &table),
        mbr::Sector0::Nothing if gpt::is_present(disk)? => Err(PartitionError::NoProtectiveMbr),
        mbr::Sector0::Nothing => Ok(whole_disk(size)),
    }
}

fn whole_disk(size: u64) -> PartitionTable {
    PartitionTable {
        kind: TableKind::None,
        sector_size: 512,
        partitions: vec![Partition {
            number: 0,
            start: 0,
            len: size,
            kind: PartitionType::WholeDisk,
            name: String::new(),
            partuuid: None,
        }],
    }
}

/// Turns sectors `first..=last` into a byte range on a disk of `size` bytes.
fn byte_range(
    number: u32,
    first: u64,
    last: u64,
    sector: u64,
    size: u64,
) -> Result<(u64, u64), PartitionError> {
    if last < first {
        return Err(PartitionError::BadRange { number });
    }
    let start = u128::from(first) * u128::from(sector);
    let end = (u128::from(last) + 1) * u128::from(sector);
    match (u64::try_from(start), u64::try_from(end)) {
        (Ok(start), Ok(end)) if end <= size => Ok((start, end - start)),
        _ => Err(PartitionError::OutsideDisk { number, end, size }),
    }
}

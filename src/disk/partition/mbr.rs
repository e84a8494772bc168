//! DOS partition tables.
//!
//! Sector 0 holds four entries of 16 bytes at 446 and the signature 55 AA at 510. An entry of type
//! 05, 0F or 85 opens a chain of extended boot records: each has one logical partition, relative to
//! itself, and a link, relative to the start of the extended partition.

use super::{Partition, PartitionError, PartitionTable, PartitionType, TableKind, byte_range};
use crate::{Disk, DiskError};

const SECTOR: u64 = 512;
/// Linux stops at 255 partitions; nobody has more than a handful.
const MAX_LOGICAL: usize = 128;
const TYPE_GPT_PROTECTIVE: u8 = 0xee;

/// What sector 0 turned out to be.
pub(super) enum Sector0 {
    /// One entry says that a GPT follows.
    Protective,
    /// A DOS table.
    Table(Table),
    /// Boot code, a file system, noise.
    Nothing,
}

/// A DOS table with at least one used entry.
pub(super) struct Table {
    signature: u32,
    entries: [Entry; 4],
}

#[derive(Clone, Copy)]
struct Entry {
    status: u8,
    kind: u8,
    first: u32,
    sectors: u32,
}

impl Entry {
    fn is_used(&self) -> bool {
        self.kind != 0 && self.sectors != 0
    }

    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85) && self.sectors != 0
    }
}

fn le32(bytes: &[u8; 512], at: usize) -> u32 {
    let mut word = [0; 4];
    if let Some(found) = bytes.get(at..at + 4) {
        word.copy_from_slice(found);
    }
    u32::from_le_bytes(word)
}

/// The four entries, if the sector carries the signature.
fn entries(sector: &[u8; 512]) -> Option<[Entry; 4]> {
    if sector[510..] != [0x55, 0xaa] {
        return None;
    }
    Some([446usize, 462, 478, 494].map(|at| Entry {
        status: sector.get(at).copied().unwrap_or(0xff),
        kind: sector.get(at + 4).copied().unwrap_or(0),
        first: le32(sector, at + 8),
        sectors: le32(sector, at + 12),
    }))
}

impl Sector0 {
    pub(super) fn parse(sector: &[u8; 512]) -> Self {
        let Some(entries) = entries(sector) else {
            return Self::Nothing;
        };
        // The boot sector of a FAT file system has the same signature. Linux tells them apart by the
        // status byte, which can only be 00 or 80.
        if entries.iter().any(|entry| entry.status & 0x7f != 0) {
            return Self::Nothing;
        }
        if entries.iter().any(|entry| entry.kind == TYPE_GPT_PROTECTIVE) {
            return Self::Protective;
        }
        if !entries.iter().any(Entry::is_used) {
            return Self::Nothing;
        }
        Self::Table(Table { signature: le32(sector, 440), entries })
    }
}

/// Lists primary and logical partitions.
pub(super) fn read(disk: &dyn Disk, table: &Table) -> Result<PartitionTable, PartitionError> {
    let size = disk.size();
    let mut partitions = Vec::new();
    let mut push = |number: u32, first: u64, entry: &Entry| {
        let last = first.saturating_add(u64::from(entry.sectors) - 1);
        let (start, len) = byte_range(number, first, last, SECTOR, size)?;
        partitions.push(Partition {
            number,
            start,
            len,
            kind: PartitionType::Mbr(entry.kind),
            name: String::new(),
            partuuid: Some(format!("{:08x}-{number:02x}", table.signature)),
        });
        Ok::<(), PartitionError>(())
    };
    let mut extended = None;
    for (number, entry) in (1..).zip(&table.entries) {
        if entry.is_extended() {
            extended.get_or_insert(u64::from(entry.first));
        } else if entry.is_used() {
            push(number, u64::from(entry.first), entry)?;
        }
    }
    if let Some(extended) = extended {
        let mut number = 5;
        for_each_logical(disk, extended, |first, entry| {
            push(number, first, entry)?;
            number += 1;
            Ok(())
        })?;
    }
    Ok(PartitionTable { kind: TableKind::Mbr, sector_size: 512, partitions })
}

/// Follows the chain of extended boot records from sector `extended` on.
fn for_each_logical(
    disk: &dyn Disk,
    extended: u64,
    mut found: impl FnMut(u64, &Entry) -> Result<(), PartitionError>,
) -> Result<(), PartitionError> {
    let mut here = extended;
    for _ in 0..MAX_LOGICAL {
        let mut sector = [0u8; 512];
        match disk.read_exact_at(&mut sector, here.saturating_mul(SECTOR)) {
            Ok(()) => {}
            // Linux drops the rest of a chain that leaves the disk. The partitions so far are good.
            Err(DiskError::OutOfRange { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let Some(entries) = entries(&sector) else {
            return Ok(());
        };
        let [first, second, ..] = &entries;
        for entry in [first, second] {
            if entry.is_used() && !entry.is_extended() {
                found(here.saturating_add(u64::from(entry.first)), entry)?;
            }
        }
        match [first, second].into_iter().find(|entry| entry.is_extended()) {
            Some(link) => here = extended.saturating_add(u64::from(link.first)),
            None => return Ok(()),
        }
    }
    Err(PartitionError::TooManyLogical(MAX_LOGICAL))
}

#[cfg(test)]
mod tests {
    use super::super::{read_table, testing::*};
    use super::*;

    fn numbers_and_starts(table: &PartitionTable) -> Vec<(u32, u64, u64)> {
        let row = |p: &Partition| (p.number, p.start / SECTOR, p.len / SECTOR);
        table.partitions.iter().map(row).collect()
    }

    #[test]
    fn primaries_and_logicals_get_linux_numbers() {
        let mut image = vec![0; 100 * 512];
        put_mbr(&mut image, 0, &[(0x83, 1, 9), (0, 0, 0), (0x0f, 20, 60), (0x82, 90, 5)]);
        put_mbr(&mut image, 20, &[(0x83, 1, 9), (0x05, 20, 10)]);
        put_mbr(&mut image, 40, &[(0x07, 2, 8)]);
        let table = read_table(&*MemoryDisk::new(image)).unwrap();
        assert_eq!(table.kind, TableKind::Mbr);
        assert_eq!(numbers_and_starts(&table), [(1, 1, 9), (4, 90, 5), (5, 21, 9), (6, 42, 8)]);
        assert_eq!(table.partitions[2].partuuid.as_deref(), Some("cafe1234-05"));
    }

    #[test]
    fn chain_of_logicals_that_loops_is_an_error() {
        let mut image = vec![0; 100 * 512];
        put_mbr(&mut image, 0, &[(0x05, 20, 60)]);
        put_mbr(&mut image, 20, &[(0x83, 1, 9), (0x05, 0, 10)]);
        let error = read_table(&*MemoryDisk::new(image)).unwrap_err();
        assert!(matches!(error, PartitionError::TooManyLogical(_)), "{error}");
    }

    #[test]
    fn chain_that_leaves_the_disk_ends() {
        let mut image = vec![0; 100 * 512];
        put_mbr(&mut image, 0, &[(0x05, 20, 60)]);
        put_mbr(&mut image, 20, &[(0x83, 1, 9), (0x05, 0xffff_fff0, 10)]);
        let table = read_table(&*MemoryDisk::new(image)).unwrap();
        assert_eq!(numbers_and_starts(&table), [(5, 21, 9)]);
    }

    #[test]
    fn partition_past_the_end_says_truncated() {
        let mut image = vec![0; 100 * 512];
        put_mbr(&mut image, 0, &[(0x83, 1, 100)]);
        let error = read_table(&*MemoryDisk::new(image)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "partition 1 ends at byte 51712, but the disk has only 51200 bytes (is the image truncated?)"
        );
    }

    #[test]
    fn fat_boot_sector_and_zeroes_are_no_table() {
        let mut fat = vec![0xf4; 100 * 512];
        fat[510..512].copy_from_slice(&[0x55, 0xaa]);
        for image in [fat, vec![0; 512], vec![0; 4096]] {
            let len = image.len() as u64;
            let table = read_table(&*MemoryDisk::new(image)).unwrap();
            assert_eq!(table.kind, TableKind::None);
            assert_eq!(numbers_and_starts(&table), [(0, 0, len / SECTOR)]);
        }
    }

    #[test]
    fn empty_disk_is_an_error() {
        let error = read_table(&*MemoryDisk::new(Vec::new())).unwrap_err();
        assert!(matches!(error, PartitionError::EmptyDisk));
    }
}

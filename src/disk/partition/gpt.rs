//! GUID partition tables (UEFI 2.10 §5.3).
//!
//! Header at LBA 1 with a copy in the last LBA; each names its own array of entries. A copy counts
//! only when both its checksums hold. The header does not tell the sector size, so both usual ones
//! are tried.

use super::{
    GptFault, Guid, Partition, PartitionError, PartitionTable, PartitionType, TableKind, byte_range,
    printable,
};
use crate::{Disk, DiskError};

const SIGNATURE: &[u8; 8] = b"EFI PART";
const HEADER_SIZE: u32 = 92;
const SECTOR_SIZES: [u32; 2] = [512, 4096];
/// Partition tools write 128 entries, some up to 256; Linux has minor numbers for 255.
const MAX_ENTRIES: u32 = 1024;
/// The spec allows 128 × 2^n. Nobody has used more than 128.
const MAX_ENTRY_SIZE: u32 = 1024;

/// Whether a first header is there, intact or not.
pub(super) fn is_present(disk: &dyn Disk) -> Result<bool, DiskError> {
    for sector in SECTOR_SIZES {
        if let Some(header) = read_sector(disk, 1, sector)?
            && header.starts_with(SIGNATURE)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) fn read(disk: &dyn Disk) -> Result<PartitionTable, PartitionError> {
    let mut faults = [GptFault::NoSignature; 2];
    // First all first copies: a stale second copy of another sector size must not win.
    for copy in [Copy::Primary, Copy::Backup] {
        for sector in SECTOR_SIZES {
            match read_copy(disk, copy, sector)? {
                Ok(table) => return table,
                Err(GptFault::NoSignature) => {}
                Err(fault) => faults[copy as usize] = fault,
            }
        }
    }
    let [primary, backup] = faults;
    Err(if primary == backup {
        PartitionError::DamagedGptTwice(primary)
    } else {
        PartitionError::DamagedGpt { primary, backup }
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Copy {
    Primary = 0,
    Backup = 1,
}

/// The sector, or `None` where the disk is too short for it.
fn read_sector(disk: &dyn Disk, lba: u64, sector: u32) -> Result<Option<Vec<u8>>, DiskError> {
    let sector = u64::from(sector);
    let Some(offset) = lba.checked_mul(sector) else {
        return Ok(None);
    };
    if offset.checked_add(sector).is_none_or(|end| end > disk.size()) {
        return Ok(None);
    }
    let mut bytes = vec![0; sector as usize];
    disk.read_exact_at(&mut bytes, offset)?;
    Ok(Some(bytes))
}

/// Little-endian fields of a buffer whose length was checked; absent bytes read as zero.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        if let Some(found) = self.0.get(at..at.saturating_add(N)) {
            bytes.copy_from_slice(found);
        }
        bytes
    }
}

struct Header {
    entries_lba: u64,
    count: u32,
    entry_size: u32,
    entries_crc: u32,
}

fn parse_header(bytes: &[u8], lba: u64) -> Result<Header, GptFault> {
    if !bytes.starts_with(SIGNATURE) {
        return Err(GptFault::NoSignature);
    }
    let fields = Fields(bytes);
    let size = fields.u32(12);
    let Some(covered) = bytes.get(..size as usize).filter(|_| size >= HEADER_SIZE) else {
        return Err(GptFault::HeaderSize);
    };
    // The checksum is taken with its own field as zero.
    let mut covered = covered.to_vec();
    covered[16..20].fill(0);
    if crc32fast::hash(&covered) != fields.u32(16) {
        return Err(GptFault::HeaderChecksum);
    }
    if fields.u64(24) != lba {
        return Err(GptFault::HeaderPlace);
    }
    let header = Header {
        entries_lba: fields.u64(72),
        count: fields.u32(80),
        entry_size: fields.u32(84),
        entries_crc: fields.u32(88),
    };
    let sound = header.count <= MAX_ENTRIES
        && (128..=MAX_ENTRY_SIZE).contains(&header.entry_size)
        && header.entry_size.is_power_of_two();
    sound.then_some(header).ok_or(GptFault::EntryArraySize)
}

/// Outer error: the disk failed. Inner: this copy is not usable. Innermost: the copy is intact but
/// describes something impossible, so the other copy would too.
type CopyResult = Result<Result<Result<PartitionTable, PartitionError>, GptFault>, DiskError>;

fn read_copy(disk: &dyn Disk, copy: Copy, sector: u32) -> CopyResult {
    let lba = match copy {
        Copy::Primary => 1,
        Copy::Backup => match (disk.size() / u64::from(sector)).checked_sub(1) {
            Some(last) if last > 1 => last,
            _ => return Ok(Err(GptFault::NoSignature)),
        },
    };
    let Some(bytes) = read_sector(disk, lba, sector)? else {
        return Ok(Err(GptFault::NoSignature));
    };
    let header = match parse_header(&bytes, lba) {
        Ok(header) => header,
        Err(fault) => return Ok(Err(fault)),
    };
    // At most 1 MiB: both factors were bounded.
    let mut array = vec![0; header.count as usize * header.entry_size as usize];
    let place = header
        .entries_lba
        .checked_mul(u64::from(sector))
        .filter(|start| start.checked_add(array.len() as u64).is_some_and(|end| end <= disk.size()));
    let Some(place) = place else {
        return Ok(Err(GptFault::EntryArrayPlace));
    };
    disk.read_exact_at(&mut array, place)?;
    if crc32fast::hash(&array) != header.entries_crc {
        return Ok(Err(GptFault::EntryArrayChecksum));
    }
    Ok(Ok(list(&array, header.entry_size, sector, disk.size())))
}

fn list(array: &[u8], entry_size: u32, sector: u32, size: u64) -> Result<PartitionTable, PartitionError> {
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(array.chunks_exact(entry_size as usize)) {
        let fields = Fields(entry);
        let kind = Guid::from_bytes(fields.array(0));
        if kind.is_nil() {
            continue;
        }
        let (start, len) = byte_range(number, fields.u64(32), fields.u64(40), u64::from(sector), size)?;
        partitions.push(Partition {
            number,
            start,
            len,
            kind: PartitionType::Gpt(kind),
            name: name(&fields.array::<72>(56)),
            partuuid: Some(Guid::from_bytes(fields.array(16)).to_string()),
        });
    }
    Ok(PartitionTable { kind: TableKind::Gpt, sector_size: sector, partitions })
}

/// 36 UTF-16 units, ended by a zero if shorter.
fn name(bytes: &[u8; 72]) -> String {
    let units =
        bytes.as_chunks::<2>().0.iter().map(|&unit| u16::from_le_bytes(unit)).take_while(|&unit| unit != 0);
    let text: String = char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    printable(&text)
}

#[cfg(test)]
mod tests {
    use super::super::{read_table, testing::*};
    use super::*;

    fn image() -> Vec<u8> {
        Gpt::new(4 << 20)
            .partition(1, PartitionType::ROOT_X86_64, 2048, 4095, "root")
            .partition(15, PartitionType::ESP, 4096, 5000, "esp")
            .build()
    }

    fn error_of(image: Vec<u8>) -> String {
        read_table(&*MemoryDisk::new(image)).unwrap_err().to_string()
    }

    #[test]
    fn partitions_carry_number_range_and_partuuid() {
        let table = read_table(&*MemoryDisk::new(image())).unwrap();
        assert_eq!((table.kind, table.sector_size), (TableKind::Gpt, 512));
        let [root, esp] = &table.partitions[..] else {
            panic!("{table:?}");
        };
        assert_eq!((root.number, root.start, root.len), (1, 1 << 20, 1 << 20));
        assert_eq!(root.name, "root");
        assert_eq!(root.partuuid.as_deref(), Some("00000001-0000-0000-0000-000000000000"));
        assert_eq!((esp.number, esp.kind), (15, PartitionType::Gpt(PartitionType::ESP)));
    }

    #[test]
    fn sectors_of_4096_bytes_are_found() {
        let image = Gpt::new(16 << 20)
            .sector_size(4096)
            .partition(1, PartitionType::ROOT_X86_64, 256, 511, "root")
            .build();
        let table = read_table(&*MemoryDisk::new(image)).unwrap();
        assert_eq!(table.sector_size, 4096);
        assert_eq!((table.partitions[0].start, table.partitions[0].len), (1 << 20, 1 << 20));
    }

    #[test]
    fn second_copy_stands_in_for_a_damaged_first() {
        for damage in [512, 520, 1024 + 3] {
            let mut image = image();
            image[damage] ^= 0xff;
            let table = read_table(&*MemoryDisk::new(image)).unwrap();
            assert_eq!(table.partitions.len(), 2, "byte {damage}");
        }
    }

    #[test]
    fn damage_in_both_copies_is_told_in_one_line() {
        let mut broken = image();
        let last = broken.len() - 512;
        broken[512 + 40] ^= 1;
        broken[last + 40] ^= 1;
        assert_eq!(
            error_of(broken.clone()),
            "the GPT is damaged: header checksum is wrong in both copies (is the image truncated?)"
        );
        broken[last] = 0;
        assert_eq!(
            error_of(broken),
            "the GPT is damaged: header checksum is wrong in the first copy, header is missing in the second (is the image truncated?)"
        );
    }

    #[test]
    fn truncated_image_is_told() {
        let mut image = image();
        image.truncate(2 << 20);
        assert!(error_of(image).starts_with("partition 15 ends at byte 2560512, but the disk"));
    }

    #[test]
    fn gpt_without_protective_mbr_is_refused() {
        let mut image = image();
        image[..512].fill(0);
        assert!(error_of(image).contains("no protective MBR"));
    }

    #[test]
    fn huge_entry_array_is_refused_before_it_is_read() {
        for (at, value) in [(80, u32::MAX), (84, u32::MAX), (84, 129)] {
            let mut image = image();
            for header in [512, image.len() - 512] {
                image[header + at..header + at + 4].copy_from_slice(&value.to_le_bytes());
                reseal_header(&mut image[header..header + 512]);
            }
            assert!(error_of(image).contains("entry array has an impossible size"));
        }
    }

    #[test]
    fn name_is_made_printable() {
        let image =
            Gpt::new(4 << 20).partition(1, PartitionType::ROOT_X86_64, 2048, 4095, "a\u{1b}[2Jb").build();
        let table = read_table(&*MemoryDisk::new(image)).unwrap();
        assert_eq!(table.partitions[0].name, "a?[2Jb");
    }
}

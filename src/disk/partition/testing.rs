//! Partition tables for tests.

use super::Guid;
pub(crate) use super::memory_disk::MemoryDisk;

/// Writes a boot record with signature CAFE1234 at `sector`: (type, first sector, sectors).
pub(crate) fn put_mbr(image: &mut [u8], sector: usize, entries: &[(u8, u32, u32)]) {
    let record = &mut image[sector * 512..][..512];
    record[440..444].copy_from_slice(&0xcafe_1234u32.to_le_bytes());
    for (i, (kind, first, sectors)) in entries.iter().enumerate() {
        let entry = &mut record[446 + 16 * i..][..16];
        entry[4] = *kind;
        entry[8..12].copy_from_slice(&first.to_le_bytes());
        entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    }
    record[510..].copy_from_slice(&[0x55, 0xaa]);
}

/// Puts the right checksum into a GPT header.
pub(crate) fn reseal_header(header: &mut [u8]) {
    header[16..20].fill(0);
    let crc = crc32fast::hash(&header[..92]);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
}

/// Builds a disk with a GPT.
pub(crate) struct Gpt {
    image: Vec<u8>,
    sector: usize,
    entries: Vec<u8>,
}

impl Gpt {
    pub(crate) fn new(size: usize) -> Self {
        Self { image: vec![0; size], sector: 512, entries: vec![0; 128 * 128] }
    }

    pub(crate) fn sector_size(mut self, sector: usize) -> Self {
        self.sector = sector;
        self
    }

    /// Adds sectors `first..=last`. The partition's GUID begins with its number.
    pub(crate) fn partition(mut self, number: u32, kind: Guid, first: u64, last: u64, name: &str) -> Self {
        let entry = &mut self.entries[(number as usize - 1) * 128..][..128];
        entry[..16].copy_from_slice(&kind.to_bytes());
        entry[16..20].copy_from_slice(&number.to_le_bytes());
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        for (i, unit) in name.encode_utf16().enumerate() {
            entry[56 + 2 * i..][..2].copy_from_slice(&unit.to_le_bytes());
        }
        self
    }

    /// Adds a partition that holds `contents`, from sector `first` on.
    pub(crate) fn contents(mut self, number: u32, kind: Guid, first: u64, contents: &[u8]) -> Self {
        let start = first as usize * self.sector;
        self.image[start..start + contents.len()].copy_from_slice(contents);
        let last = first + contents.len().div_ceil(self.sector) as u64 - 1;
        self.partition(number, kind, first, last, "")
    }

    pub(crate) fn build(mut self) -> Vec<u8> {
        let (sector, size) = (self.sector, self.image.len());
        put_mbr(&mut self.image, 0, &[(0xee, 1, u32::MAX)]);
        let last = size / sector - 1;
        let array_sectors = self.entries.len() / sector;
        for (lba, array) in [(1, 2), (last, last - array_sectors)] {
            let mut header = vec![0; sector];
            header[..8].copy_from_slice(b"EFI PART");
            header[8..12].copy_from_slice(&0x1_0000u32.to_le_bytes());
            header[12..16].copy_from_slice(&92u32.to_le_bytes());
            header[24..32].copy_from_slice(&(lba as u64).to_le_bytes());
            header[72..80].copy_from_slice(&(array as u64).to_le_bytes());
            header[80..84].copy_from_slice(&128u32.to_le_bytes());
            header[84..88].copy_from_slice(&128u32.to_le_bytes());
            header[88..92].copy_from_slice(&crc32fast::hash(&self.entries).to_le_bytes());
            reseal_header(&mut header);
            self.image[lba * sector..][..sector].copy_from_slice(&header);
            self.image[array * sector..][..self.entries.len()].copy_from_slice(&self.entries);
        }
        self.image
    }
}

//! The device configuration space (virtio 1.2 §5.2.4). Read-only; only the capacity changes.

use kiln_disk::{Disk, SECTOR_SIZE};

use super::request::{MAX_DISCARD_SECTORS, MAX_RANGES, MAX_WRITE_ZEROES_SECTORS};

/// Up to and including `write_zeroes_may_unmap` and its padding.
const CONFIG_LEN: usize = 60;

/// log2 of 4096 / 512: guests align their file systems to pages.
const PHYSICAL_BLOCK_EXP: u8 = 3;

/// Length of `capacity`, the first field.
const CAPACITY_LEN: usize = 8;

/// The bytes a driver sees, without the capacity.
pub(super) struct ConfigSpace([u8; CONFIG_LEN]);

impl ConfigSpace {
    pub fn new(disk: &dyn Disk, queues: u16, seg_max: u32) -> Self {
        let mut space = Self([0; CONFIG_LEN]);
        let granularity = u64::from(disk.discard_granularity()) / SECTOR_SIZE;
        space.put(12, &seg_max.to_le_bytes());
        space.put(20, &(SECTOR_SIZE as u32).to_le_bytes()); // blk_size
        space.put(24, &[PHYSICAL_BLOCK_EXP]);
        space.put(26, &(1u16 << PHYSICAL_BLOCK_EXP).to_le_bytes()); // min_io_size, in blocks
        space.put(34, &queues.to_le_bytes());
        space.put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
        space.put(40, &(MAX_RANGES as u32).to_le_bytes());
        space.put(44, &(granularity as u32).to_le_bytes()); // discard_sector_alignment
        space.put(48, &MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
        space.put(52, &(MAX_RANGES as u32).to_le_bytes());
        space.put(56, &[1]); // write_zeroes_may_unmap
        space
    }

    fn put(&mut self, offset: usize, field: &[u8]) {
        for (to, from) in self.0.iter_mut().skip(offset).zip(field) {
            *to = *from;
        }
    }

    /// Fills `data` from `offset`; what lies past the end is left alone. The disk has `size` bytes.
    pub fn read(&self, size: u64, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let capacity = (size / SECTOR_SIZE).to_le_bytes();
        let bytes = capacity.iter().chain(self.0.iter().skip(CAPACITY_LEN));
        for (to, from) in data.iter_mut().zip(bytes.skip(offset)) {
            *to = *from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_disk::RawDisk;

    fn space() -> ConfigSpace {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x1234 * 512).unwrap();
        ConfigSpace::new(&RawDisk::new(file, false).unwrap(), 3, 254)
    }

    #[test]
    fn fields_are_where_the_spec_puts_them() {
        let mut bytes = [0; CONFIG_LEN];
        space().read(0x1234 * 512, 0, &mut bytes);
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()), 0x1234);
        assert_eq!(u32_at(8), 0, "size_max is not offered");
        assert_eq!(u32_at(12), 254);
        assert_eq!(u32_at(20), 512);
        assert_eq!(u16::from_le_bytes([bytes[34], bytes[35]]), 3);
        for limit in [36, 40, 44, 48, 52] {
            assert_ne!(u32_at(limit), 0, "a zero limit at {limit} upsets drivers");
        }
    }

    #[test]
    fn reads_across_and_past_the_end_leave_the_rest_alone() {
        let mut data = [0xee; 8];
        space().read(0, CONFIG_LEN as u64 - 4, &mut data);
        assert_eq!(data, [1, 0, 0, 0, 0xee, 0xee, 0xee, 0xee]);
        let mut data = [0xee; 8];
        space().read(0, u64::MAX, &mut data);
        assert_eq!(data, [0xee; 8]);
    }
}

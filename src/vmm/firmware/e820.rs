//! The memory map that the kernel is told (ACPI 6.4 §15).
//!
//! ```text
//!  0 ── RAM ── EBDA ── reserved ── 1 MiB ── RAM ── low end │ hole │ ECAM reserved │ hole │ 4 GiB ── RAM ── …
//! ```
//!
//! Entries ascend and do not overlap. The stretch between EBDA and 1 MiB is backed by memory like
//! its surroundings, since ACPI tables and SMBIOS live there, but is never handed out as RAM.

use crate::layout;

/// Kind of a stretch of guest-physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Usable memory.
    Ram = 1,
    /// Not for the operating system.
    Reserved = 2,
}

/// One stretch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// First byte.
    pub address: u64,
    /// Length in bytes, never 0.
    pub size: u64,
    /// What it is.
    pub kind: Kind,
}

impl Entry {
    /// First byte after the stretch.
    pub fn end(&self) -> u64 {
        self.address.saturating_add(self.size)
    }
}

/// Describes a machine with `ram_bytes` of memory: from 0 up to the PCI hole, the rest from 4 GiB.
pub fn map(ram_bytes: u64) -> Vec<Entry> {
    let low_end = ram_bytes.min(layout::LOW_RAM_END);
    let high = ram_bytes - low_end;
    let ranges = [
        (0, layout::EBDA_START.min(low_end), Kind::Ram),
        (layout::EBDA_START, layout::HIMEM_START, Kind::Reserved),
        (layout::HIMEM_START, low_end, Kind::Ram),
        (layout::ECAM_START, layout::ECAM_START + layout::ECAM_SIZE, Kind::Reserved),
        (layout::HIGH_RAM_START, layout::HIGH_RAM_START.saturating_add(high), Kind::Ram),
    ];
    ranges
        .into_iter()
        .filter(|(start, end, _)| end > start)
        .map(|(address, end, kind)| Entry { address, size: end - address, kind })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ram(map: &[Entry]) -> u64 {
        map.iter().filter(|e| e.kind == Kind::Ram).map(|e| e.size).sum()
    }

    #[test]
    fn entries_ascend_without_overlap_for_every_size() {
        for mib in [0, 1, 2, 64, 128, 3071, 3072, 3073, 4096, 1 << 20] {
            let map = map(mib * MIB);
            for pair in map.windows(2) {
                assert!(pair[0].end() <= pair[1].address, "{mib} MiB: {pair:?}");
            }
            assert!(map.iter().all(|e| e.size > 0));
        }
    }

    #[test]
    fn all_memory_but_the_first_mebibytes_tail_is_ram() {
        let tail = layout::HIMEM_START - layout::EBDA_START;
        for mib in [64, 3072, 3073, 8192] {
            assert_eq!(ram(&map(mib * MIB)), mib * MIB - tail, "{mib} MiB");
        }
    }

    #[test]
    fn memory_past_three_gibibytes_continues_at_four() {
        let map = map(5 << 30);
        let last = map.last().unwrap();
        assert_eq!((last.address, last.size, last.kind), (layout::HIGH_RAM_START, 2 << 30, Kind::Ram));
        assert!(map.iter().any(|e| e.kind == Kind::Ram && e.end() == layout::LOW_RAM_END));
    }

    #[test]
    fn firmware_area_and_ecam_are_reserved() {
        let map = map(256 * MIB);
        for address in [layout::EBDA_START, layout::ACPI_START, layout::SMBIOS_ENTRY, layout::ECAM_START] {
            let entry = map.iter().find(|e| (e.address..e.end()).contains(&address)).unwrap();
            assert_eq!(entry.kind, Kind::Reserved, "{address:#x}");
        }
    }
}

//! Places initial RAM disks.
//!
//! Several are laid one after the other, each starting at a multiple of four bytes with zeroes
//! between: so the kernel finds the next archive (Documentation/driver-api/early-userspace/
//! buffer-format). Overrides for a read-only image, such as extra modules, come this way.

use std::ops::Range;

use vm_memory::GuestMemoryMmap;

use super::{Blob, BootError, MIB};
use crate::layout;

const PAGE: u64 = 4096;
const ARCHIVE_ALIGN: u64 = 4;

/// Copies `initrds` as high as possible below `limit`, and not below `kernel_end`.
///
/// `limit` is the first address that may not be used. Returns `None` when there is nothing to load.
pub(super) fn load(
    mem: &GuestMemoryMmap,
    initrds: &[Blob<'_>],
    kernel_end: u64,
    limit: u64,
) -> Result<Option<Range<u64>>, BootError> {
    // Low RAM ends at 3 GiB; a longer initrd cannot fit whatever the machine's size.
    let too_little = |total: u64| BootError::TooLittleMemory {
        what: "the initrd",
        needed_mib: kernel_end.next_multiple_of(PAGE).saturating_add(total).div_ceil(MIB),
    };
    let mut lengths = Vec::with_capacity(initrds.len());
    let mut total = 0u64;
    for (index, initrd) in initrds.iter().enumerate() {
        let len = initrd.len().map_err(|source| BootError::ReadInitrd { index, source })?;
        lengths.push(len);
        total = total
            .checked_next_multiple_of(ARCHIVE_ALIGN)
            .and_then(|total| total.checked_add(len))
            .filter(|total| *total <= layout::LOW_RAM_END)
            .ok_or_else(|| too_little(len))?;
    }
    if total == 0 {
        return Ok(None);
    }
    let start = limit
        .checked_sub(total)
        .map(|start| start - start % PAGE)
        .filter(|start| *start >= kernel_end)
        .ok_or_else(|| too_little(total))?;
    let mut address = start;
    for (initrd, len) in initrds.iter().zip(lengths) {
        address = address.next_multiple_of(ARCHIVE_ALIGN);
        initrd.copy_to(mem, address, 0, len).map_err(|source| BootError::Write { what: "initrd", source })?;
        address += len;
    }
    Ok(Some(start..start + total))
}

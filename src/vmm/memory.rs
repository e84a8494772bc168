//! Guest memory.
//!
//! Private anonymous memory, faulted lazily, placed so that guest and host addresses agree modulo
//! 2 MiB: only then can KVM map a transparent huge page with one entry and one exit. A shared memfd
//! would be faulted 4 KiB at a time on a stock host, where huge pages for shared memory are off. On
//! request the pages come from the hugetlb pool instead. Either way they are kept out of core dumps
//! and are shared with nobody.
//!
//! Guest memory is mapped once and never unmapped while the process lives; a restart of the machine
//! wipes it. So neither a memory slot of KVM nor a request in flight can point at unmapped memory.

use std::io;

use kiln_vmspec::MemorySpec;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::layout;

/// Least guest memory in MiB: below it no distribution kernel unpacks its initial RAM disk.
pub const LEAST_MIB: u64 = 64;
/// Most guest memory in MiB (1 TiB).
pub const MOST_MIB: u64 = 1 << 20;

const MIB: u64 = 1 << 20;
const HUGE_PAGE: usize = 2 << 20;

/// Guest memory could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Outside the limits.
    #[error("{0} MiB of memory are outside what Kiln can give a guest ({LEAST_MIB} to {MOST_MIB} MiB)")]
    Size(u64),
    /// Not a multiple of a huge page.
    #[error("{0} MiB of memory are not a multiple of 2 MiB, the size of a huge page")]
    NotHugePages(u64),
    /// The host refused.
    #[error("{action} failed for {mib} MiB of guest memory")]
    Host {
        /// What was tried.
        action: &'static str,
        /// Size of the whole guest memory.
        mib: u64,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
}

/// Guest-physical ranges of a memory of this size: below the PCI hole, then above 4 GiB.
pub fn ranges(size_mib: u64) -> Vec<(u64, u64)> {
    let bytes = size_mib.saturating_mul(MIB);
    let low = bytes.min(layout::LOW_RAM_END);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((layout::HIGH_RAM_START, bytes - low));
    }
    ranges
}

/// Maps memory as `spec` says.
pub fn allocate(spec: MemorySpec) -> Result<GuestMemoryMmap, MemoryError> {
    let mib = spec.size_mib;
    if !(LEAST_MIB..=MOST_MIB).contains(&mib) {
        return Err(MemoryError::Size(mib));
    }
    if spec.hugepages && !mib.is_multiple_of(2) {
        return Err(MemoryError::NotHugePages(mib));
    }
    let host = |action| move |source| MemoryError::Host { action, mib, source };
    let mut regions = Vec::new();
    for (start, len) in ranges(mib) {
        let len = usize::try_from(len).map_err(|_| MemoryError::Size(mib))?;
        let address = sys::map(len, spec.hugepages).map_err(host("mapping"))?;
        #[expect(unsafe_code, reason = "vm-memory cannot place a mapping at an aligned address itself")]
        // SAFETY: `address` is a fresh mapping of `len` readable and writable bytes that nothing
        // else refers to and that is never unmapped.
        let builder = unsafe { MmapRegionBuilder::<()>::new(len).with_raw_mmap_pointer(address) };
        let region = builder
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
            .build()
            .map_err(|e| host("describing")(io::Error::other(e)))?;
        let region = GuestRegionMmap::new(region, GuestAddress(start)).ok_or(MemoryError::Size(mib))?;
        regions.push(region);
    }
    GuestMemoryMmap::from_regions(regions).map_err(|e| host("arranging")(io::Error::other(e)))
}

/// Gives every page back to the host; the guest reads zeroes afterwards.
pub fn wipe(memory: &GuestMemoryMmap) -> io::Result<()> {
    for region in memory.iter() {
        let len = usize::try_from(region.len()).map_err(io::Error::other)?;
        sys::discard(region.as_ptr(), len)?;
    }
    Ok(())
}

/// Sum of all regions in bytes.
pub fn total(memory: &GuestMemoryMmap) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).fold(0, u64::saturating_add)
}

#[expect(unsafe_code, reason = "mmap and madvise")]
mod sys {
    use std::io;
    use std::ptr;

    use super::HUGE_PAGE;

    /// Maps `len` bytes of zeroes at an address that is a multiple of 2 MiB.
    pub fn map(len: usize, hugetlb: bool) -> io::Result<*mut u8> {
        // Reserve enough address space to find an aligned place in, then map over it.
        let room = len.checked_add(HUGE_PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        let reserved = mmap(ptr::null_mut(), room, libc::PROT_NONE, libc::MAP_NORESERVE)?;
        let skip = reserved.align_offset(HUGE_PAGE);
        if skip > HUGE_PAGE {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        // SAFETY: skip + len <= room, so the result points into the reservation.
        let aligned = unsafe { reserved.add(skip) };
        // Pages of the pool are reserved now, so that a shortage shows here and not as a SIGBUS later.
        let kind =
            if hugetlb { libc::MAP_HUGETLB | (21 << libc::MAP_HUGE_SHIFT) } else { libc::MAP_NORESERVE };
        let address = mmap(aligned, len, libc::PROT_READ | libc::PROT_WRITE, kind | libc::MAP_FIXED)?;
        advise(address, len, libc::MADV_DONTDUMP)?;
        // What a tenant has in memory must not be told by how fast another writes the same: also where
        // whoever started us asked for merging. A kernel that cannot merge refuses.
        let _ = advise(address, len, libc::MADV_UNMERGEABLE);
        if !hugetlb {
            // A kernel without transparent huge pages refuses; the memory works all the same.
            let _ = advise(address, len, libc::MADV_HUGEPAGE);
        }
        Ok(address)
    }

    /// Drops the pages behind a mapping of [`map`]; it reads as zeroes afterwards.
    pub fn discard(address: *mut u8, len: usize) -> io::Result<()> {
        advise(address, len, libc::MADV_DONTNEED)
    }

    fn mmap(at: *mut u8, len: usize, protection: i32, flags: i32) -> io::Result<*mut u8> {
        let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: with MAP_FIXED `at..at+len` lies in a reservation made by `map` that nothing uses
        // yet; without it the kernel picks unused addresses. No memory in use is touched.
        let address = unsafe { libc::mmap(at.cast(), len, protection, flags, -1, 0) };
        if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address.cast()) }
    }

    fn advise(address: *mut u8, len: usize, advice: i32) -> io::Result<()> {
        // SAFETY: the range is a mapping of this module. MADV_DONTNEED changes its contents, which
        // is what the caller asks for; guest memory is only ever read and written volatilely.
        let answer = unsafe { libc::madvise(address.cast(), len, advice) };
        if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    fn spec(size_mib: u64) -> MemorySpec {
        MemorySpec { size_mib, hugepages: false }
    }

    #[test]
    fn memory_beyond_the_pci_hole_continues_above_4_gib() {
        assert_eq!(ranges(64), [(0, 64 * MIB)]);
        assert_eq!(ranges(3072), [(0, 3072 * MIB)]);
        assert_eq!(ranges(5120), [(0, 3072 * MIB), (4096 * MIB, 2048 * MIB)]);
    }

    #[test]
    fn regions_are_aligned_to_huge_pages_on_the_host() {
        let memory = allocate(spec(3073)).unwrap();
        assert_eq!(total(&memory), 3073 * MIB);
        for region in memory.iter() {
            assert_eq!(region.as_ptr().align_offset(HUGE_PAGE), 0);
        }
    }

    #[test]
    fn wiped_memory_reads_as_zeroes() {
        let memory = allocate(spec(64)).unwrap();
        memory.write_obj(0x5au8, GuestAddress(0x1000)).unwrap();
        wipe(&memory).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x1000)).unwrap(), 0);
    }

    #[test]
    fn sizes_outside_the_limits_are_refused() {
        assert!(matches!(allocate(spec(63)), Err(MemoryError::Size(63))));
        assert!(matches!(allocate(spec(MOST_MIB + 1)), Err(MemoryError::Size(_))));
        let odd = MemorySpec { size_mib: 65, hugepages: true };
        assert!(matches!(allocate(odd), Err(MemoryError::NotHugePages(65))));
    }
}

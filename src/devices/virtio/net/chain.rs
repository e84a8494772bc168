//! Descriptor chains, walked once and strictly.
//!
//! The iterator of `virtio-queue` ends silently at a broken link; here a chain that does not end
//! where its driver said, that is longer than its queue (virtio 1.2 §2.7.5.3.1), that mixes
//! directions or that leaves guest memory is an error.

use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};

/// The driver broke the rules of the ring; the device asks to be reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A ring lies outside guest memory, or its index moved further than its size.
    #[error("ring is not usable")]
    Ring,
    /// The chain has no data.
    #[error("chain is empty")]
    Empty,
    /// The chain links to nowhere, to itself, or is longer than the queue.
    #[error("chain does not end")]
    Endless,
    /// A descriptor has the wrong direction.
    #[error("descriptor has the wrong direction")]
    Direction,
    /// A buffer lies outside guest memory.
    #[error("buffer lies outside guest memory")]
    Address,
    /// A receive buffer without room for the header.
    #[error("receive buffer is shorter than the header")]
    ShortBuffer,
}

/// A buffer as a descriptor names it, checked to lie in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// First byte.
    pub addr: GuestAddress,
    /// Length in bytes, not 0.
    pub len: u32,
}

/// Which way the data of a descriptor flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Device-readable.
    FromGuest,
    /// Device-writable.
    ToGuest,
}

/// Hands every buffer of `chain` with its direction to `take`, in order. `limit` is the size of the
/// queue. Buffers of length 0 are skipped.
pub(super) fn walk(
    mem: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
    limit: u16,
    mut take: impl FnMut(Segment, Direction) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let mut more = true;
    let mut count = 0u16;
    for descriptor in chain {
        if count >= limit {
            return Err(Malformed::Endless);
        }
        count += 1;
        more = descriptor.has_next();
        if descriptor.len() == 0 {
            continue;
        }
        let segment = Segment { addr: descriptor.addr(), len: descriptor.len() };
        let direction = if descriptor.is_write_only() { Direction::ToGuest } else { Direction::FromGuest };
        let len = usize::try_from(segment.len).map_err(|_| Malformed::Address)?;
        if !GuestMemory::check_range(mem, segment.addr, len, Permissions::ReadWrite) {
            return Err(Malformed::Address);
        }
        take(segment, direction)?;
    }
    match (more, count) {
        (_, 0) => Err(Malformed::Empty),
        (true, _) => Err(Malformed::Endless),
        (false, _) => Ok(()),
    }
}

/// Hands the host view of a checked segment to `take`. A segment may span several regions.
pub(super) fn resolve<'m>(
    mem: &'m GuestMemoryMmap,
    segment: Segment,
    mut take: impl FnMut(VolatileSlice<'m>),
) -> Result<(), Malformed> {
    let len = usize::try_from(segment.len).map_err(|_| Malformed::Address)?;
    let slices = GuestMemory::get_slices(mem, segment.addr, len, Permissions::ReadWrite)
        .map_err(|_| Malformed::Address)?;
    for slice in slices {
        take(slice.map_err(|_| Malformed::Address)?);
    }
    Ok(())
}

//! From a descriptor chain to a request of plain host values (virtio 1.2 §5.2.6).
//!
//! ```text
//!  device-readable                       device-writable
//!  ┌────────────────┬──────────────────┐ ┌──────────────────┬────────┐
//!  │ header, 16     │ data to write,   │ │ data to read     │ status │
//!  │ type · sector  │ or ranges        │ │                  │ 1 byte │
//!  └────────────────┴──────────────────┘ └──────────────────┴────────┘
//! ```
//!
//! Where one part ends and the next begins has nothing to do with descriptors (§2.7.4): both halves
//! are treated as streams of bytes. Header and ranges are copied out of guest memory once; what is
//! checked is that copy. Nothing here touches the disk.

use kiln_disk::engine::Op;
use kiln_disk::{SECTOR_SIZE, Segment};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

/// Length of `struct virtio_blk_req` up to its data.
const HEADER_LEN: usize = 16;

/// Length of `struct virtio_blk_discard_write_zeroes`.
const RANGE_LEN: usize = 16;

/// Ranges that one discard or write-zeroes request may name: enough to merge neighbours' worth of
/// trimming, small enough to copy onto the stack.
pub const MAX_RANGES: usize = 32;

/// Largest range to discard, in sectors: 1 GiB, so that one request stays short.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 21;

/// Largest range to zero, in sectors: 64 MiB, because in the worst case zeroes are written.
pub const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 17;

/// What requests are checked against.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Size of the disk in bytes.
    pub size: u64,
    /// Whether changes are refused.
    pub read_only: bool,
}

/// The buffers of one chain in order, without empty ones.
#[derive(Debug, Default)]
pub struct Buffers {
    /// Device-readable.
    pub readable: Vec<Segment>,
    /// Device-writable; they come after the readable ones.
    pub writable: Vec<Segment>,
}

impl Buffers {
    /// Forgets the chain, keeps the allocations.
    pub fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
    }
}

/// A chain that has room for a status.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// Where the status byte goes. Not checked to lie in guest memory.
    pub status: GuestAddress,
    /// Bytes at the start of the writable part that are filled when the request succeeds, and when
    /// it fails; this is the length in the used ring (§2.7.8.2).
    pub written: Written,
    /// What to do, or why not.
    pub action: Result<Action, Refusal>,
}

/// Lengths for the used ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// All data and the status.
    pub success: u32,
    /// Only the status byte is sure to be written; it counts when no data lie before it.
    pub failure: u32,
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// A read, write or flush. Ranges are inside the disk.
    Io(Op),
    /// Discard ranges, all inside the disk.
    Discard(Ranges),
    /// Zero ranges, all inside the disk.
    WriteZeroes(Ranges),
    /// Store the serial number in the first 20 bytes.
    GetId(Vec<Segment>),
    /// Nothing: a transfer of no bytes.
    Nothing,
}

/// Why a request is answered without looking at the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not offered: `VIRTIO_BLK_S_UNSUPP`.
    #[error("the request type or a flag is not supported")]
    Unsupported,
    /// Against the rules or the limits: `VIRTIO_BLK_S_IOERR`.
    #[error("the request is malformed or beyond the limits of the disk")]
    Invalid,
}

/// There is no byte for a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the chain has no room for a status")]
pub struct NoStatus;

/// A range of the disk in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Length.
    pub len: u64,
    /// The host may reclaim it.
    pub unmap: bool,
}

/// At most [`MAX_RANGES`] ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranges {
    list: [Range; MAX_RANGES],
    len: usize,
}

impl Ranges {
    /// The ranges in order.
    pub fn as_slice(&self) -> &[Range] {
        self.list.get(..self.len).unwrap_or_default()
    }
}

/// Reads the request in `buffers`. `spare` becomes the list that is taken out of `buffers`.
pub fn parse(
    mem: &GuestMemoryMmap,
    buffers: &mut Buffers,
    limits: &Limits,
    spare: Vec<Segment>,
) -> Result<Request, NoStatus> {
    let status = take_last_byte(&mut buffers.writable).ok_or(NoStatus)?;
    let reply_len = total_len(&buffers.writable);
    let action = parse_action(mem, buffers, limits, reply_len, spare);
    let failure = u32::from(reply_len == 0);
    let success = match &action {
        // A chain has at most 2³² bytes, and a longer read has been refused.
        Ok(Action::Io(Op::Read { .. })) => u32::try_from(reply_len + 1).unwrap_or(u32::MAX),
        Ok(Action::GetId(_)) if reply_len == ID_LEN => VIRTIO_BLK_ID_BYTES + 1,
        Ok(Action::GetId(_)) => VIRTIO_BLK_ID_BYTES,
        _ => failure,
    };
    let written = Written { success, failure };
    Ok(Request { status, written, action })
}

const ID_LEN: u64 = VIRTIO_BLK_ID_BYTES as u64;

fn parse_action(
    mem: &GuestMemoryMmap,
    buffers: &mut Buffers,
    limits: &Limits,
    reply_len: u64,
    spare: Vec<Segment>,
) -> Result<Action, Refusal> {
    let mut header = [0; HEADER_LEN];
    copy_front(mem, &mut buffers.readable, &mut header)?;
    let [request_type, _reserved, sector_low, sector_high] = words(&header);
    let sector = u64::from(sector_high) << 32 | u64::from(sector_low);
    let data_len = total_len(&buffers.readable);

    match request_type {
        VIRTIO_BLK_T_IN => {
            let offset = check_transfer(sector, reply_len, limits)?;
            if reply_len == 0 {
                return Ok(Action::Nothing);
            }
            let segments = std::mem::replace(&mut buffers.writable, spare);
            Ok(Action::Io(Op::Read { offset, segments }))
        }
        VIRTIO_BLK_T_OUT => {
            check_writable(limits)?;
            let offset = check_transfer(sector, data_len, limits)?;
            if data_len == 0 {
                return Ok(Action::Nothing);
            }
            let segments = std::mem::replace(&mut buffers.readable, spare);
            Ok(Action::Io(Op::Write { offset, segments }))
        }
        VIRTIO_BLK_T_FLUSH => Ok(Action::Io(Op::Flush)),
        VIRTIO_BLK_T_GET_ID => {
            if reply_len < ID_LEN {
                return Err(Refusal::Invalid);
            }
            Ok(Action::GetId(std::mem::replace(&mut buffers.writable, spare)))
        }
        VIRTIO_BLK_T_DISCARD => {
            check_writable(limits)?;
            parse_ranges(mem, buffers, data_len, limits, MAX_DISCARD_SECTORS, 0).map(Action::Discard)
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            check_writable(limits)?;
            parse_ranges(
                mem,
                buffers,
                data_len,
                limits,
                MAX_WRITE_ZEROES_SECTORS,
                VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
            )
            .map(Action::WriteZeroes)
        }
        _ => Err(Refusal::Unsupported),
    }
}

/// A driver that did not negotiate `VIRTIO_BLK_F_RO` is refused all the same (§5.2.6.2).
fn check_writable(limits: &Limits) -> Result<(), Refusal> {
    if limits.read_only { Err(Refusal::Invalid) } else { Ok(()) }
}

/// Returns the byte offset of a transfer of whole sectors inside the disk.
fn check_transfer(sector: u64, len: u64, limits: &Limits) -> Result<u64, Refusal> {
    let offset = sector.checked_mul(SECTOR_SIZE).ok_or(Refusal::Invalid)?;
    let end = offset.checked_add(len).ok_or(Refusal::Invalid)?;
    if !len.is_multiple_of(SECTOR_SIZE) || len >= u64::from(u32::MAX) || end > limits.size {
        return Err(Refusal::Invalid);
    }
    Ok(offset)
}

fn parse_ranges(
    mem: &GuestMemoryMmap,
    buffers: &mut Buffers,
    data_len: u64,
    limits: &Limits,
    max_sectors: u32,
    known_flags: u32,
) -> Result<Ranges, Refusal> {
    let mut bytes = [0; MAX_RANGES * RANGE_LEN];
    let len = usize::try_from(data_len).map_err(|_| Refusal::Invalid)?;
    if len == 0 || !len.is_multiple_of(RANGE_LEN) {
        return Err(Refusal::Invalid);
    }
    let bytes = bytes.get_mut(..len).ok_or(Refusal::Invalid)?;
    copy_front(mem, &mut buffers.readable, bytes)?;

    let mut ranges = Ranges { list: [Range::default(); MAX_RANGES], len: 0 };
    for (range, raw) in ranges.list.iter_mut().zip(bytes.as_chunks().0) {
        let [sector_low, sector_high, num_sectors, flags] = words(raw);
        // Reserved flags, and unmapping in a discard, have to be answered so (§5.2.6.2).
        if flags & !known_flags != 0 {
            return Err(Refusal::Unsupported);
        }
        if num_sectors > max_sectors {
            return Err(Refusal::Invalid);
        }
        let len = u64::from(num_sectors) * SECTOR_SIZE;
        let sector = u64::from(sector_high) << 32 | u64::from(sector_low);
        let offset = sector.checked_mul(SECTOR_SIZE).ok_or(Refusal::Invalid)?;
        if offset.checked_add(len).is_none_or(|end| end > limits.size) {
            return Err(Refusal::Invalid);
        }
        *range = Range { offset, len, unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 };
        ranges.len += 1;
    }
    Ok(ranges)
}

/// Sum of the lengths. Cannot overflow: a chain has far fewer than 2³² buffers.
fn total_len(segments: &[Segment]) -> u64 {
    segments.iter().fold(0, |sum, segment| sum.saturating_add(u64::from(segment.len)))
}

/// The four little-endian words of a header or range.
fn words(bytes: &[u8; 16]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks();
    std::array::from_fn(|i| words.get(i).map_or(0, |word| u32::from_le_bytes(*word)))
}

/// Removes the last byte and tells its address. Empty segments at the end go with it.
fn take_last_byte(segments: &mut Vec<Segment>) -> Option<GuestAddress> {
    loop {
        let last = segments.last_mut()?;
        if let Some(rest) = last.len.checked_sub(1) {
            let address = last.addr.checked_add(u64::from(rest))?;
            last.len = rest;
            if rest == 0 {
                segments.pop();
            }
            return Some(address);
        }
        segments.pop();
    }
}

/// Moves bytes from the front of `segments` into `buf`. Too few, or not in guest memory, is
/// [`Refusal::Invalid`].
fn copy_front(mem: &GuestMemoryMmap, segments: &mut Vec<Segment>, mut buf: &mut [u8]) -> Result<(), Refusal> {
    let mut used_up = 0;
    for segment in segments.iter_mut() {
        if buf.is_empty() {
            break;
        }
        let len = buf.len().min(segment.len as usize);
        let (part, rest) = std::mem::take(&mut buf).split_at_mut(len);
        buf = rest;
        mem.read_slice(part, segment.addr).map_err(|_| Refusal::Invalid)?;
        if len == segment.len as usize {
            used_up += 1;
        } else {
            segment.addr = segment.addr.checked_add(len as u64).ok_or(Refusal::Invalid)?;
            // `len` is smaller than the `u32` it is taken from.
            segment.len -= len as u32;
        }
    }
    segments.drain(..used_up);
    if buf.is_empty() { Ok(()) } else { Err(Refusal::Invalid) }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;

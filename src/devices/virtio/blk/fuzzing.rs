//! Entry points that fuzz targets and property tests share. Each takes any bytes and must return.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "test support: failing is its way to report"
)]

use std::fs::File;
use std::sync::Arc;

use kiln_disk::engine::Op;
use kiln_disk::{Disk, RawDisk, Segment};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::request::{Action, Buffers, Limits, Ranges, parse};
use super::{Blk, BlkConfig, Engines};
use crate::virtio::VirtioDevice;

const MEM_LEN: usize = 0x1_0000;
const LIMITS: Limits = Limits { size: 1 << 20, read_only: false };

/// Reads a request out of a chain whose shape and contents `data` give. Panics when what comes out
/// does not keep to the limits.
pub fn request(data: &[u8]) {
    let (&[readable, writable], data) = data.split_first_chunk().unwrap_or((&[0, 0], &[]));
    let mut data = data.chunks(6);
    let mut segments = |count: u8| -> Vec<Segment> {
        data.by_ref()
            .take(usize::from(count % 16))
            .map(|raw| {
                let byte = |i: usize| raw.get(i).copied().unwrap_or(0);
                // Mostly inside of memory, small, and on top of the contents.
                let addr = u64::from(u16::from_le_bytes([byte(0), byte(1)])) << (byte(2) / 32 * 6);
                let len = u32::from(u16::from_le_bytes([byte(3), byte(4)])) << (byte(5) / 128 * 16);
                Segment { addr: GuestAddress(addr), len }
            })
            .collect()
    };
    let mut buffers = Buffers { readable: segments(readable), writable: segments(writable) };
    let contents: Vec<u8> = data.flatten().copied().collect();
    let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEM_LEN)]).unwrap();
    mem.write_slice(contents.get(..MEM_LEN).unwrap_or(&contents), GuestAddress(0)).unwrap();

    let Ok(request) = parse(&mem, &mut buffers, &LIMITS, Vec::new()) else { return };
    let inside = |offset: u64, len: u64| offset.checked_add(len).is_some_and(|end| end <= LIMITS.size);
    let all_inside = |ranges: &Ranges| ranges.as_slice().iter().all(|range| inside(range.offset, range.len));
    match request.action {
        Ok(Action::Io(Op::Read { offset, segments } | Op::Write { offset, segments })) => {
            let len = segments.iter().map(|segment| u64::from(segment.len)).sum();
            assert!(inside(offset, len) && offset % 512 == 0 && len % 512 == 0 && len > 0);
        }
        Ok(Action::Discard(ranges) | Action::WriteZeroes(ranges)) => assert!(all_inside(&ranges)),
        Ok(Action::GetId(segments)) => {
            assert!(segments.iter().map(|segment| u64::from(segment.len)).sum::<u64>() >= 20);
        }
        Ok(Action::Io(_) | Action::Nothing) | Err(_) => {}
    }
}

/// A block device on memory of the host, for a hostile driver.
pub fn victim(mem: &GuestMemoryMmap, queues: u16) -> Box<dyn VirtioDevice> {
    let file = File::from(memory_file());
    file.set_len(1 << 20).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RawDisk::new(file, false).unwrap());
    let config = BlkConfig { name: "victim".to_owned(), serial: "serial".to_owned(), throttle: None };
    Box::new(Blk::new(config, &*disk, Engines::new(&disk, mem, queues).unwrap()))
}

fn memory_file() -> std::os::fd::OwnedFd {
    nix::sys::memfd::memfd_create(c"victim", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap()
}
